"""The parts of a worker with the fake family, in this process, and the messages that it sends."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from api_client.reembed.talks import submission
from api_client.wire import names
from api_client.wire.jobs import JobSpec, JobStatus, Place
from api_client.wire.jobscripts import job_keys
from worker import runtime
from worker.backends.base import Placement
from worker.backends.fake import Fake
from worker.catalogue import Catalogue, Entry
from worker.datapath.batcher import Batcher
from worker.datapath.content_cache import Pictures
from worker.datapath.images import ImageReader
from worker.delivery.suspects import Suspects
from worker.metrics import Meter
from worker.reembed import duty
from worker.residency.ledger import Ledger
from worker.residency.slots import Limits, Slots
from worker.settings import WorkerSettings

WORK = {names.JOB_PLAN: "job_plan", names.JOB_CHUNK: "job_chunk", names.JOB_CHECK: "job_check"}


class Parts:
    """What `runtime.here()` gives."""

    def __init__(self, store, keys, folder, *, node="w@here", entries=(), **given: Any) -> None:
        fake = Fake(Placement("cpu"))
        self.node, self.redis, self.keys = node, store, keys
        self.settings = WorkerSettings.read(
            image_roots=[folder], sink_roots=[folder], jobs_dir=folder / "jobs", **given
        )
        self.catalogue = Catalogue(
            [Entry("fake/a", backend="fake"), Entry("fake/b", backend="fake"), *entries]
        )
        self.slots = Slots(
            check=fake.check, load=fake.load, limits=Limits(), ledger=Ledger(), unified=True
        )
        self.batcher = Batcher(batch_size=16, decode_threads=2)
        self.images = ImageReader(self.settings)
        self.meter = Meter()
        self.tracker = SimpleNamespace(used=lambda entry: None)
        self.started_at, self.ends = 1.5, []
        self.suspects = Suspects(store, keys, node=node, started_at=self.started_at)
        self.watchdog = SimpleNamespace(end=self.ends.append)

    def start_again(self):
        """As if the process had ended and another one had come in its place."""
        self.batcher.close()
        self.batcher = Batcher(batch_size=16, decode_threads=2)
        self.started_at += 1
        self.suspects = Suspects(self.redis, self.keys, node=self.node, started_at=self.started_at)

    def pictures(self, model, model_id):
        return Pictures(model, self.images, None, on_look=lambda *, hits, misses: None)

    def close(self):
        self.batcher.close()
        self.slots.close()


class Post:
    """Stands where the Celery app stands: keeps what is sent, and has it done when told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, dict[str, Any], str]] = []

    def send_task(self, name, *, kwargs, headers, queue, priority):
        self.sent.append((name, kwargs, queue))

    def deliver(self) -> str:
        """Have the oldest message done; gives what came of it."""
        from tasks import reembed

        name, fields, _ = self.sent.pop(0)
        return getattr(reembed, WORK[name]).run.__func__(SimpleNamespace(app=self), **fields)

    def deliver_all(self) -> list[str]:
        said = []
        while self.sent:
            said.append(self.deliver())
        return said


class Desk:
    """Submits jobs and looks at them, as a client does."""

    def __init__(self, store, keys, post, settings=None) -> None:
        self.store, self.keys, self.post = store, keys, post
        self.settings = settings or WorkerSettings.read()

    def submit(self, source, sink, **given: Any) -> str:
        fields: dict[str, Any] = {"id": "job", "model": "fake/a", "chunk_size": 8, "window": 4}
        spec = JobSpec(source=source, sink=sink, **(fields | given))
        self.store.delete(*job_keys(self.keys, spec.id))
        submission(self.keys, spec, self.settings)(self.store)
        self.tend()
        return spec.id

    def run(self, source, sink, **given: Any) -> list[str]:
        """Submit a job, and have all that comes of it delivered."""
        self.submit(source, sink, **given)
        return self.post.deliver_all()

    def tend(self) -> None:
        from tasks import reembed

        reembed.jobs_tend.run.__func__(SimpleNamespace(app=self.post))

    def do(self, script: str, *arguments: Any) -> Any:
        keys = job_keys(self.keys, "job")
        changed = self.store.eval(script, len(keys), *keys, *arguments)
        self.tend()
        return changed

    def rerun(self, script: str) -> None:
        """Change it, and have all that comes of that delivered."""
        assert self.do(script)
        self.post.deliver_all()

    def status(self) -> JobStatus:
        return JobStatus.of("job", self.store.hgetall(self.keys.job("job")))


def folder_of(path, count=20) -> Place:
    """Pictures of different colours."""
    path.mkdir(exist_ok=True)
    for n in range(count):
        Image.fromarray(np.full((4, 4, 3), n, np.uint8)).save(path / f"{n:03}.png")
    return Place(kind="folder", where=str(path))


@contextmanager
def at_work(*arguments: Any, **given: Any) -> Iterator[Parts]:
    """`Parts` that `runtime.here()` gives while the block lasts."""
    with closing(Parts(*arguments, **given)) as parts:
        runtime.use(parts)
        try:
            yield parts
        finally:
            runtime.use(None)
            duty._open.clear()
