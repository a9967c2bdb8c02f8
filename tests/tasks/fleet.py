"""A worker of the fake family, with a device and a host memory of its own.

In this process by `parts`, or as a process: celery -A tests.tasks.fleet worker -P threads
"""

import os
from types import SimpleNamespace
from typing import Any

from celery import shared_task
from celery.signals import celeryd_after_setup, worker_shutdown

from api_client.wire.broker import celery_app, redis_client
from api_client.wire.messages import Kind
from api_client.wire.names import Keys
from worker import runtime
from worker.backends.base import Placement
from worker.backends.fake import Fake, Pool
from worker.backends.registry import Families
from worker.catalogue import Catalogue, Entry
from worker.delivery.suspects import Suspects
from worker.metrics import Meter
from worker.residency.ledger import Ledger
from worker.residency.memory import Bytes
from worker.residency.slots import Slots
from worker.settings import WorkerSettings
from worker.tracker import Tracker

TASKS = ["tasks.lifecycle", "tasks.sweep", "tests.tasks.fleet"]
ENTRIES = [
    Entry(
        "clip/a", backend="fake", aliases=("a",), options={"device_bytes": 100, "host_bytes": 60}
    ),
    Entry(
        "clip/b", backend="fake", aliases=("b",), options={"device_bytes": 100, "host_bytes": 60}
    ),
    Entry(
        "text/c",
        backend="fake",
        kinds=(Kind.TEXT,),
        aliases=("c",),
        options={"device_bytes": 10, "host_bytes": 6},
    ),
    Entry("clip/broken", backend="fake", options={"fail_load": "half of the file is missing"}),
]


class Memory:
    """That of the fake family."""

    def __init__(self, fake: Fake) -> None:
        self._fake = fake

    def host(self) -> Bytes:
        return Bytes(self._fake.host.total, self._fake.host.free)

    def device(self) -> Bytes:
        return Bytes(self._fake.device.total, self._fake.device.free)


def parts(settings: WorkerSettings, node: str) -> Any:
    """What `worker.runtime.here()` gives; started."""
    settings = settings.model_copy(update={"slot_wait_s": 2.0})
    store, keys = redis_client(settings), Keys(settings.key_prefix)
    placement = Placement("cuda:0")
    fake = Fake(placement, device=Pool(1000), host=Pool(1000))
    memory, ledger = Memory(fake), Ledger()
    tracker = Tracker(
        store,
        keys,
        node=node,
        settings=settings,
        device="cuda:0",
        beat_s=float(os.environ.get("FLEET_BEAT_S", "5")),
        expiry_s=int(os.environ.get("FLEET_EXPIRY_S", "30")),
    )
    tracker.resume()
    slots = Slots(
        check=fake.check,
        load=fake.load,
        limits=runtime.limits(tracker.settings),
        ledger=ledger,
        unified=False,
        on_event=tracker.on_event,
    )
    tracker.say("ready")
    tracker.attach(slots, memory, ledger)
    tracker.start()
    return SimpleNamespace(
        node=node,
        settings=settings,
        families=Families(placement),
        catalogue=Catalogue(ENTRIES),
        slots=slots,
        tracker=tracker,
        suspects=Suspects(store, keys, node=node, started_at=tracker.started_at),
        meter=Meter(),
        look_around=lambda: None,
        memory=memory,
        ledger=ledger,
        redis=store,
        keys=keys,
        fake=fake,
    )


def stop(here: Any) -> None:
    here.slots.close()
    here.tracker.close()
    here.redis.close()


@shared_task(name="test.hold")
def hold(model: str, bell: str) -> None:
    """Uses a model, as an embedding would, until somebody rings."""
    here = runtime.here()
    with here.slots.lease(here.catalogue[model]):
        here.redis.rpush(f"{bell}:held", 1)
        here.redis.blpop([f"{bell}:let go"], timeout=60)


if "FLEET_BEAT_S" in os.environ:  # a process of its own
    _settings = WorkerSettings.read()
    app = celery_app(_settings, include=TASKS)

    @celeryd_after_setup.connect
    def _start(sender: str, **_: Any) -> None:
        here = parts(_settings, sender)
        runtime.here = lambda: here

    @worker_shutdown.connect
    def _stop(**_: Any) -> None:
        stop(runtime.here())
