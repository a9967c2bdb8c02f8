"""What to let go, and when. Each sweep is a pure function: a view in, moves out."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ..backends.base import Footprint, Tier, Traits
from .memory import BEGINS, Bytes, Pressure

__all__ = [
    "SWEEPS",
    "Move",
    "SlotView",
    "Sweep",
    "Timeouts",
    "View",
    "idle_in_ram",
    "idle_in_vram",
    "kept_alive",
    "preload",
    "sweep",
    "under_pressure",
]


@dataclass(frozen=True)
class Move:
    """Take a model to another tier; `to=None` lets it go.

    Attributes:
        reason: for the event stream, e.g. `idle in VRAM for 612 s`.
        used_at: when the decision saw the model used last; used since, it stays. None moves it
            all the same.
    """

    model_id: str
    to: Tier | None
    reason: str
    used_at: float | None = None


@dataclass(frozen=True)
class SlotView:
    """One model of a process, at one moment. Times are of the slots' clock, in seconds.

    Attributes:
        tier: where it is; None while it is being loaded.
        busy: leased, waited for or on the move: nobody may move it now.
        footprint: bytes it takes now, by tier.
        keep_alive_s: asked for by a request: None follows the timeouts, negative stays.
        next_out: whether it is what the next newcomer would push off the device.
        traits: None while it is being loaded.
    """

    model_id: str
    is_vision: bool
    tier: Tier | None
    busy: bool
    leases: int
    footprint: Footprint
    used_at: float
    loaded_at: float
    load_s: float
    keep_alive_s: float | None
    pinned: bool
    next_out: bool
    traits: Traits | None


@dataclass(frozen=True)
class Timeouts:
    """How long a model may be idle on the device, and in host memory."""

    vram_s: float = 600.0
    ram_s: float = 1800.0


@dataclass(frozen=True)
class View:
    """All that a sweep may know.

    Attributes:
        slots: least recently used first.
        now: of the slots' clock.
        unified: device and host are one memory, and only `ram_s` applies.
        own: timeouts of each model, by id.
        device, host: memory now; None cannot be told, or is the other one.
        pressure: of the fuller one.
        pressure_threshold: used fraction of a memory above which idle models leave it.
        pressure_timeout_s: those idle for longer leave, or all of them at critical pressure.
    """

    slots: tuple[SlotView, ...]
    now: float
    unified: bool = False
    own: Mapping[str, Timeouts] = field(default_factory=dict)
    device: Bytes | None = None
    host: Bytes | None = None
    pressure: Pressure = Pressure.NORMAL
    pressure_threshold: float = 0.8
    pressure_timeout_s: float = 60.0

    def movable(self, tier: Tier) -> list[SlotView]:
        """The idle ones there; a pinned model leaves only by an explicit unload."""
        return [s for s in self.slots if s.tier is tier and not s.busy and not s.pinned]

    def idle_s(self, slot: SlotView) -> float:
        return self.now - slot.used_at

    def timeouts(self, slot: SlotView) -> Timeouts:
        return self.own.get(slot.model_id, Timeouts())


def kept_alive(view: View) -> list[Move]:
    """Those go whose requests said for how long they should stay."""
    return [
        Move(slot.model_id, None, f"idle for longer than its keep_alive {slot.keep_alive_s:g} s")
        for tier in Tier
        for slot in view.movable(tier)
        if slot.keep_alive_s is not None and 0 <= slot.keep_alive_s < view.idle_s(slot)
    ]


def idle_in_vram(view: View) -> list[Move]:
    """Down to host memory; a keep_alive stands in for the timeout."""
    if view.unified:
        return []
    return [
        Move(slot.model_id, Tier.HOST, f"idle in VRAM for {view.idle_s(slot):.0f} s")
        for slot in view.movable(Tier.DEVICE)
        if slot.keep_alive_s is None and view.idle_s(slot) > view.timeouts(slot).vram_s
    ]


def idle_in_ram(view: View) -> list[Move]:
    """Gone; a keep_alive stands in for the timeout."""
    return [
        Move(slot.model_id, None, f"idle in RAM for {view.idle_s(slot):.0f} s")
        for slot in view.movable(Tier.DEVICE if view.unified else Tier.HOST)
        if slot.keep_alive_s is None and view.idle_s(slot) > view.timeouts(slot).ram_s
    ]


def under_pressure(view: View) -> list[Move]:
    """Idle longest first, out of each memory that is too full, until it is so no more.

    Whatever asked for it, a keep_alive does not hold against this; a pin does.
    """
    if view.unified:
        return _relieve(view, view.host, Tier.DEVICE, None)
    too_full = view.host is not None and view.host.used_fraction > view.pressure_threshold
    return [
        *_relieve(view, view.host, Tier.HOST, None),
        *_relieve(view, view.device, Tier.DEVICE, None if too_full else Tier.HOST),
    ]


def _relieve(view: View, memory: Bytes | None, tier: Tier, to: Tier | None) -> list[Move]:
    if memory is None:
        return []
    is_critical = view.pressure is Pressure.CRITICAL
    is_full = is_critical and memory.used_fraction >= BEGINS[Pressure.CRITICAL]
    excess = memory.total - memory.free - view.pressure_threshold * memory.total
    where = "VRAM" if tier is Tier.DEVICE and not view.unified else "RAM"
    reason = f"{view.pressure} pressure: {memory.used_fraction:.0%} of {where} used"
    moves: list[Move] = []
    if excess <= 0 and not is_full:  # the threshold may lie above
        return moves
    for slot in sorted(view.movable(tier), key=lambda slot: slot.used_at):
        if is_critical or (excess > 0 and view.idle_s(slot) > view.pressure_timeout_s):
            moves.append(Move(slot.model_id, to, f"{reason}, idle for {view.idle_s(slot):.0f} s"))
            held = slot.footprint
            excess -= held.device_bytes if where == "VRAM" else held.host_bytes
    return moves


Sweep = Callable[[View], list[Move]]
SWEEPS: tuple[Sweep, ...] = (kept_alive, under_pressure, idle_in_vram, idle_in_ram)


def sweep(view: View, *, which: Iterable[Sweep] = SWEEPS) -> list[Move]:
    """The moves of several sweeps, one for each model: the earlier sweep's."""
    used_at = {slot.model_id: slot.used_at for slot in view.slots}
    moves: dict[str, Move] = {}
    for decide in which:
        for move in decide(view):
            moves.setdefault(move.model_id, move)
    return [replace(move, used_at=used_at[move.model_id]) for move in moves.values()]


