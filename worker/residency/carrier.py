"""Carries one model at a time up or down, measures what that takes, and tells of it.

Whether it may be moved, and where to, is the caller's business: see `slots.py`.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock

from api_client.wire import spans
from api_client.wire.errors import OutOfMemory
from api_client.wire.messages import Cause, Event, EventKind

from ..backends.base import Footprint, Model, unloaded_if_mute
from ..catalogue import Entry
from .ledger import Ledger
from .residents import Slot

__all__ = ["Carrier"]

log = logging.getLogger(__name__)


class Carrier:
    """Acts on the models; changes no slot.

    Args:
        load: brings a model into host memory.
        on_event: must not raise.
    """

    def __init__(
        self,
        load: Callable[[Entry], Model],
        ledger: Ledger,
        *,
        clock: Callable[[], float],
        on_event: Callable[[Event], None],
    ) -> None:
        self._load = load
        self._ledger = ledger
        self._clock = clock
        self._on_event = on_event
        self._moving = Lock()  # one move on the device at a time, so that its bytes can be measured

    def load(self, entry: Entry, *, size: int) -> tuple[Model, Footprint]:
        """
        Args:
            size: bytes it will take.

        Raises:
            MemoryError: host memory is short, or would be.
            Exception: whatever else the back end raises.
        """
        if short := self._ledger.host_shortfall(size):
            raise OutOfMemory(f"{entry.id} takes {size} bytes of host memory, {short} too many")
        with spans.span(spans.Name.LOAD, model=entry.id):
            model = self._load(entry)
        with unloaded_if_mute(model):
            return model, self._weigh(entry.id, model)

    def lift(self, slot: Slot, *, size: int) -> Footprint:
        """
        Raises:
            MemoryError: it is still where it was.
            Exception: who knows where it is.
        """
        with (
            self._moving,
            spans.span(spans.Name.LIFT, model=slot.id, bytes=size),
            self._ledger.reserve(size),
        ):
            slot.weights.lift()
        return self._weigh(slot.id, slot.weights)

    def lower(self, slot: Slot) -> Footprint:
        with self._moving, self._leaving(spans.Name.LOWER, slot):
            slot.weights.lower()
        return self._weigh(slot.id, slot.weights)

    def unload(self, slot: Slot) -> None:
        try:
            with self._moving, self._leaving(spans.Name.UNLOAD, slot):
                slot.weights.unload()
        except Exception:
            log.exception("%s did not unload as it should; it is gone all the same", slot.id)

    def tell(
        self,
        kind: EventKind,
        model_id: str,
        reason: str,
        asked_by: str,
        *,
        cause: Cause | None = None,
        size: int = 0,
        since: float | None = None,
    ) -> None:
        """One line of the log and of the event stream.

        Args:
            cause: None goes by who asked.
            size: bytes taken or given back.
            since: when it began; None took no time.
        """
        seconds = 0.0 if since is None else self._clock() - since
        residue = self._ledger[model_id].residue_bytes
        if residue and kind in (EventKind.LOWERED, EventKind.EVICTED, EventKind.UNLOADED):
            reason += f"; {residue} bytes did not come back"
        log.info("%s %s in %.3f s: %s", kind, model_id, seconds, reason)
        self._on_event(
            Event(
                kind=kind,
                model=model_id,
                reason=reason,
                asked_by=asked_by,
                cause=cause or Cause.of(asked_by),
                bytes=size,
                seconds=seconds,
            )
        )

    @contextmanager
    def _leaving(self, name: spans.Name, slot: Slot) -> Iterator[None]:
        size = slot.held.device_bytes
        with spans.span(name, model=slot.id, bytes=size), self._ledger.coming_back(slot.id, size):
            yield

    def _weigh(self, model_id: str, model: Model) -> Footprint:
        told = model.footprint()
        # A plug-in may tell fractions, over which no status could be written.
        footprint = Footprint(int(told.device_bytes), int(told.host_bytes))
        self._ledger.saw(model_id, footprint)
        return footprint
