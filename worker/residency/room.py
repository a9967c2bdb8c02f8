"""Room for one more: who waits for whom, and who goes down or out.

The other half of `slots.py`, under the same condition. A slot is moved by whoever has claimed it
with `Slot.leave`, under the lock, and then without it.
"""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from threading import TIMEOUT_MAX, Condition, Lock
from typing import TypeVar

from api_client.wire.errors import ModelBusy
from api_client.wire.messages import Cause, EventKind

from ..backends.base import Footprint
from .carrier import Carrier
from .ledger import Ledger
from .residents import SEATED, Residents, Slot, State

__all__ = ["Room"]

log = logging.getLogger(__name__)
T = TypeVar("T")


class Room:
    """Makes room on the device and in host memory.

    Args:
        changed: guards the residents; notified of every change.
        aside, parked: around a wait while others have a model to work with; the latter where what
            is waited for is brought by somebody else.
    """

    def __init__(
        self,
        residents: Residents,
        changed: Condition,
        carrier: Carrier,
        ledger: Ledger,
        *,
        clock: Callable[[], float],
        aside: Callable[[], AbstractContextManager[None]],
        parked: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._slots = residents
        self._changed = changed
        self._carrier = carrier
        self._ledger = ledger
        self._clock = clock
        self._aside, self._parked = aside, parked
        self._lowering = Lock()  # one after the other: each sees what the one before has taken

    def take_seat(self, slot: Slot, size: int, *, deadline: float, asked_by: str) -> None:
        """Wait for a place on the device and take it; others leave for it.

        Raises:
            ModelBusy: all who could leave are in use, and it is too late.
            OutOfMemory: `size` bytes are more than the limit, whoever leaves.
        """
        while (victim := self._seat_or_victim(slot, size, deadline)) is not None:
            self.lower(victim, Cause.ROOM, f"made room for {slot.id}", asked_by)

    def take_spare_seat(self, slot: Slot, size: int) -> bool:
        """Take a place if that costs nobody theirs."""
        with self._changed:
            has_room = self._has_room(slot, size)
            if has_room:
                self._sit(slot, size)
            return has_room

    def try_twice(self, step: Callable[[], T], slot: Slot, idle_in: State, asked_by: str) -> T:
        """Out of memory: lets go of what is idle, the least recently used first; tries again."""
        try:
            return step()
        except MemoryError as error:
            reason = f"lets go of idle models: {error}"
            self._carrier.tell(EventKind.OUT_OF_MEMORY, slot.id, reason, asked_by)
        while (victim := self._claim_idle(idle_in)) is not None:
            self.lower(victim, Cause.ROOM, f"out of memory for {slot.id}", asked_by)
        return step()

    def trim(self) -> None:
        """Take down what is idle and over the limits."""
        while True:
            with self._changed:
                slot = self._slots.excess()
                if slot is None:
                    return
                slot.leave()
            self.lower(slot, Cause.LIMITS, "over the limits", asked_by="")

    def lower(self, slot: Slot, cause: Cause, reason: str, asked_by: str) -> None:
        """A claimed slot to host memory; for good if there is no room, or it came from there."""
        held, size, started = None, slot.held.device_bytes, self._clock()
        try:
            with self._lowering:
                if slot.state is not State.DROPPING and self._make_host_room(slot, asked_by):
                    held = self._carrier.lower(slot)
        except Exception as error:  # claimed as it is, nobody else could ever move it
            log.warning("%s could not be lowered", slot.id, exc_info=True)
            reason = f"{reason}; could not be lowered: {error!r}"
        if held is None:
            self.drop(slot, cause, reason, asked_by)
            return
        with self._changed:
            slot.state, slot.held = State.HOST, held
            self._changed.notify_all()
        self._carrier.tell(
            EventKind.LOWERED, slot.id, reason, asked_by, cause=cause, size=size, since=started
        )

    def drop(self, slot: Slot, cause: Cause, reason: str, asked_by: str) -> None:
        gone = EventKind.EVICTED if cause in (Cause.ROOM, Cause.LIMITS) else EventKind.UNLOADED
        size, started = slot.held.device_bytes or slot.held.host_bytes, self._clock()
        self._carrier.unload(slot)
        with self._changed:
            self._slots.remove(slot)
            self._changed.notify_all()
        self._carrier.tell(gone, slot.id, reason, asked_by, cause=cause, size=size, since=started)

    def wait(
        self,
        deadline: float,
        sentence: str,
        *,
        wake_at: float = math.inf,
        on: Condition | None = None,
    ) -> None:
        """Until something changes, or what is waited for does; ModelBusy once it is too late."""
        now = self._clock()
        if now >= deadline:
            leased = [slot.id for slot in self._slots if slot.leases]
            pinned = [slot.id for slot in self._slots if slot.id in self._slots.limits.pinned]
            told = f"; pinned are {', '.join(pinned)}" if pinned else ""
            raise ModelBusy(f"{sentence}; leased are {', '.join(leased) or 'none'}{told}")
        waiting = self._aside if on is None else self._parked
        with waiting() if self._slots.in_state(State.DEVICE) else nullcontext():
            (on or self._changed).wait(min(min(deadline, wake_at) - now, TIMEOUT_MAX))

    @contextmanager
    def gate(self, slot: Slot) -> Iterator[None]:
        """No new leases on a slot, for as long as somebody waits for it to go."""
        slot.gates += 1
        try:
            yield
        finally:
            slot.gates -= 1
            self._changed.notify_all()

    def _seat_or_victim(self, slot: Slot, size: int, deadline: float) -> Slot | None:
        """Waits for a seat on the device and takes it: None. Or claims who has to leave for it."""
        with self._changed, ExitStack() as gates:
            gated: Slot | None = None
            while not self._has_room(slot, size):
                self._slots.refuse_the_impossible(slot.id, size)
                order = self._slots.movable(State.DEVICE)
                if self._slots.in_state(State.LEAVING):
                    order = []  # perhaps that will do
                idle = [(self._stays_until(s, deadline), s) for s in order if s.is_idle]
                for until, victim in idle:
                    if self._clock() >= until:
                        victim.leave()
                        return victim
                if order and not idle and gated not in order:  # one only: the others go on
                    gates.close()
                    gated = order[0]
                    gates.enter_context(self.gate(gated))
                sentence = f"{slot.id} found no place, with {self._slots.limits.slots} slots"
                wake_at = min((until for until, _ in idle), default=math.inf)
                self.wait(deadline, sentence, wake_at=wake_at)
            self._sit(slot, size)
            return None

    def _has_room(self, slot: Slot, size: int) -> bool:
        """By the limits, and by the memory itself as long as somebody could still leave for it."""
        if not self._slots.fits(size):
            return False
        on_the_move = self._slots.in_state(State.LIFTING, State.LEAVING)
        others = self._slots.movable(State.DEVICE) + on_the_move
        resident = [other.id for other in self._slots.in_state(*SEATED)]
        return not others or not self._ledger.shortfall(slot.id, size, resident=resident)

    def _stays_until(self, victim: Slot, deadline: float) -> float:
        """When an idle victim may go: a newcomer at the end of its patience need not wait."""
        return min(deadline, victim.lifted_at + self._slots.limits.residency_s)

    def _sit(self, slot: Slot, size: int) -> None:
        slot.state, slot.held = State.LIFTING, Footprint(size, slot.held.host_bytes)

    def _claim_idle(self, state: State) -> Slot | None:
        with self._changed:
            for slot in self._slots.movable(state):
                if slot.is_idle:
                    slot.leave()
                    return slot
        return None

    def _make_host_room(self, slot: Slot, asked_by: str) -> bool:
        """Promises host memory to a slot, letting go of older ones; False where that is no use."""
        copy = slot.held.host_bytes  # some leave one behind when they are lifted
        size = max(0, self._ledger[slot.id].host_bytes - copy)
        with self._changed:  # looked at and promised in one step, or a load would come in between
            coming = self._slots.loading_bytes()
            # What of it has come already counts twice; more than is to be added cannot be lacking.
            short = min(size, self._ledger.host_shortfall(size + coming))
            older = self._slots.older_in_host(slot, size, short=short)
            if older is None:
                return False
            for other in older:
                other.leave()
            slot.held = Footprint(slot.held.device_bytes, copy + size)
        for other in older:
            reason = f"made room in host memory for {slot.id}"
            self.drop(other, Cause.ROOM, reason, asked_by)
        return True