def preload(
    view: View, *, slots: int, wanted: Sequence[str], weights: Mapping[str, Footprint]
) -> Move | None:
    """A move up, for `Slots.warm`: the first model wanted that is not here yet.

    Only while nobody uses the worker and memory is plentiful, now and with that model; onto a free
    place of the device, else into host memory. Nobody ever leaves for it.

    Args:
        slots: models that the device may hold.
        wanted: the likeliest to be wanted next comes first.
        weights: what each would take; one that is not listed is left alone.
    """
    here = {slot.model_id for slot in view.slots}
    if view.pressure is not Pressure.NORMAL or any(slot.busy for slot in view.slots):
        return None
    has_place = sum(slot.tier is Tier.DEVICE for slot in view.slots) < slots
    for model_id in wanted:
        weight = weights.get(model_id)
        if weight is None or model_id in here or not _is_plenty(view.host, weight.host_bytes):
            continue
        if has_place and _is_plenty(view.device, weight.device_bytes):
            return Move(model_id, Tier.DEVICE, "likely to be wanted next")
        if not view.unified:
            return Move(model_id, Tier.HOST, "likely to be wanted next")
    return None


def _is_plenty(memory: Bytes | None, more: int) -> bool:
    if memory is None:
        return True
    return memory.total - memory.free + more < BEGINS[Pressure.ELEVATED] * memory.total
