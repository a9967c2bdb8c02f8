"""What this process is asked for and holds, told to Redis: status hashes, events, usage.

One thread writes, every few seconds and at once after an event. Nobody else ever waits for Redis
here: a lease, a load or a forward pass only leaves a note in memory. While Redis is away the notes
are kept, the newest of them at least, and written when it is back.

One class, though long: notes and status go out in one transaction, under one lock.
"""

import json
import logging
import os
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Literal

import redis
from pydantic_core import from_json
from redis.typing import EncodableT, FieldT

from api_client.wire.codec import pack_record, text, unpack_record
from api_client.wire.errors import ClipyardError
from api_client.wire.messages import Complaint, Event, Knobs, ModelStatus, WorkerState, WorkerStatus
from api_client.wire.names import STATUS_EXPIRES_S, Keys

from .backends.base import Tier
from .catalogue import Entry
from .housekeeping import state_of
from .residency import usage
from .residency.ledger import Ledger
from .residency.memory import Bytes, Memory, Pressure, PressureGauge
from .residency.slots import Slots
from .residency.sweeps import SlotView, Timeouts
from .residency.usage import Use
from .settings import WorkerSettings

__all__ = ["Tracker"]

log = logging.getLogger(__name__)

BEAT_S = 5.0
SEEN_KEPT = 1024  # models; the refusal of a mistyped one is an event too
EVENTS_UNSENT = 1000  # kept while Redis is away
EVENTS_KEPT = 10_000  # in the stream, about
WILL_KEPT_S = 30 * 24 * 3600
CLOSE_WITHIN_S = 5.0


