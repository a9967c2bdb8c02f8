"""Taking on a part of a job, and everything that can happen meanwhile.

somebody else has it, or the job is paused      nothing
it is done                                      counted; the next ones are sent
it takes long                                   the claim is renewed meanwhile
the claim was lost, or the job cancelled        dropped
this worker is in another vector space          passed on to one that may not be
the source, the sink or a model is away         tried again after a pause that grows
nothing succeeds for the job's patience         the job pauses, with the reason
the job cannot be done as it was asked for      it fails, or pauses once it has begun
the worker stops                                given back at once
Redis is away for longer than our patience      back to its queue
the worker is killed                            started again when the claim has run out; rows that
                                                were at work then go one by one, and one that
                                                kills again is recorded as a failure
workers die and not over a row                  after a few times the job pauses
the device is lost under it                     given back, and this worker ends
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from uuid import uuid4

import redis
from celery import Celery
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from kombu.exceptions import OperationalError

from api_client.wire import names
from api_client.wire.errors import (
    BadRequest,
    ClipyardError,
    DeviceLost,
    JobRefused,
    SpaceMismatch,
    UnknownJob,
)
from api_client.wire.jobs import JobSpec, JobState
from api_client.wire.patience import LOST

from .. import runtime
from ..delivery.consumer import LONGEST_RUN_S
from ..delivery.pool import stop_if_cancelled
from ..delivery.suspects import Start
from ..housekeeping import live_workers, state_of
from ..runtime import Runtime
from .embedding import Unfit
from .items import storable
from .job import Job
from .ledger import CHECK, PLAN, Claim, Claimed, JobLedger

log = logging.getLogger(__name__)

TASKS = {PLAN: names.JOB_PLAN, CHECK: names.JOB_CHECK}  # and JOB_CHUNK for a chunk's number
OPEN = 8  # jobs whose connections are kept
RENEWALS = 4  # of a claim, before it would run out

CRASHES = 5  # of workers that were at no row: more likely killed from outside than by us

Work = Callable[[Job, Callable[[], None], Start], list[str]]
_open: dict[tuple[str, str, float], Job] = {}
_opening = threading.Lock()


class _Dropped(Exception):
    """Nobody wants this any more, or somebody else has it."""


def do(app: Celery, job_id: str, what: str, state: JobState, *, sent_at: float, work: Work) -> str:
    """Do a part of a job, if it is to be done; gives a word on what came of it, for Flower.

    Args:
        what: a chunk's number, PLAN or CHECK.
        state: of the job, in which that makes sense.
        work: does it, and gives what is to be sent next.
    """
    here = runtime.here()
    ledger = ledger_of(here, job_id)
    try:
        spec = readable(ledger)
        if spec is None:
            return "unreadable"
        if here.node in (unfit := ledger.unfit_workers()) and _pass_on(
            app, ledger, spec, what, unfit
        ):
            return "passed on"
        with here.suspects.begin(f"{job_id}/{what}", f"job {job_id}") as start:
            if start.is_needless:  # its claim would take the other one's away
                return "elsewhere"
            claim = Claim(what, f"{here.node} {uuid4().hex}", here.settings.job_lease_s)
            claimed = ledger.claim(claim, state=state, sent_at=sent_at)
            if claimed is not Claimed.MINE:
                return str(claimed)
            return _outcome(app, _opened(here, spec, ledger), claim, state, work, start)
    except DeviceLost as lost:
        here.watchdog.end(str(lost))
        raise Reject(lost, requeue=True) from None
    except LOST as away:
        log.warning("job %s, %s goes back to its queue: %s", job_id, what, away)
        raise Reject(away, requeue=True) from None


def send(
    app: Celery, ledger: JobLedger, spec: JobSpec, parts: Iterable[str], *, queue: str = names.EMBED
) -> None:
    """Hand parts of a job to the workers. What cannot be sent now is sent by the next tending."""
    sent_at = ledger.now()
    step = spec.priority.step
    for what in parts:
        fields = {"job": spec.id, "what": what, "sent_at": sent_at}
        try:
            app.send_task(
                TASKS.get(what, names.JOB_CHUNK),
                kwargs=fields,
                headers={names.SENT_AT: sent_at},
                queue=queue,
                priority=step,
            )
        except OperationalError as error:
            log.warning("job %s, %s could not be sent: %s", spec.id, what, error)


def readable(ledger: JobLedger) -> JobSpec | None:
    """The job's specification, or None if nobody knows the job or it is not to be trusted."""
    try:
        return ledger.spec(runtime.here().settings)
    except BadRequest as error:
        sentence = f"{runtime.here().node}: {error}"
        if ledger.state() is JobState.PLANNING:
            ledger.end(JobState.FAILED, sentence, at=JobState.PLANNING)
        else:  # it was in order once: this worker's key or version may be the odd one
            ledger.pause(sentence)
        return None


def ledger_of(here: Runtime, job_id: str) -> JobLedger:
    return JobLedger(here.redis, here.keys, job_id, sent_s=here.settings.job_lease_s)


