"""The models of one process: leased on the device, waiting in host memory, or gone.

At every moment

1. the limits hold: at most `limits.slots` models, of at most `limits.device_bytes`, have a seat on
   the device, the coming and the going included; models at rest in host memory take at most
   `limits.host_bytes`. Where a limit was lowered, what is idle goes at once; what is leased gets
   no new leases, one model after the other, until it has gone. Pinned models stay all the same;
2. a leased model is on the device, and nobody moves it;
3. a model is loaded once at a time, and all who asked for it meanwhile share what comes of it;
4. nobody is forgotten: whoever waits gets a lease or a typed error, first come, first served;
5. a load that fails has cost nobody a place: others leave when the new one is in host memory.

No lock is held while a model is loaded or moved, so a lease on a model that is ready waits for
nobody. The file is long because every wait and every change of state should be seen at once;
`residents.py` says who is where, `room.py` who leaves for whom, `carrier.py` carries.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from threading import Condition, RLock

from api_client.wire import spans
from api_client.wire.errors import (
    BackendFailed,
    ClipyardError,
    DeviceLost,
    ModelBusy,
    OutOfMemory,
    first_line,
    from_wire,
)
from api_client.wire.messages import Cause, Event, EventKind

from ..backends.base import Footprint, Model, Tier
from ..backends.lost import is_beyond_repair
from ..catalogue import Entry
from .carrier import Carrier
from .ledger import Ledger
from .residents import Flight, Limits, Residents, Slot, State
from .room import Room
from .sweeps import Move, SlotView

__all__ = ["Limits", "Slots"]

log = logging.getLogger(__name__)


class Slots:
    """Holds models, and moves them when asked.

    Args:
        check: refuses cheaply what cannot be loaded; estimates the bytes of its weights.
        load: brings a model into host memory.
        unified: there is no accelerator: device and host are one tier.
        on_event: told of every move and refusal, not under the lock of the slots; must not raise.
        aside, parked: around the wait of a lease for its model, while another is ready to work
            with; the latter where somebody else brings it.
    """

    def __init__(
        self,
        *,
        check: Callable[[Entry], int],
        load: Callable[[Entry], Model],
        limits: Limits,
        ledger: Ledger,
        unified: bool,
        clock: Callable[[], float] = time.monotonic,
        on_event: Callable[[Event], None] = lambda event: None,
        aside: Callable[[], AbstractContextManager[None]] = nullcontext,
        parked: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._check = check
        self._carrier = Carrier(load, ledger, clock=clock, on_event=on_event)
        self._ledger = ledger
        self._unified = unified
        self._clock = clock
        self._slots = Residents(limits, unified=unified)
        self._loads: list[Slot] = []  # first come, first served; `limits.slots` at a time
        self._lifts: list[Slot] = []  # likewise, one at a time
        self._closed = False
        self._lock = RLock()  # guards the slots, the lines and `_closed`
        self._changed = Condition(self._lock)
        self._room = Room(
            self._slots,
            self._changed,
            self._carrier,
            ledger,
            clock=clock,
            aside=aside,
            parked=parked,
        )

    @contextmanager
    def lease(
        self,
        entry: Entry,
        *,
        keep_alive_s: float | None = None,
        patience_s: float = math.inf,
        asked_by: str = "",
    ) -> Iterator[Model]:
        """Hold a model on the device for the length of the block. A task holds one at a time.

        Args:
            keep_alive_s: how long it stays once idle: 0 goes at once, negative stays; None leaves
                what an earlier request said, at first the timeouts.
            patience_s: for a place, where it is less than `limits.wait_s`, and for what others
                bring already.

        Raises:
            ModelBusy: no place within `limits.wait_s`, or patience is over.
            OutOfMemory: it does not fit, even without the idle ones.
            LoadFailed, BackendFailed: it cannot be loaded.
        """
        with spans.span(spans.Name.LEASE, model=entry.id):
            slot, _ = self._acquire(entry, asked_by, patience_s)
        try:
            if keep_alive_s is not None:
                slot.keep_alive_s = keep_alive_s
            yield slot.weights
        finally:
            self._release(slot, asked_by)

    def load(self, entry: Entry, *, keep_alive_s: float | None = None, asked_by: str = "") -> bool:
        """Bring a model onto the device, as `lease` does; False if it was there."""
        slot, changed = self._acquire(entry, asked_by)
        with self._changed:
            if keep_alive_s is not None:
                slot.keep_alive_s = keep_alive_s
            self._slots.give_back(slot, now=self._clock())
            self._changed.notify_all()
        self._room.trim()
        return changed

    def unload(self, model_id: str, *, reason: str, asked_by: str = "", wait_s: float) -> bool:
        """Let a model go once its leases have ended, pinned or not; False if it is not here.

        Raises:
            ModelBusy: it was still in use after `wait_s`; it stays.
        """
        deadline = self._clock() + wait_s
        with self._changed:
            slot = self._slots.get(model_id)
            if slot is None:
                return False
            with self._room.gate(slot):
                while not slot.is_idle and slot in self._slots:
                    self._room.wait(deadline, f"{model_id} is still in use after {wait_s:g} s")
            if slot not in self._slots:
                return False
            slot.leave()
        self._room.drop(slot, Cause.of(asked_by), reason, asked_by)
        return True

    def apply(self, moves: Iterable[Move], *, asked_by: str = "") -> list[Move]:
        """Carry out, of moves downwards, what is still possible: whoever is in use, or was since
        the decision, stays. Returns those that were made."""
        done = []
        for move in moves:
            with self._changed:
                slot = self._slots.get(move.model_id)
                if slot is None or not self._may(slot, move):
                    continue
                slot.leave()
            if move.to is None:
                self._room.drop(slot, Cause.of(asked_by), move.reason, asked_by)
            else:
                self._room.lower(slot, Cause.of(asked_by), move.reason, asked_by)
            done.append(move)
        self._room.trim()
        return done

    def warm(self, entry: Entry, *, to: Tier, reason: str, asked_by: str = "") -> bool:
        """Bring a model up that nobody has asked for yet, as long as nobody has to leave for it.

        Returns:
            False where it is here already, has no room, or would be in somebody's way.

        Raises:
            OutOfMemory, LoadFailed, BackendFailed: as `lease`.
        """
        with self._changed:
            is_here = self._slots.get(entry.id) is not None
            if is_here or self._closed or self._loads or self._lifts:
                return False
            slot = self._slots.add(Slot(entry, self._clock()))
            slot.flight = flight = Flight(Condition(self._lock))
        is_warm = False
        try:
            is_warm = self._warm(slot, to, reason, asked_by)
        except Exception as raised:
            error = _typed(raised, entry)
            raise error from error.__cause__
        finally:
            if slot.model is not None and not is_warm:
                self._carrier.unload(slot)
                slot.model = None
                why = "there is no room on the device after all"
                self._carrier.tell(EventKind.UNLOADED, slot.id, why, asked_by)
            self._land(slot, flight, None)
        return is_warm

    def view(self) -> tuple[SlotView, ...]:
        """What is here, least recently used first."""
        with self._changed:
            return self._slots.view()

    @property
    def brings_its_first(self) -> bool:
        """Models are on their way, and none is ready."""
        with self._changed:
            coming = any(slot.flight is not None for slot in self._slots)
            return coming and not self._slots.in_state(State.DEVICE)

    @property
    def limits(self) -> Limits:
        return self._slots.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        with self._changed:
            self._slots.limits = limits
            self._changed.notify_all()
        self._room.trim()

    def close(self) -> None:
        """No more leases; unloads each model, after waiting `limits.wait_s` for those in use."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            models = [slot.id for slot in self._slots]
        for model_id in models:
            try:
                self.unload(
                    model_id,
                    reason="the worker stops",
                    asked_by=Cause.STOP,
                    wait_s=self.limits.wait_s,
                )
            except ModelBusy as error:
                log.warning("not unloaded: %s", error)

    # Up: from nothing to host memory to the device.

    def _acquire(
        self, entry: Entry, asked_by: str, patience_s: float = math.inf
    ) -> tuple[Slot, bool]:
        """A slot on the device with a lease counted, and whether it had to be brought there."""
        gone_at = self._clock() + patience_s
        deadline = min(gone_at, self._clock() + self.limits.wait_s)
        try:
            with self._changed:
                slot, flight = self._find(entry, deadline, gone_at)
        except ModelBusy as error:
            self._carrier.tell(EventKind.REFUSED, entry.id, str(error), asked_by)
            raise
        if flight is None:
            return slot, False
        if not flight.done:
            self._bring(slot, flight, deadline, asked_by)
        elif flight.error is not None:
            found = flight.error
            raise from_wire(found.code, str(found), retryable=found.retryable) from found
        return slot, True

    def _find(self, entry: Entry, deadline: float, gone_at: float) -> tuple[Slot, Flight | None]:
        """A lease, of one that was ready or came with a flight of others; or a flight to make."""
        while True:
            if self._closed:
                raise ModelBusy("the worker is stopping")
            slot = self._slots.get(entry.id)
            if slot is None:
                slot = self._slots.add(Slot(entry, self._clock()))
                break
            if self._slots.is_gated(slot) or slot.state in (State.LEAVING, State.DROPPING):
                self._room.wait(deadline, f"{entry.id} has to leave before it can come back")
            elif (flight := slot.flight) is not None:
                flight.joined += 1
                try:
                    while not flight.done:
                        sentence = f"{entry.id} is still on its way"
                        self._room.wait(gone_at, sentence, on=flight.landed)
                except BaseException:
                    flight.joined -= 1
                    raise
                # Else it was cut short, went half the way, or its caller could not wait any longer.
                if flight.leased or (flight.error and not isinstance(flight.error, ModelBusy)):
                    return slot, flight
            elif slot.state is State.DEVICE:
                self._slots.lease(slot, now=self._clock())
                return slot, None
            else:
                break
        slot.flight = Flight(Condition(self._lock), joined=1)
        return slot, slot.flight

    def _bring(self, slot: Slot, flight: Flight, deadline: float, asked_by: str) -> None:
        """From wherever it is to the device. Ends the flight, whatever happens."""
        error: ClipyardError | None = None
        try:
            if slot.model is not None:
                self._lift(slot, deadline, asked_by)
                return
            guess = self._check(slot.entry)
            weights = self._ledger[slot.id].weights(guess)
            self._slots.refuse_the_impossible(slot.id, weights.device_bytes)
            slot.held = Footprint(host_bytes=weights.host_bytes)
            at_once = partial(self._loads_at_once, slot)
            # Held until it has landed: what waits loaded for a seat takes memory too.
            with self._turn(self._loads, slot, deadline, at_once=at_once):
                load = partial(self._carrier.load, slot.entry, size=slot.held.host_bytes)
                idle_in = State.DEVICE if self._unified else State.HOST
                twice = partial(self._room.try_twice, load, slot, idle_in, asked_by)
                self._load(slot, twice, "asked for", asked_by)
                self._lift(slot, deadline + slot.load_s, asked_by)
        except Exception as raised:
            error = _typed(raised, slot.entry)
            is_memory = isinstance(error, OutOfMemory)
            kind = EventKind.OUT_OF_MEMORY if is_memory else EventKind.REFUSED
            self._carrier.tell(kind, slot.id, str(error), asked_by)
            raise error from error.__cause__
        finally:
            self._land(slot, flight, error)

    def _loads_at_once(self, slot: Slot) -> int:
        """As many as there are seats; none while others come into host memory, from either side,
        and it is short for both: each alone would see what they have not taken yet as free. Also
        where that is a model which nobody asked for yet."""
        later = self._loads[self._loads.index(slot) :]
        coming = self._slots.coming_bytes(later)
        if coming and self._ledger.host_shortfall(coming + slot.held.host_bytes):
            return 0
        return self.limits.slots

    def _land(self, slot: Slot, flight: Flight, error: ClipyardError | None) -> None:
        with self._changed:
            slot.flight = None
            flight.done, flight.error = True, error
            if slot.state is State.DEVICE:
                flight.leased = True
                self._slots.lease(slot, now=self._clock(), times=flight.joined)
            elif slot.model is None:
                self._slots.remove(slot)
            else:
                slot.state, slot.held = State.HOST, Footprint(host_bytes=slot.held.host_bytes)
            self._changed.notify_all()
            flight.landed.notify_all()
            if flight.leased:  # who waits for another may step aside now
                for other in self._slots:
                    if other.flight is not None:
                        other.flight.landed.notify_all()
        self._room.trim()

    def _load(
        self, slot: Slot, load: Callable[[], tuple[Model, Footprint]], reason: str, asked_by: str
    ) -> None:
        started = self._clock()
        model, held = load()
        with self._changed:
            slot.model, slot.held, slot.state = model, held, State.HOST
            slot.loaded_at = self._clock()
            slot.load_s = slot.loaded_at - started
            self._changed.notify_all()  # what it takes is no longer promised, but taken
        size = held.host_bytes
        self._carrier.tell(EventKind.LOADED, slot.id, reason, asked_by, size=size, since=started)

    def _lift(self, slot: Slot, deadline: float, asked_by: str) -> None:
        size = self._device_bytes(slot)
        with self._turn(self._lifts, slot, deadline, at_once=lambda: 1):
            self._room.take_seat(slot, size, deadline=deadline, asked_by=asked_by)
            lift = partial(self._carrier.lift, slot, size=size)
            twice = partial(self._room.try_twice, lift, slot, State.DEVICE, asked_by)
            self._rise(slot, twice, "asked for", asked_by)

    def _rise(self, slot: Slot, lift: Callable[[], Footprint], reason: str, asked_by: str) -> None:
        started = self._clock()
        try:
            held = lift()
        except MemoryError:
            raise
        except Exception as error:
            self._carrier.unload(slot)
            slot.model = None  # who knows where it was
            why = f"it could not be lifted: {first_line(error)}"
            self._carrier.tell(EventKind.UNLOADED, slot.id, why, asked_by)
            raise
        with self._changed:
            slot.state, slot.held = State.DEVICE, held
            slot.lifted_at = self._clock()
        size = held.device_bytes
        self._carrier.tell(EventKind.LIFTED, slot.id, reason, asked_by, size=size, since=started)

    def _warm(self, slot: Slot, to: Tier, reason: str, asked_by: str) -> bool:
        guess = self._check(slot.entry)
        with self._changed:
            takes = self._ledger[slot.id].weights(guess).host_bytes
            short = self._ledger.host_shortfall(takes + self._slots.coming_bytes([slot]))
            slot.held = Footprint(host_bytes=takes)
            rests = self._slots.older_in_host(slot, guess, short=0) == []
            # Lifted, it may leave a copy behind, for which those at rest would have to go.
            lifts = self._slots.fits(guess) and (rests or not self._slots.movable(State.HOST))
            has_room = rests if to is Tier.HOST else lifts
        if short or not has_room:
            return False
        load = partial(self._carrier.load, slot.entry, size=slot.held.host_bytes)
        self._load(slot, load, reason, asked_by)
        if to is Tier.DEVICE:
            size = self._device_bytes(slot)
            with self._changed:
                if self._lifts or not self._room.take_spare_seat(slot, size):
                    return False
            self._rise(slot, partial(self._carrier.lift, slot, size=size), reason, asked_by)
        return True

    def _device_bytes(self, slot: Slot) -> int:
        if self._unified:
            return 0
        return self._ledger[slot.id].weights(slot.held.host_bytes).device_bytes

    def _release(self, slot: Slot, asked_by: str) -> None:
        with self._changed:
            self._slots.give_back(slot, now=self._clock())
            stays = slot.keep_alive_s != 0 or slot.id in self.limits.pinned
            goes = slot.is_idle and not stays
            if goes:
                slot.leave()
            self._changed.notify_all()
        if goes:
            self._room.drop(slot, Cause.of(asked_by), "idle, and keep_alive is 0", asked_by)
        self._room.trim()

    def _may(self, slot: Slot, move: Move) -> bool:
        if not slot.is_idle or move.used_at not in (None, slot.used_at):
            return False
        if move.to is None:
            return True
        return move.to is Tier.HOST and slot.state is State.DEVICE and not self._unified

    @contextmanager
    def _turn(
        self, line: list[Slot], slot: Slot, deadline: float, *, at_once: Callable[[], int]
    ) -> Iterator[None]:
        """Stand in line; inside, be one of the first `at_once`."""
        try:
            with self._changed:
                line.append(slot)
                self._changed.notify_all()  # who is ahead need not wait for what it takes
                while line.index(slot) >= at_once():
                    first = "others in host memory" if line[0] is slot else line[0].id
                    self._room.wait(deadline, f"{slot.id} waits behind {first}")
            yield
        finally:
            with self._changed:
                line.remove(slot)
                self._changed.notify_all()


def _typed(raised: Exception, entry: Entry) -> ClipyardError:
    if isinstance(raised, ClipyardError):
        return raised
    if is_beyond_repair(raised):
        return DeviceLost(f"{entry.backend} has lost its device: {first_line(raised)}")
    error: ClipyardError = BackendFailed(f"{entry.backend} failed with {entry.id}: {raised!r}")
    if isinstance(raised, MemoryError):
        error = OutOfMemory(f"{entry.id} does not fit: {raised}")
    error.__cause__ = raised
    return error
