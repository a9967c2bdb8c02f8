"""What this worker adds to Celery's own statistics: Flower's worker page and API show it."""

from typing import Any

from celery.bootsteps import StartStopStep
from celery.worker import consumer as stock

from . import runtime
from .residency.sweeps import SlotView

__all__ = ["Showcase"]

MB = 1_000_000


class Showcase(StartStopStep):  # type: ignore[misc]  # celery has no types
    """A step of the consumer that does nothing but tell."""

    requires = (stock.Tasks,)

    def info(self, consumer: Any) -> dict[str, Any]:
        """Asked by `inspect stats`, in the event loop: from memory, in microseconds."""
        here, dispatcher = runtime.here(), consumer.event_dispatcher
        slots = {slot.model_id: _told(slot) for slot in here.slots.view()}
        task_events = bool(dispatcher and dispatcher.enabled and _all_or_tasks(dispatcher.groups))
        return {"device": here.placement.device, "slots": slots, "task_events": task_events}


def _all_or_tasks(groups: set[str]) -> bool:
    """Celery's dispatcher takes an empty set for all groups."""
    return not groups or "task" in groups


def _told(slot: SlotView) -> str:
    tier = slot.tier.value if slot.tier else "loading"
    size = (slot.footprint.device_bytes + slot.footprint.host_bytes) / MB
    return f"{tier}, {slot.leases} leases, {size:.0f} MB" + (", pinned" if slot.pinned else "")
