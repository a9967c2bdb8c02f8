"""load, reload, switch, unload, set: what a person asks of one worker, on its direct queue.

Each is idempotent: Celery may deliver a message twice, and `answering` tries a busy model again.
"""

import json
import time
from collections.abc import Callable
from threading import Lock
from typing import Any

from api_client.wire import names
from api_client.wire.errors import BadRequest, ModelBusy
from api_client.wire.messages import Load, Managed, Reload, Set, Switch, Unload
from worker import runtime
from worker.delivery.answers import Call, answering
from worker.residency import sweeping
from worker.residency.sweeps import (
    SlotView,
    Sweep,
    idle_in_ram,
    idle_in_vram,
    kept_alive,
    under_pressure,
)

DRAIN_S = 30.0  # how long an unload waits for those who use the model
CHANGING = Lock()  # the settings and, by them, the limits


@answering(names.LOAD, Load)
def load(call: Call[Load]) -> Managed:
    here, request = runtime.here(), call.request
    entry = here.catalogue[request.model]
    changed = here.slots.load(entry, keep_alive_s=request.keep_alive_s, asked_by=request.asked_by)
    told = f"loaded {entry.id}" if changed else f"{entry.id} was on the device already"
    return _managed(call, entry.id, told, changed=changed)


@answering(names.RELOAD, Reload)
def reload(call: Call[Reload]) -> Managed:
    """What its family's check refuses, as a file that is half copied, still serves as it was."""
    here, request = runtime.here(), call.request
    entry = here.catalogue[request.model]
    here.families.check(entry)
    wait_s = min(DRAIN_S, call.left_s)
    # 0 is of a call that is over by then.
    kept = {slot.model_id: slot.keep_alive_s or None for slot in here.slots.view()}
    here.slots.unload(entry.id, reason="to be read again", asked_by=request.asked_by, wait_s=wait_s)
    here.slots.load(entry, keep_alive_s=kept.get(entry.id), asked_by=request.asked_by)
    return _managed(call, entry.id, f"loaded {entry.id} afresh", changed=True)


@answering(names.SWITCH, Switch)
def switch(call: Call[Switch]) -> Managed:
    """The new model first: if it cannot be loaded, the one before it still serves."""
    here, request = runtime.here(), call.request
    entry = here.catalogue[request.model]
    before = runtime.current_id()
    loaded = here.slots.load(entry, asked_by=request.asked_by)
    here.tracker.make_current(entry.id, reach=request.reach)
    if before == entry.id:
        told = f"{entry.id} was the current model already"
        return _managed(call, entry.id, told, changed=loaded)
    told = f"switched from {before} to {entry.id}"
    if before not in here.tracker.settings.pinned:
        reason = f"{entry.id} is the current model now"
        if _unload([before], call, reason=reason)[1]:
            told += f"; {before} is in use and stays until it is idle"
    return _managed(call, entry.id, told, changed=True)


@answering(names.UNLOAD, Unload)
def unload(call: Call[Unload]) -> Managed:
    if call.request.scope == "one":
        return _unload_one(call)
    if which := SWEEPS_OF_SCOPE.get(call.request.scope):
        return _unload_due(call, which)
    return _unload_kind(call)


def _unload_one(call: Call[Unload]) -> Managed:
    here, request = runtime.here(), call.request
    entry = here.catalogue[request.model or runtime.current_id()]
    wait_s = min(DRAIN_S, call.left_s)
    changed = here.slots.unload(
        entry.id, reason="asked for", asked_by=request.asked_by, wait_s=wait_s
    )
    told = f"unloaded {entry.id}" if changed else f"{entry.id} was not in memory"
    return _managed(call, entry.id, told, changed=changed)


def _unload_due(call: Call[Unload], which: tuple[Sweep, ...]) -> Managed:
    moved = sweeping.sweep(runtime.here(), which=which, asked_by=call.request.asked_by)
    told = "; ".join(f"{move.model_id}: {move.reason}" for move in moved) or "nothing had to go"
    return _managed(call, None, told, changed=bool(moved))


def _unload_kind(call: Call[Unload]) -> Managed:
    request = call.request
    reason = f"unload {request.family or request.scope}"
    gone, busy = _unload(_held_of(request), call, reason=reason)
    told = f"unloaded {', '.join(gone) or 'nothing'}"
    if busy:
        told += f"; still in use: {', '.join(busy)}"
    return _managed(call, None, told, changed=bool(gone))


def _held_of(request: Unload) -> list[str]:
    """
    Raises:
        BadRequest: there is no such family.
    """
    here = runtime.here()
    held = here.slots.view()
    if request.scope != "family":
        return [slot.model_id for slot in held if OF_SCOPE[request.scope](slot)]
    families = {slot.model_id: here.catalogue[slot.model_id].backend for slot in held}
    if request.family not in (known := {*here.families, *families.values()}):
        raise BadRequest(
            f"no model family {request.family!r}; there are {', '.join(sorted(known))}"
        )
    return [model_id for model_id, family in families.items() if family == request.family]


OF_SCOPE: dict[str, Callable[[SlotView], bool]] = {
    "vision": lambda slot: slot.is_vision,
    "text": lambda slot: not slot.is_vision,
    "everything": lambda slot: True,
}
SWEEPS_OF_SCOPE: dict[str, tuple[Sweep, ...]] = {
    "timeout": (kept_alive, idle_in_vram, idle_in_ram),
    "pressure": (under_pressure,),
}


@answering(names.SET, Set)
def set_(call: Call[Set]) -> Managed:
    here, knobs = runtime.here(), call.request.knobs
    if knobs.pinned is not None:  # by their ids; an unknown one is refused before anything changes
        known = tuple(here.catalogue[model].id for model in knobs.pinned)
        knobs = knobs.model_copy(update={"pinned": known})
    with CHANGING:  # of two at once the first would put its limits over the second's
        before = here.tracker.settings
        here.tracker.change(knobs)
        now = here.tracker.settings
        here.slots.limits = runtime.limits(now)
    given = knobs.model_dump(exclude_none=True)
    told = ", ".join(  # as `clipyard set` takes it
        f"{name} {json.dumps(getattr(before, name))} -> {json.dumps(given[name])}" for name in given
    )
    return _managed(call, None, told or "nothing was to be set", changed=now != before)


def _unload(
    models: list[str], call: Call[Switch] | Call[Unload], *, reason: str
) -> tuple[list[str], list[str]]:
    """Those that went and those still in use, all of them within one patience."""
    here, asked_by = runtime.here(), call.request.asked_by
    give_up_at = time.monotonic() + min(DRAIN_S, call.left_s)
    gone, busy = [], []
    for model_id in models:
        wait_s = max(0.0, give_up_at - time.monotonic())
        try:
            if here.slots.unload(model_id, reason=reason, asked_by=asked_by, wait_s=wait_s):
                gone.append(model_id)
        except ModelBusy:
            busy.append(model_id)
    return gone, busy


def _managed(call: Call[Any], model: str | None, told: str, *, changed: bool) -> Managed:
    here = runtime.here()
    here.tracker.beat()  # whoever asks for the status after the answer sees what was done
    return Managed(
        worker=here.node,
        model=model,
        changed=changed,
        message=told,
        seconds=time.monotonic() - call.begun_at,
    )
