"""Who is where, what that takes, and who would have to leave: the state that `slots.py` changes.

No locks, no effects: `Slots` asks these questions and changes this state under its own lock.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from threading import Condition

from api_client.wire.errors import ClipyardError, OutOfMemory

from ..backends.base import Footprint, Model, Tier
from ..catalogue import Entry
from .sweeps import SlotView

__all__ = ["SEATED", "Flight", "Limits", "Residents", "Slot", "State"]


@dataclass(frozen=True)
class Limits:
    """What may be held. Can be changed at any time.

    Attributes:
        slots: models on the device.
        device_bytes: their weights; None leaves it to the ledger.
        host_bytes: weights at rest in host memory; 0 is no such tier.
        wait_s: for a place, before ModelBusy.
        residency_s: against thrash: for so long after its lift a model is pushed out only by
            those who cannot wait any longer.
        pinned: ids of models that only an explicit unload moves.
    """

    slots: int = 2
    device_bytes: int | None = None
    host_bytes: int | None = None
    wait_s: float = 30.0
    residency_s: float = 0.0
    pinned: frozenset[str] = frozenset()


class State(StrEnum):
    LOADING = "loading"  # into host memory
    HOST = "host"
    LIFTING = "lifting"  # has a seat on the device already
    DEVICE = "device"
    LEAVING = "leaving"  # the device, for host memory or for good; has its seat still
    DROPPING = "dropping"  # from host memory, for good


SEATED = {State.LIFTING, State.DEVICE, State.LEAVING}
TIERS = {
    State.LOADING: None,
    State.HOST: Tier.HOST,
    State.LIFTING: Tier.HOST,
    State.DEVICE: Tier.DEVICE,
    State.LEAVING: Tier.DEVICE,
    State.DROPPING: Tier.HOST,
}


@dataclass(eq=False)
class Flight:
    """A model's way up, shared by all who wait for it.

    Attributes:
        landed: under the slots' lock; those who joined wait here, so that no lease of another model
            wakes them up.
        joined: how many want a lease when it lands.
        leased: it has landed on the device, and all of them have theirs.
    """

    landed: Condition
    joined: int = 0
    done: bool = False
    leased: bool = False
    error: ClipyardError | None = None


@dataclass(eq=False)
class Slot:
    """One model of the process.

    Attributes:
        gates: how many want it gone; meanwhile it gets no new leases.
        held: bytes it has, or has been promised for the move it is making.
    """

    entry: Entry
    used_at: float
    state: State = State.LOADING
    model: Model | None = None
    flight: Flight | None = None
    leases: int = 0
    gates: int = 0
    held: Footprint = field(default_factory=Footprint)
    keep_alive_s: float | None = None
    loaded_at: float = 0.0
    load_s: float = 0.0
    lifted_at: float = 0.0

    @property
    def id(self) -> str:
        return self.entry.id

    @property
    def weights(self) -> Model:
        assert self.model is not None, f"{self.id} is not loaded"
        return self.model

    @property
    def is_idle(self) -> bool:
        return not self.leases and self.flight is None and self.state in (State.HOST, State.DEVICE)

    def leave(self) -> None:
        """Claimed: from here on only the one who claimed it may move it."""
        assert self.is_idle, f"{self.id} is {self.state} with {self.leases} leases: not to be moved"
        self.state = State.LEAVING if self.state is State.DEVICE else State.DROPPING


class Residents:
    """The slots of a process, least recently used first.

    Args:
        unified: without an accelerator there is no host tier, and only the count is limited.
    """

    def __init__(self, limits: Limits, *, unified: bool) -> None:
        self.limits = limits
        self._unified = unified
        self._slots: OrderedDict[str, Slot] = OrderedDict()
        self._going = ""  # id of the surplus

    def __iter__(self) -> Iterator[Slot]:
        return iter(self._slots.values())

    def __contains__(self, slot: Slot) -> bool:
        return self._slots.get(slot.id) is slot

    def get(self, model_id: str) -> Slot | None:
        return self._slots.get(model_id)

    def add(self, slot: Slot) -> Slot:
        self._slots[slot.id] = slot
        return slot

    def remove(self, slot: Slot) -> None:
        del self._slots[slot.id]

    def lease(self, slot: Slot, *, now: float, times: int = 1) -> None:
        slot.leases += times
        self._touch(slot, now)

    def give_back(self, slot: Slot, *, now: float) -> None:
        slot.leases -= 1
        self._touch(slot, now)

    def in_state(self, *states: State) -> list[Slot]:
        return [slot for slot in self if slot.state in states]

    def movable(self, state: State) -> list[Slot]:
        """Those that somebody else may push out, sooner or later; busy ones too."""
        return [slot for slot in self.in_state(state) if slot.id not in self.limits.pinned]

    def fits(self, device_bytes: int) -> bool:
        """Whether one more has a place on the device by the limits."""
        seated = self.in_state(*SEATED)
        return len(seated) < self.limits.slots and self._within(seated, device_bytes)

    def refuse_the_impossible(self, model_id: str, size: int) -> None:
        """
        Raises:
            OutOfMemory: so many bytes are over the limit, whoever leaves.
        """
        limit = self.limits.device_bytes
        if not self._unified and limit is not None and size > limit:
            raise OutOfMemory(f"{model_id} takes {size} bytes on the device, the limit is {limit}")

    def is_over(self) -> bool:
        """Whether more are on the device to stay than the limits allow."""
        staying = self.in_state(State.LIFTING, State.DEVICE)
        return len(staying) > self.limits.slots or not self._within(staying, 0)

    def is_gated(self, slot: Slot) -> bool:
        """Whether it has to go before it may be leased again; remembers of several which one."""
        return slot.gates > 0 or slot is self._surplus()

    def next_out(self) -> Slot | None:
        """What the next newcomer would push off the device."""
        order = self.movable(State.DEVICE)
        return next((slot for slot in order if slot.is_idle), order[0] if order else None)

    def excess(self) -> Slot | None:
        """An idle slot that has no business where it is; None if all is within the limits."""
        crowd = self.movable(State.DEVICE) if self.is_over() else []
        if self._unified or self.host_bytes() > self._host_budget():
            crowd += self.movable(State.HOST)
        return next((slot for slot in crowd if slot.is_idle), None)

    def older_in_host(self, slot: Slot, size: int, *, short: float) -> list[Slot] | None:
        """Who has to leave host memory for this slot to rest there; None if that cannot be.

        Args:
            short: bytes that the memory itself lacks for it.
        """
        short = max(short, self.host_bytes() + size - self._host_budget())
        leaving = []
        for other in self.movable(State.HOST):
            if short <= 0:
                break
            if other.is_idle:
                leaving.append(other)
                short -= other.held.host_bytes
        return None if self._unified or short > 0 else leaving

    def host_bytes(self) -> int:
        """What rests in host memory, the coming and the going included."""
        return sum(slot.held.host_bytes for slot in self if slot.flight is None)

    def loading_bytes(self) -> int:
        """What those on their way into host memory will take of it, or have taken already."""
        return sum(slot.held.host_bytes for slot in self.in_state(State.LOADING))

    def coming_bytes(self, but: Collection[Slot]) -> int:
        """As `loading_bytes`, of all but these, and with those that come down from the device."""
        others = self.in_state(State.LOADING, State.LEAVING)
        return sum(slot.held.host_bytes for slot in others if slot not in but)

    def view(self) -> tuple[SlotView, ...]:
        next_out = self.next_out()
        return tuple(
            SlotView(
                model_id=slot.id,
                is_vision=slot.entry.is_vision,
                tier=TIERS[slot.state],
                busy=not slot.is_idle,
                leases=slot.leases,
                footprint=slot.held,
                used_at=slot.used_at,
                loaded_at=slot.loaded_at,
                load_s=slot.load_s,
                keep_alive_s=slot.keep_alive_s,
                pinned=slot.id in self.limits.pinned,
                next_out=slot is next_out,
                traits=slot.model.traits if slot.model else None,
            )
            for slot in self
        )

    def _surplus(self) -> Slot | None:
        """Who goes next while more is on the device than the limits allow: the same one until it
        has gone, for each lease that ends leaves another one least recently used."""
        order = self.movable(State.DEVICE) if self.is_over() else []
        chosen = next((slot for slot in order if slot.id == self._going), next(iter(order), None))
        self._going = chosen.id if chosen else ""
        return chosen

    def _touch(self, slot: Slot, now: float) -> None:
        slot.used_at = now
        self._slots.move_to_end(slot.id)

    def _within(self, seated: list[Slot], more_bytes: int) -> bool:
        limit = self.limits.device_bytes
        if limit is None:
            return True
        return sum(slot.held.device_bytes for slot in seated) + more_bytes <= limit

    def _host_budget(self) -> float:
        return float("inf") if self.limits.host_bytes is None else self.limits.host_bytes
