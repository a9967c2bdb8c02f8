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
what is only looked up is in `residents.py`.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Condition, Lock
from typing import TypeVar

from api_client.wire.errors import BackendFailed, ClipyardError, ModelBusy, OutOfMemory, from_wire
from api_client.wire.messages import Event, EventKind

from .backends.base import Footprint, Model, Tier
from .catalogue import Entry
from .ledger import Ledger
from .residents import SEATED, Flight, Limits, Residents, Slot, State
from .sweeps import Move, SlotView

__all__ = ["Limits", "Slots"]

log = logging.getLogger(__name__)
T = TypeVar("T")


class Slots:
    """Holds models, and moves them when asked.

    Args:
        check: refuses cheaply what cannot be loaded; estimates the bytes of its weights.
        load: brings a model into host memory.
        unified: there is no accelerator: device and host are one tier.
        on_event: told of every move and refusal, outside any lock; must not raise.
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
    ) -> None:
        self._check, self._load_weights = check, load
        self._ledger = ledger
        self._unified = unified
        self._clock = clock
        self._on_event = on_event
        self._slots = Residents(limits, unified=unified)
        self._loads: list[Slot] = []  # first come, first served; `limits.slots` at a time
        self._lifts: list[Slot] = []  # likewise, one at a time
        self._closed = False
        self._changed = Condition()  # guards all of the above
        self._moving = Lock()  # one move on the device at a time, so that its bytes can be measured

    @contextmanager
    def lease(
        self, entry: Entry, *, keep_alive_s: float | None = None, asked_by: str = ""
    ) -> Iterator[Model]:
        """Hold a model on the device for the length of the block. A task holds one at a time.

        Args:
            keep_alive_s: how long it stays once idle: 0 goes at once, negative stays; None leaves
                what an earlier request said, at first the timeouts.

        Raises:
            ModelBusy: no place within `limits.wait_s`.
            OutOfMemory: it does not fit, even without the idle ones.
            LoadFailed, BackendFailed: it cannot be loaded.
        """
        slot, _ = self._acquire(entry, asked_by)
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
            slot.leases -= 1
            self._changed.notify_all()
        self._trim()
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
            with self._gate(slot):
                while not slot.is_idle and slot in self._slots:
                    self._wait(deadline, f"{model_id} is still in use after {wait_s:g} s")
            if slot not in self._slots:
                return False
            slot.leave()
        self._drop(slot, EventKind.UNLOADED, reason, asked_by)
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
                self._drop(slot, EventKind.UNLOADED, move.reason, asked_by)
            else:
                self._lower(slot, EventKind.UNLOADED, move.reason, asked_by)
            done.append(move)
        self._trim()
        return done

    def view(self) -> tuple[SlotView, ...]:
        """What is here, least recently used first."""
        with self._changed:
            return self._slots.view()

    @property
    def limits(self) -> Limits:
        return self._slots.limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        with self._changed:
            self._slots.limits = limits
            self._changed.notify_all()
        self._trim()

    def close(self) -> None:
        """No more leases; unloads each model, after waiting `limits.wait_s` for those in use."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            models = [slot.id for slot in self._slots]
        for model_id in models:
            try:
                self.unload(model_id, reason="the worker stops", wait_s=self.limits.wait_s)
            except ModelBusy as error:
                log.warning("not unloaded: %s", error)

    # Up: from nothing to host memory to the device.

    def _acquire(self, entry: Entry, asked_by: str) -> tuple[Slot, bool]:
        """A slot on the device with a lease counted, and whether it had to be brought there."""
        deadline = self._clock() + self.limits.wait_s
        with self._changed:
            while True:
                if self._closed:
                    raise ModelBusy("the worker is stopping")
                slot = self._slots.get(entry.id)
                if slot is None:
                    slot = self._slots.add(Slot(entry, self._clock()))
                    break
                if self._slots.is_gated(slot) or slot.state in (State.LEAVING, State.DROPPING):
                    self._wait(deadline, f"{entry.id} has to leave before it can come back")
                elif slot.flight is not None:
                    if self._join(slot.flight):
                        return slot, True
                elif slot.state is State.DEVICE:
                    slot.leases += 1
                    slot.uses += 1
                    self._slots.touch(slot, now=self._clock())
                    return slot, False
                else:
                    break
            slot.flight = flight = Flight(joined=1)
        self._bring(slot, flight, deadline, asked_by)
        return slot, True

    def _join(self, flight: Flight) -> bool:
        """Share what becomes of a flight: a lease, its error, or neither if it was cut short."""
        flight.joined += 1
        while not flight.done:
            self._changed.wait()
        if flight.error is not None:
            raise from_wire(flight.error.code, str(flight.error)) from flight.error
        return flight.leased

    def _bring(self, slot: Slot, flight: Flight, deadline: float, asked_by: str) -> None:
        """From wherever it is to the device. Ends the flight, whatever happens."""
        error: ClipyardError | None = None
        try:
            if slot.model is not None:
                self._lift(slot, deadline, asked_by)
            else:
                guess = self._check(slot.entry)
                self._refuse_the_impossible(slot, self._ledger[slot.id].device_bytes or guess)
                # Held until it has landed: what waits loaded for a seat takes memory too.
                with self._turn(self._loads, slot, deadline, at_once=lambda: self.limits.slots):
                    self._load(slot, guess, asked_by)
                    self._lift(slot, deadline + slot.load_s, asked_by)
        except Exception as raised:
            error = _typed(raised, slot.entry)
            kind = EventKind.REFUSED
            if isinstance(error, OutOfMemory):
                kind = EventKind.OUT_OF_MEMORY
            self._tell(kind, slot, str(error), asked_by)
            raise error from error.__cause__
        finally:
            self._land(slot, flight, error)

    def _land(self, slot: Slot, flight: Flight, error: ClipyardError | None) -> None:
        with self._changed:
            slot.flight = None
            flight.done, flight.error = True, error
            if slot.state is State.DEVICE:
                flight.leased = True
                slot.leases += flight.joined
                slot.uses += flight.joined
                self._slots.touch(slot, now=self._clock())
            elif slot.model is None:
                self._slots.remove(slot)
            else:
                slot.state, slot.held = State.HOST, slot.model.footprint()
            self._changed.notify_all()
        self._trim()

    def _load(self, slot: Slot, guess: int, asked_by: str) -> None:
        def once() -> Model:
            if short := self._ledger.host_shortfall(size):
                raise OutOfMemory(f"{slot.id} takes {size} bytes of host memory, {short} too many")
            return self._load_weights(slot.entry)

        size = self._ledger[slot.id].host_bytes or guess
        started = self._clock()
        idle_in = State.DEVICE if self._unified else State.HOST
        model = self._twice(once, slot, idle_in, asked_by)
        footprint = model.footprint()
        self._ledger.saw(slot.id, footprint)
        with self._changed:
            slot.model, slot.held, slot.state = model, footprint, State.HOST
            slot.loaded_at = self._clock()
            slot.load_s = slot.loaded_at - started
        self._tell(EventKind.LOADED, slot, "asked for", asked_by, footprint.host_bytes, slot.load_s)

    def _lift(self, slot: Slot, deadline: float, asked_by: str) -> None:
        def once() -> None:
            with self._moving, self._ledger.reserve(size):
                slot.weights.lift()

        size = self._ledger[slot.id].device_bytes or slot.weights.footprint().host_bytes
        size = 0 if self._unified else size
        with self._turn(self._lifts, slot, deadline, at_once=lambda: 1):
            while (victim := self._seat_or_victim(slot, size, deadline)) is not None:
                self._lower(victim, EventKind.EVICTED, f"made room for {slot.id}", asked_by)
            started = self._clock()
            try:
                self._twice(once, slot, State.DEVICE, asked_by)
            except MemoryError:
                raise
            except Exception:
                self._unload(slot)
                slot.model = None  # who knows where it was
                raise
            footprint = slot.weights.footprint()
            self._ledger.saw(slot.id, footprint)
            with self._changed:
                slot.state, slot.held, slot.lifted_at = State.DEVICE, footprint, self._clock()
        seconds = slot.lifted_at - started
        self._tell(EventKind.LIFTED, slot, "asked for", asked_by, footprint.device_bytes, seconds)

    def _seat_or_victim(self, slot: Slot, size: int, deadline: float) -> Slot | None:
        """Waits for a seat on the device and takes it: None. Or claims who has to leave for it."""
        with self._changed, ExitStack() as gates:
            gated = None
            while not self._has_room(slot, size):
                now = self._clock()
                self._refuse_the_impossible(slot, size)
                leaving = self._slots.in_state(State.LEAVING)  # and perhaps that will do
                order = [] if leaving else self._slots.movable(State.DEVICE)
                idle = {
                    victim: self._stays_until(victim, deadline)
                    for victim in order
                    if victim.is_idle
                }
                for victim, until in idle.items():
                    if now >= until:
                        victim.leave()
                        return victim
                if order and not idle and gated is None:
                    gated = gates.enter_context(self._gate(order[0]))
                busy = f"{slot.id} found no free slot of {self.limits.slots}"
                self._wait(deadline, busy, wake_at=min(idle.values(), default=math.inf))
            slot.state = State.LIFTING
            slot.held = Footprint(size, slot.held.host_bytes)
            return None

    def _has_room(self, slot: Slot, size: int) -> bool:
        """By the limits, and by the memory itself as long as somebody could still leave for it."""
        if not self._slots.fits(size):
            return False
        others = self._slots.movable(State.DEVICE) + self._slots.in_state(State.LEAVING)
        resident = [other.id for other in self._slots.in_state(*SEATED)]
        return not others or not self._ledger.shortfall(slot.id, size, resident=resident)

    def _stays_until(self, victim: Slot, deadline: float) -> float:
        """When an idle victim may go: a newcomer at the end of its patience need not wait."""
        return min(deadline, victim.lifted_at + self.limits.residency_s)

    def _refuse_the_impossible(self, slot: Slot, size: int) -> None:
        limit = self.limits.device_bytes
        if not self._unified and limit is not None and size > limit:
            raise OutOfMemory(f"{slot.id} takes {size} bytes on the device, the limit is {limit}")

    def _twice(self, step: Callable[[], T], slot: Slot, idle_in: State, asked_by: str) -> T:
        """Out of memory: lets go of what is idle, the least recently used first; tries again."""
        try:
            return step()
        except MemoryError as error:
            self._tell(EventKind.OUT_OF_MEMORY, slot, f"lets go of idle models: {error}", asked_by)
        while (victim := self._claim_idle(idle_in)) is not None:
            self._lower(victim, EventKind.EVICTED, f"out of memory for {slot.id}", asked_by)
        return step()

    def _claim_idle(self, state: State) -> Slot | None:
        with self._changed:
            for slot in self._slots.movable(state):
                if slot.is_idle:
                    slot.leave()
                    return slot
        return None

    # Down: each of these is given a slot that its caller has claimed.

    def _lower(self, slot: Slot, gone: EventKind, reason: str, asked_by: str) -> None:
        """From the device to host memory; for good where there is no room, or from there."""
        if slot.state is State.DROPPING or not self._make_host_room(slot, asked_by):
            self._drop(slot, gone, reason, asked_by)
            return
        size, started = slot.held.device_bytes, self._clock()
        try:
            with self._moving, self._ledger.coming_back(slot.id, size):
                slot.weights.lower()
        except Exception as error:
            log.warning("%s could not be lowered", slot.id, exc_info=True)
            self._drop(slot, gone, f"{reason}; could not be lowered: {error}", asked_by)
            return
        footprint = slot.weights.footprint()
        self._ledger.saw(slot.id, footprint)
        with self._changed:
            slot.state, slot.held = State.HOST, footprint
            self._changed.notify_all()
        reason += self._residue(slot)
        self._tell(EventKind.LOWERED, slot, reason, asked_by, size, self._clock() - started)

    def _make_host_room(self, slot: Slot, asked_by: str) -> bool:
        """Promises host memory to a slot, letting go of older ones there; False if it is not to
        be had."""
        size = self._ledger[slot.id].host_bytes
        short = self._ledger.host_shortfall(size)
        with self._changed:
            older = self._slots.older_in_host(slot, size, short=short)
            if older is None:
                return False
            for other in older:
                other.leave()
            slot.held = Footprint(slot.held.device_bytes, slot.held.host_bytes + size)
        for other in older:
            reason = f"made room in host memory for {slot.id}"
            self._drop(other, EventKind.EVICTED, reason, asked_by)
        return True

    def _drop(self, slot: Slot, gone: EventKind, reason: str, asked_by: str) -> None:
        held, started = slot.held, self._clock()
        self._unload(slot)
        with self._changed:
            self._slots.remove(slot)
            self._changed.notify_all()
        size = held.device_bytes or held.host_bytes
        reason += self._residue(slot)
        self._tell(gone, slot, reason, asked_by, size, self._clock() - started)

    def _unload(self, slot: Slot) -> None:
        try:
            with self._moving, self._ledger.coming_back(slot.id, slot.held.device_bytes):
                slot.weights.unload()
        except Exception:
            log.exception("%s did not unload as it should; it is gone all the same", slot.id)

    def _trim(self) -> None:
        """Take down what is idle and over the limits."""
        while True:
            with self._changed:
                slot = self._slots.excess()
                if slot is None:
                    return
                slot.leave()
            self._lower(slot, EventKind.EVICTED, "over the limits", asked_by="")

    def _release(self, slot: Slot, asked_by: str) -> None:
        with self._changed:
            slot.leases -= 1
            self._slots.touch(slot, now=self._clock())
            stays = slot.keep_alive_s != 0 or slot.id in self.limits.pinned
            goes = slot.is_idle and not stays
            if goes:
                slot.leave()
            self._changed.notify_all()
        if goes:
            self._drop(slot, EventKind.UNLOADED, "idle, and keep_alive is 0", asked_by)
        self._trim()

    def _may(self, slot: Slot, move: Move) -> bool:
        if not slot.is_idle or move.used_at not in (None, slot.used_at):
            return False
        return move.to is None or (
            move.to is Tier.HOST and slot.state is State.DEVICE and not self._unified
        )

    # Waiting and telling.

    def _wait(self, deadline: float, sentence: str, *, wake_at: float = math.inf) -> None:
        """Until something changes; ModelBusy once it is too late."""
        now = self._clock()
        if now >= deadline:
            raise ModelBusy(f"{sentence}; leased are {', '.join(self._leased()) or 'none'}")
        self._changed.wait(min(deadline, wake_at) - now)

    def _leased(self) -> list[str]:
        return [slot.id for slot in self._slots if slot.leases]

    @contextmanager
    def _turn(
        self, queue: list[Slot], slot: Slot, deadline: float, *, at_once: Callable[[], int]
    ) -> Iterator[None]:
        """Stand in line; inside, be one of the first `at_once`."""
        try:
            with self._changed:
                queue.append(slot)
                while queue.index(slot) >= at_once():
                    self._wait(deadline, f"{slot.id} waits behind {queue[0].id}")
            yield
        finally:
            with self._changed:
                queue.remove(slot)
                self._changed.notify_all()

    @contextmanager
    def _gate(self, slot: Slot) -> Iterator[None]:
        """No new leases on a slot, for as long as somebody waits for it to go."""
        slot.gates += 1
        try:
            yield
        finally:
            slot.gates -= 1
            self._changed.notify_all()

    def _residue(self, slot: Slot) -> str:
        residue = self._ledger[slot.id].residue_bytes
        return f"; {residue} bytes did not come back" if residue else ""

    def _tell(
        self,
        kind: EventKind,
        slot: Slot,
        reason: str,
        asked_by: str,
        size: int = 0,
        seconds: float = 0.0,
    ) -> None:
        log.info("%s %s in %.3f s: %s", kind, slot.id, seconds, reason)
        self._on_event(
            Event(
                kind=kind,
                model=slot.id,
                reason=reason,
                asked_by=asked_by,
                bytes=size,
                seconds=seconds,
            )
        )


def _typed(raised: Exception, entry: Entry) -> ClipyardError:
    if isinstance(raised, ClipyardError):
        return raised
    error: ClipyardError = BackendFailed(f"{entry.backend} failed with {entry.id}: {raised!r}")
    if isinstance(raised, MemoryError):
        error = OutOfMemory(f"{entry.id} does not fit: {raised}")
    error.__cause__ = raised
    return error
