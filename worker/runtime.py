"""One process's working parts, at hand for its tasks."""

import logging
from dataclasses import dataclass, field
from functools import partial
from threading import Lock

import redis

from api_client.wire.errors import ClipyardError, DeviceLost
from api_client.wire.messages import Cause
from api_client.wire.names import Keys

from .backends.base import Model, Placement
from .backends.registry import Families
from .catalogue import Catalogue
from .complaints import complaints
from .datapath.batcher import Batcher
from .datapath.content_cache import ContentCache, Pictures
from .datapath.images import ImageReader
from .delivery.suspects import Suspects
from .delivery.watchdog import Watchdog
from .health import Health
from .metrics import Meter
from .residency.ledger import Ledger
from .residency.memory import Memory
from .residency.slots import Limits, Slots
from .settings import WorkerSettings
from .tracker import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """The parts of a worker process. `node` is Celery's name for it, e.g. `gpu0@host`."""

    node: str
    settings: WorkerSettings
    placement: Placement
    families: Families
    catalogue: Catalogue
    slots: Slots
    batcher: Batcher
    images: ImageReader
    memory: Memory
    ledger: Ledger
    tracker: Tracker
    health: Health
    watchdog: Watchdog
    suspects: Suspects
    meter: Meter
    hasty: redis.Redis
    redis: redis.Redis
    keys: Keys
    content_cache: ContentCache | None = None
    looking: Lock = field(default_factory=Lock)

    def pictures(self, model: Model, model_id: str) -> Pictures:
        """What prepares the pictures of one call."""
        return Pictures(
            model, self.images, self.content_cache, on_look=partial(self.meter.looked_up, model_id)
        )

    def stands_back(self) -> bool:
        """What this worker took now would wait here for its first model, while another is ready."""
        return self.tracker.has_company and self.slots.brings_its_first

    def warm_up(self) -> None:
        """Bring the models that the settings ask for; whatever came of it, then be ready."""
        wanted = [*self.settings.preload, *self.families.auto_started()]
        if self.settings.resume:
            wanted.append(self.tracker.current())
        for model_id in dict.fromkeys(wanted):
            try:
                self.slots.load(self.catalogue[model_id], asked_by=Cause.START)
            except DeviceLost as lost:
                self.watchdog.end(str(lost))
                return
            except ClipyardError as error:
                log.warning("%s was not loaded at the start: %s", model_id, error)
        self.health.start()
        self.look_around()  # last: it hangs where a file system hangs

    def look_around(self) -> None:
        """Tell the fleet what is wrong on this machine; nothing while an earlier look still hangs:
        there is one with every sweep, and each would hold a thread."""
        if self.looking.acquire(blocking=False):
            try:
                self.tracker.complain(complaints(self.settings, device=self.placement.device))
            finally:
                self.looking.release()

    def say_farewell(self) -> None:
        """Tell the fleet that this worker takes nothing more; what it has begun goes on."""
        self.health.close()
        self.tracker.say("stopping")

    def close(self) -> None:
        """Fail what waits, give all memory back, take the worker off the list."""
        self.say_farewell()
        self.watchdog.close()
        self.batcher.close()
        self.images.close()
        self.slots.close()
        self.tracker.close()
        self.meter.close()
        self.redis.close()
        self.hasty.close()


def limits(settings: WorkerSettings) -> Limits:
    """What the slots may hold by these settings."""
    return Limits(
        slots=settings.slots,
        device_bytes=_bytes(settings.device_memory_gb),
        host_bytes=_bytes(settings.host_memory_gb),
        wait_s=settings.slot_wait_s,
        residency_s=settings.min_residency_s,
        pinned=frozenset(settings.pinned),
    )


def _bytes(gigabytes: float | None) -> int | None:
    return None if gigabytes is None else int(gigabytes * 1e9)


_here: Runtime | None = None


def here() -> Runtime:
    """This process's runtime.

    Raises:
        RuntimeError: `use` has not been called; the worker's app does it when a worker starts.
    """
    if _here is None:
        raise RuntimeError("this process is no worker")
    return _here


def current_id() -> str:
    """Of the current model; as it stands where it cannot be looked up, so that others still serve
    `auto` and a switch helps."""
    worker = here()
    try:
        return worker.catalogue[worker.tracker.current()].id
    except ClipyardError:
        return worker.tracker.current()


def use(runtime: Runtime | None) -> None:
    """Make a runtime this process's, or forget it."""
    global _here
    _here = runtime
