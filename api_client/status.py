"""The fleet as its status hashes tell it: who lives, and what each one holds."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice, repeat
from operator import methodcaller
from typing import Any, Literal, TypeVar, get_args

import redis
from pydantic import Field

from .steps import Talk, each, taken
from .vigil import NOBODY
from .wire import names
from .wire.codec import none_of_ours, text, unpack_record
from .wire.errors import ClipyardError, NoWorker
from .wire.messages import (
    Event,
    EventKind,
    Message,
    ModelStatus,
    Pressure,
    Priority,
    WorkerStatus,
)

__all__ = [
    "Depth",
    "Fleet",
    "StepDown",
    "Worker",
    "alarms",
    "fleet_talk",
    "read_fleet",
    "step_down",
    "sweep_is_missing",
]

EVENTS = 200  # of the tail of the stream
STEPS = (names.INTERACTIVE, names.BULK)
PRESSURES: tuple[Pressure, ...] = get_args(Pressure)  # rising
_KINDS = {form for kind in EventKind for form in (f'"{kind}"', f'"{kind}"'.encode())}
# What one whose clock is behind sends has expired, and no log has a line of it.
START_BEAT = "start `celery -A beat_schedule beat`; where it runs, set its machine's clock"
SWEEPS_MISSED = 2.5  # intervals without a sweep, before we call the beat missing

_Record = TypeVar("_Record", bound=Message)


class Worker(WorkerStatus):
    """One live worker and the models it holds, least recently used first."""

    held: tuple[ModelStatus, ...] = ()


class Depth(Message):
    """Messages that wait in one queue, by priority step; those in work are not counted.

    Attributes:
        interactive_since, bulk_since: when the one that has waited longest was sent, in unix
            seconds; None where none waits, or the clock sent it.
    """

    interactive: int = 0
    bulk: int = 0
    interactive_since: float | None = None
    bulk_since: float | None = None

    def ages_s(self, now: float) -> dict[Priority, float]:
        """Of the oldest of each step, 0 where there is none."""
        since = {Priority.INTERACTIVE: self.interactive_since, Priority.BULK: self.bulk_since}
        return {step: max(0.0, now - at) if at else 0.0 for step, at in since.items()}


class Fleet(Message):
    """One look at everything.

    Attributes:
        workers: those alive, by name.
        current: the model for requests that name none.
        depths: of the common queues and every live worker's direct one.
        events: newest first.
        strange: a sentence on each key whose content is none of ours, and left out.
    """

    workers: tuple[Worker, ...] = ()
    current: str | None = None
    depths: dict[str, Depth] = Field(default_factory=dict)
    events: tuple[Event, ...] = ()
    strange: tuple[str, ...] = ()

    @property
    def pressure(self) -> Pressure:
        """How short memory is on the worker where it is shortest."""
        return max((w.pressure for w in self.workers), key=PRESSURES.index, default="normal")

    def answering(self) -> str:
        """The model that answers when none is named.

        Raises:
            NoWorker: none has been named, and no worker is alive to say which.
        """
        if self.current:
            return self.current
        if not self.workers:
            raise NoWorker(NOBODY)
        return self.workers[0].current or self.workers[0].default

    @property
    def in_memory(self) -> list[tuple[Worker, ModelStatus]]:
        """Every model in memory; what is only on its way there may yet fail."""
        return [(w, model) for w in self.workers for model in w.held if model.state != "loading"]

    def holding(self, model_id: str) -> list[tuple[Worker, ModelStatus]]:
        """Where a model is in memory, or on its way there."""
        return [
            (worker, model)
            for worker in self.workers
            for model in worker.held
            if model.id == model_id
        ]

    def tells_of(self, model_id: str) -> bool:
        """Whether a model is in memory, or was as far as the events reach back."""
        return bool(self.holding(model_id)) or any(e.model == model_id for e in self.events)


def read_fleet(store: redis.Redis, keys: names.Keys, *, events: int = EVENTS) -> Fleet:
    """What the workers have said of themselves; at most one heart-beat old.

    Raises:
        redis.ConnectionError: Redis is away.
    """
    return taken(fleet_talk(keys, events=events), lambda step: step(store))


def fleet_talk(keys: names.Keys, *, events: int = EVENTS) -> Talk[Fleet]:
    """`read_fleet` for the waiting and the awaiting client; four round trips."""
    ours = _Ours()
    seen, current, tail = yield from each(
        methodcaller("smembers", keys.workers),
        methodcaller("get", keys.current),
        methodcaller("xrevrange", keys.events, "+", "-", events),
    )
    members = sorted(map(text, ours.of_its_type(keys.workers, "a set", seen) or ()))
    places = [keys.worker(name) for name in members]
    hashes = yield from each(*(methodcaller("hgetall", place) for place in places))
    alive = list(ours.records(WorkerStatus, zip(places, hashes, strict=True)))
    pairs = [(worker.name, model_id) for worker in alive for model_id in worker.models]
    models = yield from each(*(methodcaller("hgetall", keys.model(*pair)) for pair in pairs))
    held = {
        pair: model
        for pair, fields in zip(pairs, models, strict=True)
        for model in ours.records(ModelStatus, [(keys.model(*pair), fields)])
    }
    queues = [names.EMBED, names.CONTROL, *(names.direct_queue(worker.name) for worker in alive)]
    steps = [keys.queue(queue, step) for queue in queues for step in STEPS]
    looks = ((methodcaller("llen", step), methodcaller("lrange", step, -1, -1)) for step in steps)
    found = yield from each(*chain.from_iterable(looks))
    twice = chain.from_iterable((step, step) for step in steps)
    waiting = iter([ours.of_its_type(*one) for one in zip(twice, repeat("a list"), found)])
    said = ours.of_its_type(keys.current, "a string", current)
    rows = ours.of_its_type(keys.events, "a stream", tail) or ()
    happened = tuple(
        ours.records(Event, ((keys.events, fields) for _, fields in rows if _is_known(fields)))
    )
    return Fleet(
        workers=tuple(_with_models(worker, held) for worker in alive),
        current=text(said) if said else None,
        depths={queue: _depth(waiting) for queue in queues},
        events=happened,
        strange=tuple(ours.strange.values()),
    )


def _is_known(event: Mapping[Any, Any]) -> bool:
    """Whether its kind is one of this version's, if it has one: workers are updated first."""
    kind = event.get(b"kind", event.get("kind"))
    return kind is None or kind in _KINDS


