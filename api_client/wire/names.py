"""Every name two processes must spell alike: tasks, queues, Redis keys.

The values are the protocol. Add to them; never rename one that has been released. Celery's own
keys get the same prefix from the broker's settings, so one installation is one key prefix.
"""

from typing import Final

# Tasks.
EMBED_BATCH: Final = "clipyard.embed_batch"
LOAD: Final = "clipyard.load"
SWITCH: Final = "clipyard.switch"
UNLOAD: Final = "clipyard.unload"
RELOAD: Final = "clipyard.reload"
SET: Final = "clipyard.set"
SWEEP: Final = "clipyard.sweep"  # one worker sweeps itself
SWEEP_FLEET: Final = "clipyard.sweep_fleet"  # whoever takes it sends SWEEP to every worker

JOB_PLAN: Final = "clipyard.job_plan"
JOB_CHUNK: Final = "clipyard.job_chunk"
JOB_CHECK: Final = "clipyard.job_check"
JOB_SWITCH: Final = "clipyard.job_switch"
JOBS_TEND: Final = "clipyard.jobs_tend"  # starts again what has fallen on the floor

# Queues. Each worker also has a direct queue, see `direct_queue`.
EMBED: Final = "embed"  # one worker takes each message
CONTROL: Final = "control"  # the clock's small tasks

# Celery's exchange for `worker_direct`. We send to the queue by its name, which is Kombu's exchange
# of that name as well.
DIRECT_EXCHANGE: Final = "C.dq2"

# Headers of a message, beside Celery's own.
SENT_AT: Final = "clipyard_sent_at"  # unix seconds
CORRELATION: Final = "clipyard_correlation"  # the caller's id, for every log
FIRST: Final = "clipyard_first"  # whether the client sends this request for the first time

# The two priority steps of every queue. Redis serves the lower number first.
INTERACTIVE: Final = 0
BULK: Final = 9


STATUS_EXPIRES_S: Final = 30  # of a worker's hash: who was killed has vanished after this


def binding(routing_key: str, queue: str) -> str:
    """A member of `Keys.bindings`. Kombu's, not ours."""
    return f"{routing_key}\x06\x16\x06\x16{queue}"


def direct_queue(worker: str) -> str:
    """The queue that only this worker reads; kept while the worker is away (`worker_direct`)."""
    return f"{worker}.dq2"


class Keys:
    """The Redis keys of one installation.

    Args:
        prefix: what every key begins with, e.g. `clipyard`.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.workers = f"{prefix}:workers"  # set: node names seen; the hash says who is alive
        self.events = f"{prefix}:events"  # stream, capped: every move with its reason
        self.current = f"{prefix}:current"  # string: the model for requests that name none
        self.catalogue = f"{prefix}:catalogue"  # hash: model id -> CatalogueEntry as JSON
        self.quarantine = f"{prefix}:quarantine"  # hash: id -> quarantine.Evidence; expires
        self.jobs = f"{prefix}:jobs"  # sorted set: job id -> when it was submitted, in unix seconds
        self.safe_batches = f"{prefix}:safe-batches"  # hash: space, device -> rows that fit
        # Strings that expire: set once per sweep, which makes a second beat harmless; and how often
        # it was found set lately.
        self.gate = f"{prefix}:gate:sweep"
        self.refused = f"{self.gate}:refused"
        self.probe = f"{prefix}:probe"  # string, gone at once: shows whether Redis takes writes
        # Kombu's, not ours. Hash: messages that workers have taken and not yet finished. Set: where
        # answers to remote-control commands go.
        self.held = f"{prefix}:unacked"
        self.reply_queues, _ = self.bindings("reply.celery.pidbox")

    def worker(self, worker: str) -> str:
        """Hash: one worker process, expiring soon after the process is gone."""
        return f"{self._prefix}:worker:{worker}"

    def will(self, worker: str) -> str:
        """Hash: what the worker's successor takes up if told to. Expires a month after use."""
        return f"{self._prefix}:will:{worker}"

    def model(self, worker: str, model_id: str) -> str:
        """Hash: one model on one worker, expiring with the worker's."""
        return f"{self._prefix}:model:{worker}:{model_id}"

    def answer(self, request: str) -> str:
        """List: frames, see `codec.pack_answer`; the first one counts. Expires."""
        return f"{self._prefix}:answer:{request}"

    def started(self, request: str) -> str:
        """Hash of worker process -> `quarantine.Crash`: starts that have not ended; `answered` in
        the place of an answer that has gone. Expires."""
        return f"{self._prefix}:started:{request}"

    def blobs(self, request: str) -> str:
        """Hash of position -> file bytes, for pictures sent by value. Expires."""
        return f"{self._prefix}:blobs:{request}"

    def sent(self, request: str) -> str:
        """Hash: the message of a submitted request, the list that it was pushed to and when it is
        too late, in unix seconds, for whoever waits to send it again. Expires."""
        return f"{self._prefix}:sent:{request}"

    def queue(self, queue: str, priority: int) -> str:
        """List: messages that wait in one priority step of a queue. Kombu's, not ours."""
        step = f"\x06\x16{priority}" if priority else ""
        return f"{self._prefix}:{queue}{step}"

    def bindings(self, exchange: str) -> tuple[str, str]:
        """Sets: which queues an exchange leads to; and of those, the lasting. Kombu's, not ours."""
        kombu = f"{self._prefix}:_kombu"
        return f"{kombu}.binding.{exchange}", f"{kombu}.binding_permanent.{exchange}"

    def control(self, db: int) -> str:
        """Channel: remote control of every worker. Kombu's, not ours."""
        return f"{self._prefix}:/{db}.celery.pidbox"

    def reply_queue(self, binding: str) -> str:
        """List: the replies that one member of `reply_queues` leads to. Kombu's, not ours."""
        _, _, queue = binding.rpartition("\x16")
        return f"{self._prefix}:{queue}"

    def budget(self, holder: str, unit: str) -> str:
        """String: when a gateway's caller has its whole budget again. Expires then."""
        return f"{self._prefix}:budget:{holder}:{unit}"

    def usage(self, model_id: str) -> str:
        """Hash of hour of the week -> uses. Expires when the model is forgotten."""
        return f"{self._prefix}:usage:{model_id}"

    def reserved(self, device: str) -> str:
        """Hash of holder -> bytes and expiry: what processes sharing a device are about to take."""
        return f"{self._prefix}:reserved:{device}"

    def cached(self, part: str) -> str:
        """Hash, sorted set, string: vectors by content, see `content_cache`. Within its budget."""
        return f"{self._prefix}:cached:{part}"

    def job(self, job: str) -> str:
        """Hash: one bulk job, see `jobs.JobStatus`."""
        return f"{self._prefix}:job:{job}"

    def job_done(self, job: str) -> str:
        """Bitmap: which chunks are finished."""
        return f"{self._prefix}:job:{job}:done"

    def job_failed(self, job: str) -> str:
        """Bitmap: which finished chunks hold items without a vector."""
        return f"{self._prefix}:job:{job}:failed"

    def job_flight(self, job: str) -> str:
        """Sorted set: what has been started -> when to start it again, in unix seconds."""
        return f"{self._prefix}:job:{job}:flight"

    def job_held(self, job: str) -> str:
        """Hash: what a worker is working on -> its claim."""
        return f"{self._prefix}:job:{job}:held"

    def job_unfit(self, job: str) -> str:
        """Set: workers that answer in another vector space than the job's."""
        return f"{self._prefix}:job:{job}:unfit"
