"""Whose turn it is: what waits to be prepared and to run, and which of it goes next.

Pure bookkeeping: no threads, no clock, no model is called. The batcher calls it under its lock.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf

from api_client.wire.messages import Kind, Priority

from ..backends.base import Traits
from .calls import Batch, Call, Key, Row

PRESENT_S = 10.0  # who asked so lately may well ask again

WORTHWHILE = 2  # brief batches in an interactive one; a single one takes a twentieth longer a row

LENGTHS = 4  # times as many texts are made ready, so that those of a batch are of like length


@dataclass(eq=False)
class Group:
    """Rows that may share a forward pass: one model, one kind, one priority."""

    limit: int  # rows of a forward pass
    ahead: int  # forward passes whose rows may be prepared, or being prepared, before their turn
    waiting: deque[Row] = field(default_factory=deque)
    preparing: int = 0
    ready: deque[Row] = field(default_factory=deque)
    formed: list[Batch] = field(default_factory=list)  # halves of one that failed, one collated

    @property
    def may_prepare(self) -> bool:
        made = self.preparing + len(self.ready) + sum(map(len, self.formed))
        return bool(self.waiting) and made < self.ahead * self.limit

    @property
    def has_ready(self) -> bool:
        return bool(self.ready or self.formed)

    @property
    def in_sight(self) -> int:
        """Rows that are ready, or will be."""
        return len(self.waiting) + self.preparing + len(self.ready)

    def share(self, traits: Traits) -> int:
        """Rows of a batch such that every thread has one of what is in sight."""
        return _even(max(self.in_sight // traits.parallel, traits.brief), self.limit, traits)

    @property
    def has_whole_call(self) -> bool:
        """Some call waits for nothing but its turn to run."""
        return any(not row.call.unprepared for row in self.ready)

    def is_full(self, rows: int) -> bool:
        """Waiting would not make the next batch larger, which may have so many."""
        more = self.waiting or self.preparing
        return bool(self.formed) or len(self.ready) >= rows or (self.has_ready and not more)

    def take(self, rows: int) -> list[Row]:
        """The oldest row that is ready, and those beside it when all are sorted by length."""
        ordered = sorted(self.ready, key=lambda row: row.length)
        at = ordered.index(self.ready[0])
        first = min(at - at % rows, len(ordered) - rows)
        batch = ordered[first : first + rows]
        taken = set(batch)
        self.ready = deque(row for row in self.ready if row not in taken)
        return batch

    @property
    def is_empty(self) -> bool:
        return not (self.waiting or self.preparing or self.ready or self.formed)


class Turns:
    """Interactive before bulk, older calls before younger ones, both in even shares.

    Bulk that has had no turn for `bulk_waits_s` goes first once, both to be prepared and to run. No
    batch is more than a thread's share of what is in sight: full ones at first, and smaller ones
    towards the end, so that no thread still has many when the others have none; an interactive one
    may always be `WORTHWHILE`. A bulk batch waits until it holds its share. An interactive one runs
    as soon as some call can be answered; but one beside another of its group, on a CPU, waits as
    well: a row that runs alone takes as long as five that run together, from the cores that prepare
    the others. Each text of a pass takes as long as its longest, so a batch is the oldest row and
    those of like length. Of each group one batch more is prepared ahead than can run at once, and
    of texts, which are small, `LENGTHS` times as many, so memory stays bounded however much is
    queued; one full batch of all groups is collated ahead, and waits for its turn like any other.
    No model runs in more threads than it allows. For `PRESENT_S` after an interactive call bulk
    batches are the `brief` ones of their model, as the next call would have to wait for one.

    Args:
        limit: the most rows of a forward pass for this call's model and kind, as known now.
    """

    def __init__(self, *, limit: Callable[[Call], int], bulk_waits_s: float) -> None:
        self._limit = limit
        self._bulk_waits_s = bulk_waits_s
        self._bulk_turn_at = -inf
        self._interactive_at = -inf
        self._groups: dict[Key, Group] = {}
        self._running: Counter[Key] = Counter()  # batches
        self._is_collating = False

    def add(self, call: Call) -> None:
        """Queue every item of a call to be prepared."""
        self._notice(call)
        if call.priority is Priority.BULK and not self._has_bulk():
            self._bulk_turn_at = call.since
        group = self._group(call)
        group.waiting.extend(Row(call, index) for index in range(len(call.items)))

    def begin(self, call: Call) -> list[Row]:
        """The rows of a call whose own thread prepares them."""
        self._notice(call)
        self._group(call).preparing += len(call.items)
        return [Row(call, index) for index in range(len(call.items))]

    def next_to_prepare(self, now: float) -> Row | None:
        group = self._first(lambda g, _: g.may_prepare, lambda g: g.waiting[0], now)
        if group is None:
            return None
        group.preparing += 1
        return group.waiting.popleft()

    def prepared(self, row: Row) -> None:
        """A row that was being prepared can run."""
        self._end_preparation(row).ready.append(row)

    def abandoned(self, row: Row) -> None:
        """A row that was being prepared never will be."""
        self._end_preparation(row)
        self._forget_empty()

    def _end_preparation(self, row: Row) -> Group:
        group = self._group(row.call)
        group.preparing -= 1
        row.call.unprepared -= 1
        return group

    def next_to_collate(self, now: float) -> Batch | None:
        """A full batch that waits for the device alone; the caller says `collated` after it."""
        if not self._running or self._is_collating or any(g.formed for g in self._groups.values()):
            return None
        group = self._first(partial(self._fills_batch, now=now), _first_ready, now)
        if group is None:
            return None
        batch = Batch(group.take(self._most(group, group.ready[0].call, now)))
        group.preparing += len(batch)
        self._is_collating = True
        return batch

    def collated(self, batch: Batch) -> list[Row]:
        """It can run; gives those of its rows that nobody waits for any more."""
        self._is_collating = False
        group = self._group(batch.call)
        group.preparing -= len(batch)
        gone = [row for row in batch if row.call.gone is not None]
        for call in {row.call for row in gone}:
            batch = batch.without(call)
        if batch:
            group.formed.insert(0, batch)
        self._forget_empty()
        return gone

    def next_batch(self, now: float) -> Batch | None:
        """The next forward pass, if there is one yet; the caller says `ended` after it."""
        group = self._first(partial(self._may_run, now=now), _first_ready, now)
        if group is None:
            return None
        while group.formed and len(group.formed[-1]) > group.limit:  # which has fallen since
            group.ready.extendleft(reversed(group.formed.pop().rows))
        if group.formed:
            batch = group.formed.pop()
        else:
            call = group.ready[0].call
            rows = _even(len(group.ready), self._most(group, call, now), call.traits)
            batch = Batch(group.take(rows))
        if batch.call.priority is Priority.BULK:
            self._bulk_turn_at = now
        self._running[batch.call.group] += 1
        self._forget_empty()
        return batch

    def next_like(self, call: Call, *, most: int) -> list[Row]:
        """Rows that may join a batch of which this call was."""
        ready = self._group(call).ready
        rows = [ready.popleft() for _ in range(min(most, len(ready)))]
        self._forget_empty()
        return rows

    def ended(self, batch: Batch) -> None:
        """A batch does not run any more, whatever came of it."""
        key = batch.call.group
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]

    def return_to_front(self, batch: Batch) -> None:
        """A batch did not fit: its rows go first again, in batches of what the limit is now."""
        self._group(batch.call).ready.extendleft(reversed(batch.rows))
        self.limit_changed(batch.call)

    def limit_changed(self, call: Call) -> None:
        """For rows like this call's that wait already."""
        for (model, kind, _), group in self._groups.items():
            if (model, kind) == (id(call.model), call.kind):
                group.limit = self._limit(call)

    def return_halves(self, batch: Batch) -> None:
        """A batch of two or more failed: its halves run apart, before the rest of the group."""
        middle = len(batch) // 2
        first, second = Batch(batch.rows[:middle]), Batch(batch.rows[middle:])
        self._group(batch.call).formed += [second, first]

    def drop(self, call: Call) -> list[Row]:
        """Take a call's rows out, except those being prepared, collated or running."""
        group = self._group(call)
        formed = (row for batch in group.formed for row in batch)
        mine = [*group.waiting, *group.ready, *formed]
        group.waiting = deque(row for row in group.waiting if row.call is not call)
        group.ready = deque(row for row in group.ready if row.call is not call)
        group.formed = [left for batch in group.formed if (left := batch.without(call))]
        self._forget_empty()
        return [row for row in mine if row.call is call]

    def depth(self) -> int:
        """Rows that wait to be prepared or to run."""
        groups = self._groups.values()
        return sum(len(g.waiting) + len(g.ready) + sum(map(len, g.formed)) for g in groups)

    def _notice(self, call: Call) -> None:
        if call.priority is Priority.INTERACTIVE:
            self._interactive_at = call.since

    def _most(self, group: Group, call: Call, now: float) -> int:
        """Rows of a batch."""
        share, brief = group.share(call.traits), call.traits.brief
        if call.priority is Priority.INTERACTIVE:
            return max(share, min(group.limit, WORTHWHILE * brief))
        if now - self._interactive_at <= PRESENT_S:
            return min(group.limit, brief)
        return share

    def _group(self, call: Call) -> Group:
        if call.group not in self._groups:
            ahead = call.traits.parallel + 1
            if call.kind is Kind.TEXT:
                ahead *= LENGTHS
            self._groups[call.group] = Group(self._limit(call), ahead)
        return self._groups[call.group]

    def _may_run(self, group: Group, priority: Priority, *, now: float) -> bool:
        if not group.has_ready:
            return False
        call = _first_ready(group).call
        parallel = call.traits.parallel
        at_work = sum(n for (model, *_), n in self._running.items() if model == id(call.model))
        if at_work >= parallel:
            return False
        if priority is Priority.BULK:
            return group.is_full(self._most(group, call, now))
        at_once = call.group not in self._running and group.has_whole_call
        return at_once or group.is_full(group.share(call.traits))

    def _fills_batch(self, group: Group, priority: Priority, *, now: float) -> bool:
        ready = group.ready
        return bool(ready) and len(ready) >= self._most(group, ready[0].call, now)

    def _first(
        self, may: Callable[[Group, Priority], bool], head: Callable[[Group], Row], now: float
    ) -> Group | None:
        able = {key: group for key, group in self._groups.items() if may(group, key[2])}
        interactive = [group for key, group in able.items() if key[2] is Priority.INTERACTIVE]
        bulk = [group for key, group in able.items() if key[2] is Priority.BULK]
        bulk_is_owed = now - self._bulk_turn_at >= self._bulk_waits_s
        goes = bulk if bulk and (bulk_is_owed or not interactive) else interactive
        return min(goes, key=lambda group: head(group).call.number, default=None)

    def _has_bulk(self) -> bool:
        return any(priority is Priority.BULK for _, _, priority in self._groups)

    def _forget_empty(self) -> None:
        """A group keeps its rows' model alive; an unloaded one must not stay in memory."""
        self._groups = {key: group for key, group in self._groups.items() if not group.is_empty}


def _even(rows: int, most: int, traits: Traits) -> int:
    """How many of some rows run together, `most` at the most.

    Between a brief batch and a full one only doublings of a brief one: on a CPU oneDNN compiles
    kernels for every number of rows that it meets, and keeps them. With AMX, pictures through
    ViT-B-32 in one more number take 2 to 20 MB and a tenth of a second.
    """
    if traits.brief < rows < most:
        return traits.brief << (rows // traits.brief).bit_length() - 1
    return min(rows, most)


def _first_ready(group: Group) -> Row:
    return group.formed[-1].rows[0] if group.formed else group.ready[0]