class Tracker:
    """Takes notes from all threads; its own thread writes them.

    Args:
        store: where the status goes; its patience is how long the writer hangs on each try.
        node: this worker's name.
        settings: as the environment says; `change` puts others in their place.
        device: what the worker runs on.
        beat_s, expiry_s: of the status hashes.
        clock: unix seconds.
        ticks: the slots' clock.

    Attributes:
        versions: of the packages that a person asks for first when something is odd.
        started_at: of this process, in unix seconds: with the node's name, what tells it from the
            last.
        has_company: whether another worker was of use, when this one last had no model that was
            ready.
    """

    def __init__(
        self,
        store: redis.Redis,
        keys: Keys,
        *,
        node: str,
        settings: WorkerSettings,
        device: str,
        versions: Mapping[str, str] | None = None,
        beat_s: float = BEAT_S,
        expiry_s: int = STATUS_EXPIRES_S,
        clock: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._keys = store, keys
        self._node, self._device, self.versions = node, device, dict(versions or {})
        self._beat_s, self._expiry_s = beat_s, expiry_s
        self._clock, self._ticks = clock, ticks
        self.started_at = clock()
        self._environment = settings
        self._lock = threading.Lock()  # of the notes
        self._writing = threading.Lock()  # two writers would tell an event twice
        self._knobs = Knobs()
        self._own: str | None = None  # the model that this worker alone was switched to
        self._fleet: str | None = None  # the fleet's current model, as far as it was heard of
        self._will_is_old = False  # what was heard of that has not been left to the successor yet
        self._state: WorkerState = "starting"
        self._trouble = self._namesake = ""
        self._swept_at = 0.0
        self._complaints: tuple[Complaint, ...] = ()
        self._seen_at: dict[str, float] = {}
        self._uses: dict[str, Use] = defaultdict(Use)
        self._hours: Counter[tuple[str, int]] = Counter()
        self._events: deque[Event] = deque(maxlen=EVENTS_UNSENT)
        self._shown: set[str] = set()  # models with a hash of this process's
        self.has_company = False
        self._gauge = PressureGauge()
        self._redis_away = False
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="tracker", daemon=True)

    # Notes, from any thread.

    def on_event(self, event: Event) -> None:
        """Something happened to a model; it is written soon."""
        at = event.at or self._clock()
        with self._lock:
            self._seen_at.pop(event.model, None)
            self._seen_at[event.model] = at
            if len(self._seen_at) > SEEN_KEPT:
                del self._seen_at[next(iter(self._seen_at))]
            self._events.append(event.model_copy(update={"worker": self._node, "at": at}))
        self._wake.set()

    def used(self, entry: Entry) -> None:
        """A model has answered a request."""
        now = self._clock()
        with self._lock:
            self._uses[entry.id].add(now)
            self._hours[entry.id, usage.hour_of_week(now)] += 1

    def say(self, state: WorkerState, *, trouble: str = "") -> None:
        """How the worker is; `trouble` is a sentence for people."""
        with self._lock:
            self._state, self._trouble = state, trouble
        self._wake.set()

    def complain(self, found: tuple[Complaint, ...]) -> None:
        """What is wrong around this worker now."""
        self._complaints = found

    @property
    def state(self) -> WorkerState:
        """What was said last."""
        return self._state

    @property
    def swept_at(self) -> float:
        """When the last sweep came, in unix seconds; before the first, when this worker started."""
        return self._swept_at or self.started_at

    def swept(self) -> float:
        """A sweep has just looked at this worker; gives how long after the one before, in s."""
        with self._lock:
            before, self._swept_at = self.swept_at, self._clock()
        return self._swept_at - before

    def show_soon(self) -> None:
        """Something is worth a look before the next beat, e.g. that a load has begun."""
        self._wake.set()

    def pressure(self) -> Pressure:
        """How full the fuller one of device and host memory is now."""
        return self._gauge.read(self._memory.host(), self.device_memory())

    def device_memory(self) -> Bytes | None:
        """None as well of a device that is lost: the worker has to say that it ends over it."""
        try:
            return self._memory.device()
        except RuntimeError:
            return None

    # What the sweeps ask.

    def timeouts(self, slot: SlotView) -> Timeouts:
        """Of one model, by the settings and, where they allow it, by its own pauses."""
        settings = self.settings
        timeouts = Timeouts(settings.text_vram_timeout_s, settings.text_ram_timeout_s)
        if slot.is_vision:
            timeouts = Timeouts(settings.vision_vram_timeout_s, settings.vision_ram_timeout_s)
        if not settings.adaptive_timeouts:
            return timeouts
        with self._lock:
            pauses_s = tuple(self._uses[slot.model_id].pauses_s)
        return usage.adapted(timeouts, pauses_s, most=settings.adaptive_timeouts_most)

    def been_here(self, *, within_s: float) -> set[str]:
        """Models of which anything was heard so recently, be it that they were refused."""
        since = self._clock() - within_s
        with self._lock:
            return {model_id for model_id, at in self._seen_at.items() if at > since}

    # What can change at run time.

    @property
    def settings(self) -> WorkerSettings:
        """What holds now: the environment's, with what `change` has put in their place."""
        return self._environment.model_copy(update=self._knobs.model_dump(exclude_none=True))

    def change(self, knobs: Knobs) -> None:
        """Those given take effect now and, with `resume`, in the next process of this name. Until
        that is kept, nothing has changed."""
        given = knobs.model_dump(exclude_none=True)
        with self._writing, self._store.pipeline() as pipe:
            changed = self._knobs.model_copy(update=given)
            self._leave(pipe, {"knobs": changed.model_dump_json(exclude_none=True)})
            pipe.execute()
            self._knobs = changed
        self._wake.set()

    def current(self) -> str:
        """The model that answers requests which name none: this worker's own, else the fleet's."""
        return self._own or self._fleet or self._environment.default_model

    def make_current(self, model_id: str, *, reach: Literal["worker", "fleet"]) -> None:
        """For this worker, or for clients and workers to come as well. Returns once it is kept;
        until then nothing has changed, so a switch that finds Redis away can be done again."""
        # Else a beat under way could bring back the one before.
        with self._writing, self._store.pipeline() as pipe:
            own, fleet = (model_id, self._fleet) if reach == "worker" else (None, model_id)
            if reach == "fleet":
                pipe.set(self._keys.current, model_id, ex=self._expiry_s)
            self._leave(pipe, {"current": own or "", "fleet": fleet or ""})
            pipe.execute()
            self._own, self._fleet = own, fleet
        self._wake.set()

    def resume(self) -> None:
        """Take up the current model and the changed settings of the last process of this name.

        Does nothing unless the settings say so, or when Redis is away: a worker that starts is
        worth more than one that remembers.
        """
        if not self._environment.resume:
            return
        try:
            will = self._store.hgetall(self._keys.will(self._node))
            # A newer worker's may have more.
            self._knobs = Knobs.model_validate_json(will.get(b"knobs", b"{}"), extra="ignore")
        except (redis.RedisError, ValueError) as error:
            log.warning("starting without what the last %s left: %s", self._node, error)
            return
        kept = self._knobs.model_dump(mode="json", exclude_none=True)
        was = self._environment.model_dump(mode="json")
        changed = [f"{name} {json.dumps(kept[name])}" for name in kept if kept[name] != was[name]]
        if changed:  # which wins over the environment
            log.info("as `clipyard set` left the last %s: %s", self._node, ", ".join(changed))
        self._own = text(will.get(b"current", b"")) or None
        self._fleet = text(will.get(b"fleet", b"")) or None

    def _leave(self, pipe: "redis.client.Pipeline", fields: Mapping[FieldT, EncodableT]) -> None:
        pipe.hset(self._keys.will(self._node), mapping=fields)
        pipe.expire(self._keys.will(self._node), WILL_KEPT_S)

    # The writer.

    def attach(
        self,
        slots: Slots,
        memory: Memory,
        ledger: Ledger,
        *,
        renew: Callable[[], None] = lambda: None,
    ) -> None:
        """What to look at from now on; the slots are made with `on_event`, so they come second.

        Args:
            renew: called at every beat, e.g. `Reservations.renew`.
        """
        self._slots, self._memory, self._ledger, self._renew = slots, memory, ledger, renew

    def start(self) -> None:
        """Show this worker until `close`, after `attach`."""
        self._thread.start()

    def beat(self) -> None:
        """Write everything that was noted, and the status as it is now."""
        self._write(self._put_status)

    def close(self) -> None:
        """Write the last events and take this worker off the list; bounded if Redis is away."""
        self._stop.set()
        self._wake.set()
        self._thread.join(CLOSE_WITHIN_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.beat()
            self._wake.wait(self._beat_s)
            self._wake.clear()
        self.say("stopping")
        self._write(self._put_farewell)

    def _write(self, put: Callable[["redis.client.Pipeline"], None]) -> None:
        """In one transaction with the notes; what cannot be written stays noted."""
        with self._writing:
            self._write_alone(put)

    def _write_alone(self, put: Callable[["redis.client.Pipeline"], None]) -> None:
        with self._lock:
            events, hours = list(self._events), self._hours
            self._hours = Counter()
        try:
            self._renew()
            with self._store.pipeline() as pipe:
                for event in events:
                    fields = pack_record(event)
                    pipe.xadd(self._keys.events, fields, maxlen=EVENTS_KEPT, approximate=True)
                usage.record(pipe, self._keys, hours)
                put(pipe)
                if self._will_is_old:
                    self._leave(pipe, {"fleet": self._fleet or ""})
                pipe.execute()
        except Exception as error:  # the fleet must not lose sight of a worker over one bad beat
            self._keep(hours, error)
            return
        self._will_is_old = False
        with self._lock:
            for event in events:
                if self._events and self._events[0] is event:
                    self._events.popleft()
        if self._redis_away:
            log.info("the status is shown again")
        self._redis_away = False

    def _keep(self, hours: Counter[tuple[str, int]], error: Exception) -> None:
        with self._lock:
            self._hours += hours
        if not self._redis_away:
            expected = isinstance(error, redis.RedisError)
            log.warning("the status is not shown: %s", error, exc_info=not expected)
        self._redis_away = True

    def _put_status(self, pipe: "redis.client.Pipeline") -> None:
        if told := text(self._store.get(self._keys.current) or b""):
            if told != (self._fleet or self._environment.default_model):
                self._will_is_old = True
            self._fleet = told
        view = self._slots.view()
        if not any(slot.tier is Tier.DEVICE for slot in view):
            self.has_company = any(map(self._is_company, self._others()))
        self._namesake = self._namesake_trouble()
        settings = self.settings
        for slot in view:
            key = self._keys.model(self._node, slot.model_id)
            pipe.hset(key, mapping=pack_record(self._model(slot)))
            pipe.expire(key, self._expiry_s)
        held = {slot.model_id for slot in view}
        # Once gone, deleted at every beat: a beat that did not get through loses nothing.
        for gone in self._shown - held:
            pipe.delete(self._keys.model(self._node, gone))
        self._shown |= held
        pipe.hset(self._keys.worker(self._node), mapping=pack_record(self._worker(view, settings)))
        pipe.expire(self._keys.worker(self._node), self._expiry_s)
        pipe.sadd(self._keys.workers, self._node)
        # The fleet's current model lives as long as anybody who could answer with it, and comes
        # back after a Redis that was away for longer, or that lost it.
        fleet = self._fleet or settings.default_model
        pipe.set(self._keys.current, fleet, nx=True, ex=self._expiry_s)
        pipe.expire(self._keys.current, self._expiry_s)

    def _put_farewell(self, pipe: "redis.client.Pipeline") -> None:
        is_last = not any(self._store.exists(self._keys.worker(name)) for name in self._others())
        pipe.srem(self._keys.workers, self._node)
        pipe.delete(
            self._keys.worker(self._node),
            *(self._keys.model(self._node, model_id) for model_id in self._shown),
            *([self._keys.current] if is_last else []),
        )

    def _others(self) -> set[str]:
        """Those who are gone as well, until somebody tidies up."""
        return set(map(text, self._store.smembers(self._keys.workers))) - {self._node}

    def _namesake_trouble(self) -> str:
        """Whoever has shown itself under this name since this process began is no predecessor."""
        try:
            shown = unpack_record(WorkerStatus, self._store.hgetall(self._keys.worker(self._node)))
        except ClipyardError:  # nobody, or a stranger
            return ""
        if shown.started_at == self.started_at or shown.beat_at <= self.started_at:
            return ""
        return (
            f"another process is called {self._node} too, and takes its messages: give each worker "
            "a name of its own (celery's -n)"
        )

    def _is_company(self, name: str) -> bool:
        """It is ready, and does not bring its first model either: then each would leave all that
        comes to the other, for as long as both load."""
        key = self._keys.worker(name)
        if state_of(self._store, key) != "ready":
            return False
        models = self._store.hget(key, "models")  # one by one, as the ACL lets a worker
        keys = [self._keys.model(name, one) for one in from_json(models or "[]")]
        held = [state_of(self._store, key) for key in keys]
        return "device" in held or "loading" not in held

    def _model(self, slot: SlotView) -> ModelStatus:
        now, ticks, timeouts = self._clock(), self._ticks(), self.timeouts(slot)
        measured = self._ledger[slot.model_id]
        with self._lock:
            uses = self._uses[slot.model_id].count
        return ModelStatus(
            id=slot.model_id,
            state="loading" if slot.tier is None else slot.tier.value,
            type="vision" if slot.is_vision else "text",
            dimension=slot.traits.dimension if slot.traits else None,
            precision=slot.traits.precision if slot.traits else "",
            fingerprint=slot.traits.fingerprint if slot.traits else "",
            leases=slot.leases,
            device_bytes=slot.footprint.device_bytes,
            host_bytes=slot.footprint.host_bytes,
            peak_batch_bytes=measured.peak_batch_bytes,
            load_s=slot.load_s,
            loaded_at=now - (ticks - slot.loaded_at),
            last_used=now - (ticks - slot.used_at),
            usage_count=uses,
            vram_timeout_s=timeouts.vram_s,
            ram_timeout_s=timeouts.ram_s,
            keep_alive_s=slot.keep_alive_s,
            pinned=slot.pinned,
            next_out=slot.next_out,
        )

    def _worker(self, view: tuple[SlotView, ...], settings: WorkerSettings) -> WorkerStatus:
        host, device = self._memory.host(), self.device_memory()
        with self._lock:
            state, trouble = self._state, self._trouble
        if state == "ready":  # of one that stops, trouble means that it drops what it has begun
            trouble = "; ".join(filter(None, (trouble, self._namesake)))
        return WorkerStatus(
            name=self._node,
            device=self._device,
            pid=os.getpid(),
            started_at=self.started_at,
            beat_at=self._clock(),
            state=state,
            current=self.current(),
            default=settings.default_model,
            models=tuple(slot.model_id for slot in view),
            slots=settings.slots,
            device_total=device.total if device else 0,
            device_free=device.free if device else 0,
            host_total=host.total,
            host_free=host.free,
            pressure=self.pressure().value,
            trouble=trouble,
            last_sweep_at=self._swept_at,
            sweep_interval_s=settings.sweep_interval_s if settings.sweeps_enabled else None,
            settings={name: str(getattr(settings, name)) for name in Knobs.model_fields},
            versions=self.versions,
            complaints=self._complaints,
        )