def opened(here: Runtime, job_id: str) -> Job:
    """A job's parts.

    Raises:
        UnknownJob: nobody knows it.
        BadRequest: it is of another version, or not signed with a key of this worker.
    """
    ledger = ledger_of(here, job_id)
    if (spec := ledger.spec(here.settings)) is None:
        raise UnknownJob(f"there is no job {job_id!r}; see `clipyard reembed list`")
    return _opened(here, spec, ledger)


def _outcome(app: Celery, job: Job, claim: Claim, state: JobState, work: Work, start: Start) -> str:
    ledger, spec, what = job.ledger, job.spec, claim.what
    if sum(crash.place is None for crash in start.crashes) >= CRASHES:
        ledger.give_back(claim)
        ledger.pause(f"{what} took its worker down {CRASHES} times, and no item is to blame")
        start.end()
        return "paused"
    try:
        with _renewed(ledger, claim, state) as go_on:
            following = work(job, go_on, start)
        if what in (PLAN, CHECK):  # of a job that was paused meanwhile it is done again
            ledger.give_back(claim)
        start.end()
    except _Dropped:
        return "dropped"
    except (Ignore, Reject, SoftTimeLimitExceeded, DeviceLost):
        with suppress(*LOST):  # it will run out by itself
            ledger.give_back(claim)
        raise
    except LOST:
        raise
    except Exception as error:
        return _met(app, job, claim, state, error)
    send(app, ledger, spec, following)
    return "done"


def _met(app: Celery, job: Job, claim: Claim, state: JobState, error: Exception) -> str:
    """What a failure means for the job."""
    here, ledger, spec, what = runtime.here(), job.ledger, job.spec, claim.what
    with _opening:
        _open.pop(_key(here, spec), None)  # what it holds open may be what is broken, or gone
    if isinstance(error, Unfit):
        ledger.unfit(here.node)
        if _pass_on(app, ledger, spec, what, ledger.unfit_workers()):
            ledger.give_back(claim)
            return "passed on"
    if isinstance(error, ClipyardError):
        sentence = storable(f"{here.node}: {error}")
        if state is JobState.PLANNING and not error.retryable:
            log.warning("job %s cannot begin: %s", spec.id, sentence)
            ledger.end(JobState.FAILED, sentence, at=state)
            return "refused"
    else:
        log.exception("job %s, %s failed", spec.id, what)
        sentence = f"{here.node}: internal error {type(error).__name__}, see its log"
    ledger.trouble(claim, sentence)
    if isinstance(error, JobRefused | SpaceMismatch) and not isinstance(error, Unfit):
        ledger.pause(sentence)
    log.warning("job %s, %s: %s", spec.id, what, sentence)
    return "trouble"


def _pass_on(
    app: Celery, ledger: JobLedger, spec: JobSpec, what: str, unfit: frozenset[str]
) -> bool:
    """To a live worker that goes on and is not known to be unfit, on its own queue."""
    here = runtime.here()
    others = [node for node in live_workers(here.redis, here.keys) if node not in unfit]
    random.shuffle(others)  # the first that goes on: each look is a round trip
    for node in others:
        if state_of(here.redis, here.keys.worker(node)) != "stopping":
            send(app, ledger, spec, [what], queue=names.direct_queue(node))
            return True
    return False


@contextmanager
def _renewed(ledger: JobLedger, claim: Claim, state: JobState) -> Iterator[Callable[[], None]]:
    """Renews the claim in time while the block lasts; gives what work calls between two steps.

    That raises when the work is to stop. From a thread, for a step may take longer than the lease:
    a slice of large pictures on a slow CPU, a listing of a million files. One that takes longer
    than any may is taken for wedged, and its claim runs out; if it ends after all, it goes on as
    long as the job is where it was: else nobody would ever list a folder that takes so long.
    """
    over, dropped, wedged = threading.Event(), threading.Event(), threading.Event()
    seen = time.monotonic()

    def renew() -> None:
        while not over.wait(claim.lease_s / RENEWALS):
            if time.monotonic() >= seen + LONGEST_RUN_S:
                wedged.set()
                return
            try:
                if not ledger.renew(claim):
                    dropped.set()
                    return
            except redis.RedisError as error:
                log.warning("job %s, %s is not renewed: %s", ledger.job, claim.what, error)

    def go_on() -> None:
        nonlocal seen
        stop_if_cancelled()
        if dropped.is_set() or (wedged.is_set() and ledger.state() is not state):
            raise _Dropped
        seen = time.monotonic()

    threading.Thread(target=renew, name=f"renew-{claim.what}", daemon=True).start()
    try:
        yield go_on
    finally:
        over.set()


def _opened(here: Runtime, spec: JobSpec, ledger: JobLedger) -> Job:
    key = _key(here, spec)
    with _opening:
        if job := _open.get(key):
            return job
    job = Job(here, spec, ledger)  # looks at folders, which may hang
    with _opening:
        while len(_open) >= OPEN and key not in _open:
            del _open[next(iter(_open))]
        return _open.setdefault(key, job)


def _key(here: Runtime, spec: JobSpec) -> tuple[str, str, float]:
    return here.node, spec.id, spec.submitted_at
