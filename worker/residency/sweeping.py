"""A sweep of this worker: what is known of it goes in, the moves that were made come out."""

import logging
import time

from api_client.wire.errors import ClipyardError, DeviceLost
from api_client.wire.messages import Cause

from ..backends.base import Tier
from ..runtime import Runtime
from . import usage
from .sweeps import SWEEPS, Move, Sweep, View, preload
from .sweeps import sweep as decide

__all__ = ["foresee", "reason_to_recycle", "sweep", "view"]

log = logging.getLogger(__name__)

GB = 1e9
LEFT_ALONE_S = 1800.0  # longer keeps an hour's model away for its whole hour (see the benchmark)


def sweep(here: Runtime, *, which: tuple[Sweep, ...] = SWEEPS, asked_by: str) -> list[Move]:
    """Carries out what some sweeps decide, on models that nobody uses meanwhile."""
    return here.slots.apply(decide(view(here), which=which), asked_by=asked_by)


def view(here: Runtime) -> View:
    """What a sweep may know, by the settings that hold now."""
    settings, slots = here.tracker.settings, here.slots.view()
    device = here.memory.device()
    return View(
        slots=slots,
        now=time.monotonic(),
        unified=device is None,
        own={slot.model_id: here.tracker.timeouts(slot) for slot in slots},
        device=device,
        host=here.memory.host(),
        pressure=here.tracker.pressure(),
        pressure_threshold=settings.pressure_threshold,
        pressure_timeout_s=settings.pressure_timeout_s,
    )


def foresee(here: Runtime) -> str | None:
    """Brings the model most likely wanted next, where that costs nobody anything; gives its id.

    One that has just gone is not brought back at once: if it went, there was a reason.
    """
    if not here.tracker.settings.foresight:
        return None
    been = here.tracker.been_here(within_s=LEFT_ALONE_S)
    histograms = {
        entry.id: usage.histogram(here.redis, here.keys, entry.id) for entry in here.catalogue
    }
    wanted = [m for m in usage.wanted_next(histograms, at=time.time()) if m not in been]
    weights = {m: here.ledger[m].weights(here.catalogue[m].memory_bytes) for m in wanted}
    slots = here.slots.limits.slots
    move = preload(view(here), slots=slots, wanted=wanted, weights=weights)
    if move is None:
        return None
    entry, to = here.catalogue[move.model_id], move.to or Tier.HOST
    try:
        if here.slots.warm(entry, to=to, reason=move.reason, asked_by=Cause.FORESIGHT):
            return move.model_id
    except DeviceLost as lost:
        here.watchdog.end(str(lost))
    except ClipyardError as error:  # whoever wants it later gets the error
        log.info("%s was not brought in time: %s", move.model_id, error)
    return None


def reason_to_recycle(here: Runtime) -> str | None:
    """Why this process should end and be started afresh; None while it is in use or all is well.

    Memory that an unload does not give back is given back by the end of the process only.
    """
    bound_gb = here.settings.recycle_residue_gb
    residue = here.ledger.residue_bytes
    if bound_gb is None or residue <= bound_gb * GB or any(s.busy for s in here.slots.view()):
        return None
    return f"{residue / GB:.1f} GB stayed behind after unloads, {bound_gb:g} GB are allowed"