class _Ours:
    """What Redis holds, as ours; what is none costs itself alone, and is told.

    Attributes:
        strange: a sentence for each key.
    """

    def __init__(self) -> None:
        self.strange: dict[str, str] = {}

    def records(self, kind: type[_Record], found: Iterable[tuple[str, Any]]) -> Iterator[_Record]:
        """Those that there are, of keys and what is there."""
        for key, fields in found:
            if told := self.of_its_type(key, f"a {kind.__name__}", fields):
                try:
                    yield unpack_record(kind, told)
                except ClipyardError as error:
                    self._note(key, error)

    def of_its_type(self, key: str, what: str, found: Any) -> Any:
        if not isinstance(found, redis.ResponseError):
            return found
        self._note(key, none_of_ours(what, str(found)))
        return None

    def _note(self, key: str, error: ClipyardError) -> None:
        self.strange[key] = f"{key!r}: {error}"


def _depth(found: Iterator[Any]) -> Depth:
    """Of each step of one queue: its length, and the message that comes out next."""
    interactive, first, bulk, first_bulk = islice(found, 2 * len(STEPS))
    return Depth(
        interactive=interactive or 0,
        bulk=bulk or 0,
        interactive_since=_sent_at(first),
        bulk_since=_sent_at(first_bulk),
    )


def _sent_at(frames: list[bytes] | None) -> float | None:
    try:
        return float(json.loads((frames or [])[0])["headers"][names.SENT_AT])
    except (IndexError, OverflowError, ValueError, KeyError, TypeError, RecursionError):
        return None  # nobody's, the clock's, or a stranger's


@dataclass(frozen=True)
class StepDown:
    """Where an unused model goes next, and when, in unix seconds: the past is the next sweep."""

    to: Literal["host", "nowhere"]
    at: float


def step_down(worker: Worker, model: ModelStatus) -> StepDown | None:
    """What the sweeps will do with a model if nobody asks for it; None: they let it be."""
    kept = model.keep_alive_s is not None and model.keep_alive_s < 0
    if model.pinned or model.leases or model.state == "loading" or kept:
        return None
    if model.keep_alive_s is not None:
        return StepDown("nowhere", model.last_used + model.keep_alive_s)
    if model.state == "device" and worker.device_total:  # else that is host memory
        return StepDown("host", model.last_used + model.vram_timeout_s)
    return StepDown("nowhere", model.last_used + model.ram_timeout_s)


def sweep_is_missing(worker: WorkerStatus, *, now: float) -> bool:
    """Whether the beat should have reached a worker by now and has not."""
    if worker.sweep_interval_s is None:
        return False
    since = max(worker.last_sweep_at, worker.started_at)
    return now - since > SWEEPS_MISSED * worker.sweep_interval_s


def alarms(fleet: Fleet, *, now: float) -> list[str]:
    """Sentences on what keeps the fleet from serving, or from letting go; none when all is well."""
    if not fleet.workers:
        return [f"{NOBODY.capitalize()}.", *fleet.strange]
    told = [*fleet.strange]
    told += [f"{w.name} is broken: {w.trouble}" for w in fleet.workers if w.state == "broken"]
    if unswept := [w.name for w in fleet.workers if sweep_is_missing(w, now=now)]:
        told.append(
            f"The beat is missing: no sweep of {', '.join(unswept)} for more than {SWEEPS_MISSED} "
            f"intervals, and idle models stay: {START_BEAT}."
        )
    return told


def _with_models(worker: WorkerStatus, held: dict[tuple[str, str], ModelStatus]) -> Worker:
    mine = [held[pair] for m in worker.models if (pair := (worker.name, m)) in held]
    return Worker(**dict(worker), held=tuple(mine))
