"""Puts a worker's parts together and sets them to work."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import distributions

import redis

from api_client.wire.broker import redis_client
from api_client.wire.errors import ClipyardError, DeviceLost
from api_client.wire.messages import Event, EventKind
from api_client.wire.names import Keys
from api_client.wire.version import VERSION

from . import processors
from .backends.base import Model
from .backends.registry import Families
from .catalogue import Catalogue, Entry
from .datapath.batcher import Batcher
from .datapath.content_cache import ContentCache
from .datapath.images import ImageReader
from .datapath.sizes import Sizes
from .delivery.pool import aside, parked
from .delivery.suspects import Suspects
from .delivery.watchdog import Watchdog
from .health import Health
from .listing import Listing
from .metrics import Meter
from .probe import probe
from .residency.ledger import Ledger
from .residency.memory import Memory
from .residency.reservation import Reservations
from .residency.slots import Slots
from .runtime import Runtime, limits
from .settings import WorkerSettings
from .state import State
from .tracker import Tracker

log = logging.getLogger(__name__)

PACKAGES = {"celery", "kombu", "redis", "torch", "open_clip_torch"}
SAFE_BATCHES_KEPT_S = 30 * 24 * 3600
HASTE_S = 1.0  # how long Redis is waited for where it can be done without


def build(settings: WorkerSettings, *, node: str) -> Runtime:
    """The parts for one device, at work: the worker shows itself to the fleet.

    Raises:
        BadSettings: the device is not here, or a catalogue file cannot be used.
        NoBroker: no Redis is configured.
    """
    from .backends.placement import resolve  # torch: for who runs models, not who counts them

    placement = resolve(settings)
    families = Families(placement, settings.backends)
    families["open_clip"]  # its import takes seconds and holds everybody up: now, not in a request
    catalogue = families.catalogue(settings.catalogue)
    settings = _by_ids(settings, catalogue)
    # Answers, beats and the books of jobs have nowhere else to go: they wait a silence out.
    store, keys = redis_client(settings), Keys(settings.key_prefix)
    hasty = _hasty_client(settings)
    memory = Memory(placement.device)
    reservations = Reservations(
        hasty,
        keys,
        device=memory.uuid() or f"{node.partition('@')[2]}/{placement.device}",
        free_bytes=lambda: seen.free if (seen := memory.device()) else None,
    )
    ledger = Ledger(
        device=memory.device,
        host=memory.host,
        kept=memory.kept,
        reserve=reservations.reserve,
        headroom=settings.headroom,
    )
    tracker = Tracker(
        store,
        keys,
        node=node,
        settings=settings,
        device=placement.device,
        versions={"clipyard": VERSION}
        | {one.name: one.version for one in distributions() if one.name in PACKAGES},
    )
    tracker.resume()
    meter = Meter()

    def on_event(event: Event) -> None:
        meter.happened(event)
        tracker.on_event(event)
        if event.kind in (EventKind.EVICTED, EventKind.UNLOADED):
            batcher.forget(event.model)

    def load(entry: Entry) -> Model:
        tracker.show_soon()  # that it is being loaded
        return families.load(entry)

    slots = Slots(
        check=families.check,
        load=load,
        limits=limits(tracker.settings),
        ledger=ledger,
        unified=memory.device() is None,
        on_event=on_event,
        aside=aside,
        parked=parked,
    )

    listing = Listing(store, keys, catalogue)

    def renew() -> None:
        reservations.renew()
        listing.renew([tracker.current(), *(slot.model_id for slot in slots.view())])

    @contextmanager
    def weighed(model_id: str) -> Iterator[None]:
        with memory.peak() as peak_bytes:
            yield
        ledger.ran(model_id, peak_batch_bytes=peak_bytes())

    batcher = Batcher(
        batch_size=settings.batch_size,
        decode_threads=settings.decode_threads,
        runners=processors.available() if placement.device == "cpu" else 1,
        collates_ahead=placement.device != "cpu",
        sizes=_sizes(store, keys, memory.name()),
        on_pass=meter.ran,
        around_pass=weighed,
    )

    def farewell(reason: str) -> None:
        health.close()
        tracker.say("stopping", trouble=reason)
        tracker.beat()

    watchdog = Watchdog(pulse=batcher.pulse, wedged_after_s=settings.wedged_after_s, say=farewell)

    def try_device() -> None:
        try:
            probe(catalogue, slots, batcher)
        except DeviceLost as lost:
            watchdog.end(str(lost))
            raise

    health = Health(
        pulse=batcher.pulse,
        probe=try_device,
        say=lambda found: tracker.say(found.state, trouble=found.trouble),
        trouble=families.trouble,
        wedged_after_s=settings.wedged_after_s,
    )
    tracker.attach(slots, memory, ledger, renew=renew)
    tracker.start()
    here = Runtime(
        node=node,
        settings=settings,
        placement=placement,
        families=families,
        catalogue=catalogue,
        slots=slots,
        batcher=batcher,
        images=ImageReader(settings),
        memory=memory,
        ledger=ledger,
        tracker=tracker,
        health=health,
        watchdog=watchdog,
        suspects=Suspects(store, keys, node=node, started_at=tracker.started_at),
        meter=meter,
        hasty=hasty,
        redis=store,
        keys=keys,
        content_cache=_content_cache(hasty, keys, settings),
    )
    meter.show(State(here))
    if settings.metrics_port:
        meter.listen(settings.metrics_host, settings.metrics_port)
    return here


def _by_ids(settings: WorkerSettings, catalogue: Catalogue) -> WorkerSettings:
    """Models named as everybody else here names them. One that nobody knows, or of a family that
    cannot be made, stays: it may come, and others are served meanwhile."""

    def id_of(model: str, setting: str) -> str:
        try:
            return catalogue[model].id
        except ClipyardError as error:
            log.warning("%s: %s", setting, error)
            return model

    pinned = tuple(id_of(model, "CLIPYARD_PINNED") for model in settings.pinned)
    default = id_of(settings.default_model, "CLIPYARD_DEFAULT_MODEL")
    return settings.model_copy(update={"pinned": pinned, "default_model": default})


def _content_cache(
    client: redis.Redis, keys: Keys, settings: WorkerSettings
) -> ContentCache | None:
    if not settings.content_cache_mb:
        return None
    budget_bytes = int(settings.content_cache_mb * 1e6)
    return ContentCache(client, keys, budget_bytes=budget_bytes)


def _hasty_client(settings: WorkerSettings) -> redis.Redis:
    """Where Redis is silent, a load asks it three times and a batch of pictures often."""
    return redis_client(
        settings, patience_s=HASTE_S, socket_timeout=HASTE_S, socket_connect_timeout=HASTE_S
    )


def _sizes(store: redis.Redis, keys: Keys, device: str) -> Sizes:
    """Safe batch sizes, kept in Redis so that the next worker starts where this one learned.

    Args:
        device: what it is, not where: each machine has a `cuda:0`.
    """

    def get(space: str) -> int | None:
        rows = store.hget(keys.safe_batches, f"{space} {device}")
        return int(rows) if rows else None

    def put(space: str, rows: int) -> None:
        store.hset(keys.safe_batches, f"{space} {device}", rows)
        store.expire(keys.safe_batches, SAFE_BATCHES_KEPT_S)

    return Sizes(get=get, put=put)
