"""A sweep of this worker: what is known of it goes in, the moves that were made come out."""

import logging
import time

from api_client.wire.errors import ClipyardError

from . import usage
from .backends.base import Tier
from .memory import Pressure
from .runtime import Runtime
from .sweeps import SWEEPS, Move, Sweep, View
from .sweeps import sweep as decide

__all__ = ["foresee", "sweep", "view"]

log = logging.getLogger(__name__)


def sweep(here: Runtime, *, which: tuple[Sweep, ...] = SWEEPS, asked_by: str) -> list[Move]:
    """Carries out what some sweeps decide, on models that nobody uses meanwhile."""
    moves: list[Move] = here.slots.apply(decide(view(here), which=which), asked_by=asked_by)
    return moves


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

    Only on an idle worker with a slot to spare and memory in plenty. A model that was here within
    the hour is not brought back: if it went, there was a reason.
    """
    slots = here.slots.view()
    on_device = [slot.model_id for slot in slots if slot.tier is Tier.DEVICE]
    if (
        not here.tracker.settings.foresight
        or any(slot.busy for slot in slots)
        or len(on_device) >= here.slots.limits.slots
        or here.tracker.pressure() is not Pressure.NORMAL
    ):
        return None
    been = here.tracker.been_here(within_s=3600.0) | set(on_device)
    histograms = {
        entry.id: usage.histogram(here.redis, here.keys, entry.id) for entry in here.catalogue
    }
    for model_id in usage.wanted_next(histograms, at=time.time()):
        if model_id not in been:
            return _bring(here, model_id, on_device)
    return None


def _bring(here: Runtime, model_id: str, resident: list[str]) -> str | None:
    entry = here.catalogue[model_id]
    size = here.ledger[model_id].device_bytes or int(entry.memory_gb * 2**30)
    if here.ledger.shortfall(model_id, size, resident=resident):
        return None
    try:
        here.slots.load(entry, asked_by="foresight")
    except ClipyardError as error:  # told by an event; whoever wants it later gets the error
        log.info("%s was not brought in time: %s", model_id, error)
        return None
    return model_id
