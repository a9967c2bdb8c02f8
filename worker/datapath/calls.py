"""One call of the batcher, its rows, and the batches that they run in."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from queue import SimpleQueue
from typing import Any

import numpy as np

from api_client.wire.errors import ClipyardError
from api_client.wire.messages import Kind, Priority
from api_client.wire.spans import Caller

from ..backends.base import Collated, Model, Prepared, PreparedText, Traits
from .outcomes import Known, Outcome

Key = tuple[int, Kind, Priority]  # the model by identity: its calls keep it alive

NOT_YET = np.empty(0, np.uint8)


@dataclass
class Span:
    """From the first start to the last end of something that happens in pieces."""

    first: float = inf
    last: float = -inf

    def note(self, start: float, end: float) -> None:
        self.first, self.last = min(self.first, start), max(self.last, end)

    @property
    def seconds(self) -> float:
        return max(0.0, self.last - self.first)


@dataclass(eq=False)
class Call:
    """One `embed` that has not been answered yet.

    Attributes:
        number: calls are served in this order within their priority.
        since: when it came, by the batcher's clock.
        correlation: whose it is, for the log.
        caller: whose it is, for the trace.
        outcomes: one per item; None until it is settled.
        left: items that are not settled.
        unprepared: items that wait to be prepared, or are being prepared.
        gone: why nobody waits for it any more; its items are dropped.
        done: given something when every item is settled. Of an Event, whoever waits is woken up
            only to wait for its lock.
        group: calls of one group may share a forward pass; the model by identity.
        space: what a safe batch size is remembered by; the device is for the memory to add.
    """

    number: int
    model: Model
    model_id: str
    kind: Kind
    priority: Priority
    items: Sequence[Any]
    prepare: Callable[[Any], Prepared | Known]
    deadline: float | None
    cancelled: Callable[[], str | None]
    since: float
    correlation: str = ""
    caller: Caller | None = None
    traits: Traits = field(init=False)
    outcomes: list[Outcome | None] = field(init=False)
    left: int = field(init=False)
    unprepared: int = field(init=False)
    gone: ClipyardError | None = None
    truncated: list[int] = field(default_factory=list)
    decode: Span = field(default_factory=Span)
    forward: Span = field(default_factory=Span)
    done: SimpleQueue[None] = field(default_factory=SimpleQueue)
    group: Key = field(init=False)
    space: str = field(init=False)

    def __post_init__(self) -> None:
        self.traits = self.model.traits
        self.group = id(self.model), self.kind, self.priority
        self.left = self.unprepared = len(self.items)
        self.outcomes = [None] * self.left
        self.space = f"{self.traits.fingerprint}:{self.traits.precision}:{self.kind}"

    def settle(self, index: int, outcome: Outcome) -> None:
        self.outcomes[index] = outcome
        self.left -= 1
        if not self.left:
            self.done.put(None)


@dataclass(eq=False, slots=True)
class Row:
    """One item of a call on its way through the batcher."""

    call: Call
    index: int
    prepared: Prepared = field(default_factory=lambda: NOT_YET)

    @property
    def length(self) -> int:
        return self.prepared.length if isinstance(self.prepared, PreparedText) else 0


@dataclass(eq=False)
class Batch:
    """Rows of one group that run together: what they are, and what their model gets.

    Attributes:
        collated: what the model made of them ahead of the pass; None if nothing.
    """

    rows: list[Row]
    collated: Collated | None = None

    @property
    def call(self) -> Call:
        return self.rows[0].call

    @property
    def inputs(self) -> Collated:
        return [row.prepared for row in self.rows] if self.collated is None else self.collated

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def without(self, call: Call) -> "Batch":
        rows = [row for row in self if row.call is not call]
        return self if len(rows) == len(self) else Batch(rows)
