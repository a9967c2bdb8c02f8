"""What past use says about the next: whom to warm up, and how long to keep whom. Pure functions."""

from collections.abc import Mapping, Sequence

from .backends.base import Footprint, Tier
from .memory import BEGINS, Bytes, Pressure
from .sweeps import Move, SlotView, View

__all__ = ["adapted_timeout", "likely_next", "preload"]

LEAST_USES = 3  # in these hours, before they count as a habit
LEAST_SHARE = 0.2  # of all uses in these hours, before a model is warmed up
LEAST_PAUSES = 5  # before a model's own timeout is believed
MARGIN = 1.1  # a model comes back a little later than it used to


def likely_next(uses: Mapping[str, Sequence[int]], *, hour: int) -> dict[str, float]:
    """Each model's share of all uses in this hour and the next, where there were enough.

    Args:
        uses: model id -> uses in each hour of a day or a week.
        hour: index of the present one.
    """
    near = {model_id: row[hour] + row[(hour + 1) % len(row)] for model_id, row in uses.items()}
    total = sum(near.values())
    return {model_id: n / total for model_id, n in near.items() if n} if total >= LEAST_USES else {}


def preload(
    view: View, *, slots: int, likely: Mapping[str, float], weights: Mapping[str, Footprint]
) -> list[Move]:
    """At most one move up, for `Slots.warm`: the likeliest model that is not up yet.

    Only while nobody uses the worker and memory is plentiful, now and with that model; into a free
    slot of the device, else into host memory. Nobody ever leaves for it.

    Args:
        slots: models that the device may hold.
        likely: model id -> share of the uses to come, see `likely_next`.
        weights: what each takes; a model that is not listed is left alone.
    """
    if view.pressure is not Pressure.NORMAL or any(slot.busy for slot in view.slots):
        return []
    here = {slot.model_id: slot for slot in view.slots}
    has_seat = sum(slot.tier is Tier.DEVICE for slot in view.slots) < slots
    for model_id in sorted(likely.keys() & weights.keys(), key=lambda m: (-likely[m], m)):
        tier = _up(view, here.get(model_id), weights[model_id], has_seat=has_seat)
        if likely[model_id] >= LEAST_SHARE and tier is not None:
            return [Move(model_id, tier, f"{likely[model_id]:.0%} of the uses at this hour")]
    return []


def _up(view: View, slot: SlotView | None, weight: Footprint, *, has_seat: bool) -> Tier | None:
    if slot is not None:
        # One that is here and idle was sent down for that: only a new hour lifts it again.
        is_stale = slot.tier is Tier.HOST and view.idle_s(slot) > 3600
        fits = has_seat and _is_plenty(view.device, weight.device_bytes)
        return Tier.DEVICE if is_stale and fits else None
    if not _is_plenty(view.host, weight.host_bytes):
        return None
    if has_seat and (view.unified or _is_plenty(view.device, weight.device_bytes)):
        return Tier.DEVICE
    return None if view.unified else Tier.HOST


def _is_plenty(memory: Bytes | None, more: int) -> bool:
    if memory is None:
        return True
    return memory.total - memory.free + more < BEGINS[Pressure.ELEVATED] * memory.total


def adapted_timeout(
    pauses_s: Sequence[float], *, fixed_s: float, least_s: float, most_s: float
) -> float:
    """How long to keep one model idle, given the pauses between its uses so far.

    Of the timeouts that would have caught one pause more, the one that would have cost least: a
    second of holding counts one, a load counts `most_s`, as no model is worth holding for longer
    than that (the ski-rental argument, with the pauses seen as their own forecast). So a model that
    always comes back after eleven minutes is kept for twelve, and one that stays away for hours is
    let go early.

    Args:
        fixed_s: what holds until enough pauses have been seen.
        least_s, most_s: bounds of the answer.
    """
    if len(pauses_s) < LEAST_PAUSES:
        return fixed_s
    candidates = {least_s, *(min(max(p * MARGIN, least_s), most_s) for p in pauses_s)}
    return min(sorted(candidates), key=lambda timeout_s: _cost(timeout_s, pauses_s, most_s))


def _cost(timeout_s: float, pauses_s: Sequence[float], load_cost_s: float) -> float:
    return sum(p if p <= timeout_s else timeout_s + load_cost_s for p in pauses_s)
