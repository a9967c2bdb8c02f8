"""Who goes next is decided without threads, so these tests only move a number."""

from collections.abc import Iterable
from itertools import cycle
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from api_client.wire.errors import Cancelled
from api_client.wire.messages import Kind, Priority
from worker.backends.base import PreparedText, Traits
from worker.datapath.calls import Batch, Call, Row
from worker.datapath.turns import LENGTHS, PRESENT_S, WORTHWHILE, Turns

BATCH = 4


class StandIn:
    """A model as far as turns look at it."""

    def __init__(self, *, parallel: int = 99, brief: int = 99) -> None:
        kinds = (Kind.IMAGE, Kind.TEXT)
        self.traits = Traits(2, kinds, "f", parallel=parallel, brief=brief)


class Bench:
    """Turns with a limit that can be lowered."""

    def __init__(self, bulk_waits_s: float = 10.0) -> None:
        self.limit = BATCH
        self.turns = Turns(limit=lambda call: self.limit, bulk_waits_s=bulk_waits_s)
        self.number = 0
        self.model: Any = StandIn(parallel=1)

    def call(
        self,
        items: int,
        *,
        priority: Priority = Priority.INTERACTIVE,
        kind: Kind = Kind.IMAGE,
        model: Any = None,
        now: float = 0.0,
    ) -> Call:
        call = self.new(items, priority, kind, model, now)
        self.turns.add(call)
        return call

    def own(self, items: int, *, model: Any = None, now: float = 0.0) -> list[Row]:
        """The rows of a call whose own thread prepares them."""
        return self.turns.begin(self.new(items, Priority.INTERACTIVE, Kind.TEXT, model, now))

    def new(self, items: int, priority: Priority, kind: Kind, model: Any, now: float) -> Call:
        self.number += 1
        return Call(
            number=self.number,
            model=model or self.model,
            model_id="m",
            kind=kind,
            priority=priority,
            items=range(items),
            prepare=lambda item: np.empty(0, np.uint8),
            deadline=None,
            cancelled=lambda: None,
            since=now,
        )

    def texts(self, *lengths: int) -> Call:
        call = self.call(len(lengths), kind=Kind.TEXT, priority=Priority.BULK)
        call.prepare = lambda index: PreparedText("", length=lengths[index])
        return call

    def begin(self, now: float = 0.0) -> Batch:
        """What the next forward pass holds, nothing if there is none; it goes on."""
        return self.turns.next_batch(now) or Batch([])

    def run(self, now: float = 0.0) -> Batch:
        """The same, and it ends at once."""
        batch = self.begin(now)
        if batch:
            self.turns.ended(batch)
        return batch

    def collate(self) -> Batch:
        """What is collated now, and not yet to its end."""
        batch = self.turns.next_to_collate(0)
        assert batch is not None
        return batch

    def prepare(self, *, now: float = 0.0) -> list[Row]:
        """Prepare all that may be prepared now."""
        rows = []
        while (row := self.turns.next_to_prepare(now)) is not None:
            row.prepared = row.call.prepare(row.index)
            self.turns.prepared(row)
            rows.append(row)
        return rows


def of(rows: Iterable[Row]) -> list[tuple[int, int]]:
    return [(row.call.number, row.index) for row in rows]


def test_interactive_items_are_prepared_before_older_bulk_ones() -> None:
    bench = Bench()
    bench.call(2, priority=Priority.BULK)
    bench.call(2)
    assert of(bench.prepare()) == [(2, 0), (2, 1), (1, 0), (1, 1)]


def test_small_calls_share_a_forward_pass_in_the_order_they_came() -> None:
    bench = Bench()
    for _ in range(3):
        bench.call(1)
    bench.prepare()
    assert of(bench.run(0)) == [(1, 0), (2, 0), (3, 0)]


def test_a_big_call_is_split() -> None:
    bench = Bench()
    bench.call(BATCH + 1)
    bench.prepare()
    assert [len(bench.run(0)) for _ in range(3)] == [BATCH, 1, 0]


def lengths(rows: Iterable[Row]) -> list[int]:
    return [row.length for row in rows]


def test_texts_of_like_length_run_together_whosever_they_are() -> None:
    bench = Bench()
    bench.texts(70, 5, 71, 6)
    bench.texts(8, 72, 7, 73)
    bench.prepare()
    assert [lengths(bench.run()) for _ in range(2)] == [[70, 71, 72, 73], [5, 6, 7, 8]]


def test_a_text_whose_like_are_few_fills_its_batch_with_the_next_in_length() -> None:
    bench = Bench()
    bench.texts(40, 1, 2, 3, 4, 5)
    bench.prepare()
    assert [lengths(bench.run()) for _ in range(2)] == [[3, 4, 5, 40], [1, 2]]


def test_texts_of_one_length_run_in_the_order_they_came() -> None:
    bench = Bench()
    calls = [bench.texts(9, 9, 9) for _ in range(4)]
    bench.prepare()
    ran = [pair for _ in range(3) for pair in of(bench.run())]
    assert ran == [(call.number, index) for call in calls for index in range(3)]


@given(st.lists(st.lists(st.integers(1, 77), min_size=1, max_size=9), min_size=1, max_size=9))
@example([[1] * 9] * 7)  # more than are prepared at once
def test_the_oldest_text_runs_next_whatever_its_length(arrivals: list[list[int]]) -> None:
    bench = Bench()
    waiting: list[Row] = []
    ran: list[Row] = []
    for of_a_call in arrivals:
        bench.texts(*of_a_call)
        waiting += bench.prepare()
        batch = bench.run()
        assert waiting[0] in batch
        waiting = [row for row in waiting if row not in batch]
        ran += batch
    while bench.turns.depth():
        bench.prepare()
        ran += bench.run()
    assert sorted(of(ran)) == [
        (number, index)
        for number, of_a_call in enumerate(arrivals, start=1)
        for index in range(len(of_a_call))
    ]


def test_more_texts_than_pictures_are_made_ready() -> None:
    bench = Bench()
    bench.call(99, priority=Priority.BULK)
    pictures = len(bench.prepare())
    bench.texts(*range(99))
    assert (pictures, len(bench.prepare())) == (2 * BATCH, LENGTHS * 2 * BATCH)


def test_models_kinds_and_priorities_never_share_a_forward_pass() -> None:
    bench = Bench()
    bench.call(1)
    bench.call(1, kind=Kind.TEXT)
    bench.call(1, model=StandIn(parallel=1))
    bench.call(1, priority=Priority.BULK)
    bench.prepare()
    assert [of(bench.run(0)) for _ in range(4)] == [[(1, 0)], [(2, 0)], [(3, 0)], [(4, 0)]]


def test_bulk_runs_in_brief_batches_while_somebody_asks_for_single_answers() -> None:
    bench = Bench()
    model = StandIn(parallel=2, brief=2)
    bench.call(6 * BATCH, priority=Priority.BULK, model=model)
    bench.prepare()
    assert len(bench.run(0)) == BATCH
    bench.call(2, now=1.0)
    bench.prepare(now=1.0)
    assert [len(bench.run(1.0)) for _ in range(3)] == [2, 2, 2]
    assert len(bench.run(1.0 + PRESENT_S)) == 2
    assert len(bench.run(1.1 + PRESENT_S)) == BATCH


def test_single_texts_make_the_batches_of_bulk_brief_as_well() -> None:
    bench = Bench()
    model = StandIn(brief=2)
    bench.call(2 * BATCH, priority=Priority.BULK, model=model, now=20.0)
    bench.prepare(now=20.0)
    bench.own(1, now=20.0)
    assert len(bench.run(20.0)) == 2


@pytest.mark.parametrize(
    ("ready", "batches"),
    [(2, [2]), (3, [2, 1]), (5, [4, 1]), (7, [4, 2, 1]), (9, [8, 1]), (11, [11]), (12, [11, 1])],
)
def test_there_are_few_sizes_of_batches_between_a_brief_one_and_a_full_one(
    ready: int, batches: list[int]
) -> None:
    bench, model = Bench(), StandIn(parallel=1, brief=2)
    bench.limit = 11
    for _ in range(ready):
        bench.call(1, model=model)
    bench.prepare()
    assert [len(bench.run(0)) for _ in batches] == batches


def test_bulk_batches_grow_smaller_where_a_thread_would_be_left_with_none() -> None:
    bench = Bench()
    bench.limit = 8
    bench.model = StandIn(parallel=2, brief=2)
    bench.call(4 * 8, priority=Priority.BULK)
    sizes = []
    while bench.turns.depth():
        bench.prepare()
        batch = bench.begin(0)
        bench.turns.ended(batch)
        sizes.append(len(batch))
    assert sizes == [8, 8, 8, 4, 2, 2]


def test_interactive_batches_are_never_cut_short_for_those_who_come_after() -> None:
    bench, model = Bench(), StandIn(parallel=1, brief=2)
    for _ in range(BATCH):
        bench.call(1, model=model)
    bench.prepare()
    assert len(bench.run(0)) == BATCH


def test_an_interactive_batch_may_be_larger_than_a_threads_share() -> None:
    bench = Bench()
    bench.limit = 9
    bench.model = StandIn(parallel=4, brief=3)
    for _ in range(8):
        bench.call(1)
    bench.prepare()
    assert len(bench.run()) == WORTHWHILE * 3


def test_a_burst_of_interactive_calls_is_shared_between_the_threads() -> None:
    bench = Bench()
    bench.limit = 8
    bench.model = StandIn(parallel=2, brief=2)
    for _ in range(4):
        bench.call(4)
    bench.prepare()
    first, second = bench.begin(0), bench.begin(0)
    assert (len(first), len(second)) == (8, 4)
    bench.turns.ended(first)
    assert len(bench.begin(0)) == 4


def test_interactive_runs_before_bulk_at_every_batch_boundary() -> None:
    bench = Bench()
    bench.call(2 * BATCH, priority=Priority.BULK)
    bench.prepare()
    assert of(bench.run(0))[0] == (1, 0)
    bench.call(1)
    bench.prepare()
    assert of(bench.run(0)) == [(2, 0)]
    assert of(bench.run(0))[0] == (1, BATCH)


def test_bulk_goes_first_once_when_it_has_waited_too_long() -> None:
    bench = Bench(bulk_waits_s=10)
    bench.call(2 * BATCH, priority=Priority.BULK)
    for _ in range(3):
        bench.call(BATCH)
        bench.prepare()
    assert bench.run(9.9).call.number == 2
    assert bench.run(10).rows[0].call.number == 1
    bench.prepare()
    assert bench.run(10).rows[0].call.number == 3
    assert bench.run(19.9).rows[0].call.number == 4


def test_bulk_waits_no_longer_for_the_calls_that_come_meanwhile() -> None:
    bench = Bench(bulk_waits_s=10)
    bench.call(1)
    bench.call(1, priority=Priority.BULK)
    bench.call(1, priority=Priority.BULK, now=9)
    bench.call(1, now=9)
    bench.prepare()
    assert of(bench.run(10)) == [(2, 0), (3, 0)]


def test_bulk_that_waited_too_long_is_also_prepared_first() -> None:
    bench = Bench(bulk_waits_s=10)
    bench.call(1, priority=Priority.BULK)
    bench.call(1)
    assert of(bench.prepare(now=10)) == [(1, 0), (2, 0)]


def test_time_without_any_bulk_does_not_count_as_waiting() -> None:
    bench = Bench(bulk_waits_s=10)
    bench.call(1, now=100)
    bench.call(1, priority=Priority.BULK, now=100)
    bench.prepare(now=100)
    assert of(bench.run(101)) == [(1, 0)]


def test_a_bulk_batch_waits_until_it_is_full() -> None:
    bench = Bench()
    bench.call(BATCH + 1, priority=Priority.BULK)
    for _ in range(BATCH - 1):
        row = bench.turns.next_to_prepare(0)
        assert row is not None
        bench.turns.prepared(row)
    assert not bench.run(0)
    bench.prepare()
    assert len(bench.run(0)) == BATCH


def test_a_bulk_batch_waits_though_one_call_is_ready() -> None:
    bench = Bench()
    for _ in range(BATCH):
        bench.call(1, priority=Priority.BULK)
    prepare_one(bench)
    assert not bench.run(0)
    bench.prepare()
    assert len(bench.run(0)) == BATCH


def test_a_bulk_batch_does_not_wait_when_nothing_more_is_on_the_way() -> None:
    bench = Bench()
    bench.call(2, priority=Priority.BULK)
    first, second = bench.turns.next_to_prepare(0), bench.turns.next_to_prepare(0)
    assert first is not None
    assert second is not None
    bench.turns.prepared(first)
    assert not bench.run(0)
    bench.turns.abandoned(second)
    assert of(bench.run(0)) == [(1, 0)]


def prepare_one(bench: Bench) -> None:
    row = bench.turns.next_to_prepare(0)
    assert row is not None
    bench.turns.prepared(row)


def test_an_interactive_batch_runs_as_soon_as_some_call_can_be_answered() -> None:
    bench = Bench()
    bench.call(2)
    bench.call(3)
    prepare_one(bench)
    assert not bench.run()
    prepare_one(bench)
    assert of(bench.run()) == [(1, 0), (1, 1)]


def test_an_interactive_batch_runs_beside_rows_of_a_call_that_is_not_ready_yet() -> None:
    bench = Bench()
    bench.call(2)
    bench.call(1)
    first, _, whole = (bench.turns.next_to_prepare(0) for _ in range(3))
    for row in (first, whole):
        assert row is not None
        assert not bench.run()
        bench.turns.prepared(row)
    assert of(bench.run()) == [(1, 0), (2, 0)]


def test_what_is_being_prepared_counts_for_a_threads_share() -> None:
    bench = Bench()
    bench.limit = 8
    bench.model = StandIn(parallel=2, brief=2)
    bench.call(8, priority=Priority.BULK)
    for _ in range(4):
        prepare_one(bench)
    for _ in range(4):
        assert bench.turns.next_to_prepare(0)
    assert len(bench.begin()) == 4


def test_nothing_is_kept_of_a_model_whose_last_row_could_not_be_prepared() -> None:
    bench = Bench()
    bench.call(1)
    row = bench.turns.next_to_prepare(0)
    assert row is not None
    bench.turns.abandoned(row)
    assert not bench.turns._groups


def test_nothing_is_kept_of_a_model_whose_callers_have_gone() -> None:
    bench = Bench()
    waits = bench.call(BATCH)
    bench.turns.drop(waits)
    assert not bench.turns._groups
    collated = bench.call(2 * BATCH)
    bench.prepare()
    bench.begin()
    batch = bench.collate()
    collated.gone = Cancelled("withdrawn")
    bench.turns.collated(batch)
    assert not bench.turns._groups


def test_an_interactive_call_of_many_rows_is_shared_among_the_threads() -> None:
    bench = Bench()
    bench.limit = 32
    bench.model = StandIn(parallel=2, brief=2)
    bench.call(6)
    for _ in range(2):
        assert not bench.begin(0)
        prepare_one(bench)
    assert of(bench.begin(0)) == [(1, 0), (1, 1)]
    prepare_one(bench)
    assert not bench.begin(0)
    prepare_one(bench)
    assert of(bench.begin(0)) == [(1, 2), (1, 3)]


def test_beside_another_an_interactive_batch_waits_for_a_share_of_what_is_in_sight() -> None:
    bench = Bench()
    bench.model = StandIn(parallel=2, brief=2)
    for _ in range(5):
        bench.call(1)
    prepare_one(bench)
    first = bench.begin(0)
    assert of(first) == [(1, 0)]
    prepare_one(bench)
    assert not bench.begin(0)
    prepare_one(bench)
    assert of(bench.begin(0)) == [(2, 0), (3, 0)]
    prepare_one(bench)
    bench.turns.ended(first)
    assert not bench.begin(0)  # the other one still runs
    prepare_one(bench)
    assert of(bench.begin(0)) == [(4, 0), (5, 0)]


def test_an_interactive_batch_waits_for_nobody_once_the_one_before_has_ended() -> None:
    bench = Bench()
    bench.model = StandIn(parallel=2, brief=2)
    for _ in range(3):
        bench.call(1)
    prepare_one(bench)
    assert of(bench.run()) == [(1, 0)]
    prepare_one(bench)
    assert of(bench.run()) == [(2, 0)]


def test_an_interactive_batch_does_not_wait_beside_bulk() -> None:
    bench = Bench()
    bench.model = StandIn(parallel=2, brief=2)
    bench.call(BATCH, priority=Priority.BULK)
    bench.prepare()
    assert bench.begin(0)
    bench.call(1)
    bench.call(1)
    prepare_one(bench)
    assert of(bench.begin(0)) == [(2, 0)]


@pytest.mark.parametrize("parallel", [1, 3])
def test_one_batch_more_is_prepared_than_can_run_at_once(parallel: int) -> None:
    bench = Bench()
    bench.model = StandIn(parallel=parallel)
    bench.call(10 * BATCH, priority=Priority.BULK)
    assert len(bench.prepare()) == (parallel + 1) * BATCH
    assert bench.run()
    assert len(bench.prepare()) == BATCH


def test_a_model_runs_in_no_more_threads_than_it_allows_and_holds_up_no_other() -> None:
    bench = Bench()
    bench.model = StandIn(parallel=2)
    bench.call(3 * BATCH)
    bench.call(1, kind=Kind.TEXT)
    bench.call(1, model=StandIn(parallel=1))
    bench.prepare()
    first, second = bench.begin(0), bench.begin(0)
    assert of([*first, *second]) == [(1, index) for index in range(2 * BATCH)]
    assert of(bench.begin(0)) == [(3, 0)]
    assert not bench.begin(0)
    bench.turns.ended(first)
    assert of(bench.begin(0))[0] == (1, 2 * BATCH)
    bench.turns.ended(second)
    assert of(bench.begin(0)) == [(2, 0)]


def test_a_full_batch_is_collated_while_another_runs_and_then_waits_for_its_turn() -> None:
    bench = Bench()
    bench.call(2 * BATCH, priority=Priority.BULK)
    bench.prepare()
    assert bench.turns.next_to_collate(0) is None  # it may as well run
    first = bench.begin()
    batch = bench.collate()
    assert of(batch) == [(1, index) for index in range(BATCH, 2 * BATCH)]
    bench.turns.ended(first)
    assert not bench.begin()
    assert bench.turns.collated(batch) == []
    bench.call(1)
    bench.prepare()
    assert of(bench.run()) == [(2, 0)]
    assert bench.run() is batch


def test_one_batch_is_collated_ahead_and_counts_as_prepared() -> None:
    bench = Bench()
    bench.call(10 * BATCH, priority=Priority.BULK)
    bench.call(10 * BATCH, priority=Priority.BULK, kind=Kind.TEXT)
    bench.prepare()
    bench.begin()
    assert len(bench.prepare()) == BATCH
    batch = bench.collate()
    assert bench.turns.next_to_collate(0) is None
    bench.turns.collated(batch)
    assert bench.turns.next_to_collate(0) is None
    assert bench.prepare() == []


def test_the_next_batch_is_collated_once_the_one_before_runs() -> None:
    bench = Bench()
    bench.call(10 * BATCH, priority=Priority.BULK)
    bench.prepare()
    running = bench.begin()
    for _ in range(3):
        batch = bench.collate()
        bench.turns.collated(batch)
        bench.turns.ended(running)
        running = bench.begin()
        assert running is batch
        bench.prepare()


def test_what_could_still_become_larger_is_not_collated() -> None:
    bench = Bench()
    bench.call(1)
    bench.prepare()
    bench.begin()
    bench.call(BATCH - 1)
    bench.prepare()
    assert bench.turns.next_to_collate(0) is None


def test_who_goes_while_a_batch_is_collated_leaves_it_to_the_others() -> None:
    bench = Bench()
    bench.call(BATCH + 1, priority=Priority.BULK)
    gone = bench.call(BATCH - 1, priority=Priority.BULK)
    bench.prepare()
    running = bench.begin()
    batch = bench.collate()
    gone.gone = Cancelled("withdrawn")
    assert bench.turns.drop(gone) == []
    assert of(bench.turns.collated(batch)) == [(2, index) for index in range(BATCH - 1)]
    bench.turns.ended(running)
    assert of(bench.run()) == [(1, BATCH)]
    assert bench.turns.depth() == 0


def test_a_collated_batch_that_somebody_leaves_is_what_is_left_of_its_rows() -> None:
    bench = Bench()
    first = bench.call(BATCH + 1, priority=Priority.BULK)
    bench.call(BATCH - 1, priority=Priority.BULK)
    bench.prepare()
    running = bench.begin()
    batch = bench.collate()
    batch.collated = np.zeros((BATCH, 1), np.uint8)
    bench.turns.collated(batch)
    assert of(bench.turns.drop(first)) == [(1, BATCH)]
    bench.turns.ended(running)
    left = bench.begin()
    assert of(left) == [(2, index) for index in range(BATCH - 1)]
    assert len(left.inputs) == BATCH - 1


def test_a_collated_batch_that_will_not_fit_any_more_is_cut_anew() -> None:
    bench = Bench()
    bench.call(2 * BATCH, priority=Priority.BULK)
    bench.prepare()
    running = bench.begin()
    bench.turns.collated(bench.collate())
    bench.limit = BATCH // 2
    bench.turns.return_to_front(running)
    bench.turns.ended(running)
    assert [len(bench.run()) for _ in range(5)] == [BATCH // 2] * 4 + [0]


def test_what_one_group_has_ahead_does_not_hold_up_another() -> None:
    bench = Bench()
    bench.call(10 * BATCH, priority=Priority.BULK)
    bench.prepare()
    bench.call(1, priority=Priority.BULK, kind=Kind.TEXT)
    assert of(bench.prepare()) == [(2, 0)]


def test_rows_that_did_not_fit_go_first_in_smaller_batches() -> None:
    bench = Bench()
    bench.call(BATCH)
    bench.call(BATCH)
    bench.prepare()
    batch = bench.run(0)
    bench.limit = 3
    bench.turns.return_to_front(batch)
    assert of(bench.run(0)) == [(1, 0), (1, 1), (1, 2)]
    assert of(bench.run(0)) == [(1, 3), (2, 0), (2, 1)]


def test_a_limit_that_changes_is_that_of_one_model_and_kind() -> None:
    bench = Bench()
    bench.call(BATCH, kind=Kind.TEXT)
    bench.call(BATCH, model=StandIn(parallel=1))
    failed = bench.call(BATCH)
    bench.prepare()
    bench.limit = BATCH // 2
    bench.turns.limit_changed(failed)
    ran = [bench.run() for _ in range(4)]
    assert [(batch.call.number, len(batch)) for batch in ran] == [(1, 4), (2, 4), (3, 2), (3, 2)]


def test_the_halves_of_a_failed_batch_run_apart_and_let_interactive_work_pass() -> None:
    bench = Bench()
    bench.call(BATCH, priority=Priority.BULK)
    bench.prepare()
    bench.turns.return_halves(bench.run(0))
    bench.call(1)
    bench.prepare()
    assert of(bench.run(0)) == [(2, 0)]
    assert of(bench.run(0)) == [(1, 0), (1, 1)]
    assert of(bench.run(0)) == [(1, 2), (1, 3)]


def test_the_halves_of_a_failed_batch_wait_for_no_row_behind_them() -> None:
    bench = Bench()
    bench.call(BATCH + 1, priority=Priority.BULK)
    for _ in range(BATCH):
        prepare_one(bench)
    bench.turns.return_halves(bench.run(0))
    assert of(bench.run(0)) == [(1, 0), (1, 1)]


def test_dropping_a_call_leaves_its_neighbours() -> None:
    bench = Bench()
    gone = bench.call(BATCH + 1, priority=Priority.BULK)
    bench.call(2, priority=Priority.BULK)
    bench.prepare()
    bench.turns.return_halves(bench.run(0))
    bench.call(1, priority=Priority.BULK)
    assert len(bench.turns.drop(gone)) == BATCH + 1
    bench.prepare()
    assert of(bench.run(0)) == [(2, 0), (2, 1), (3, 0)]
    assert bench.turns.depth() == 0


def test_whatever_happens_in_which_order_each_row_is_in_one_place_and_comes_to_its_end() -> None:
    """Rows are prepared, collated and run; passes fail, the limit falls, callers leave."""
    nth = st.integers(0, 99)

    class Walk(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.bench, self.now = Bench(), 0.0
            self.models = [StandIn(parallel=1, brief=2), StandIn(parallel=2)]
            self.calls: list[Call] = []
            self.preparing: list[Row] = []
            self.collating: list[Batch] = []
            self.running: list[Batch] = []

        @rule(
            items=st.sampled_from([1, BATCH, 3 * BATCH]),
            priority=st.sampled_from(Priority),
            kind=st.sampled_from(Kind),
            which=st.integers(0, 1),
        )
        def call(self, items: int, priority: Priority, kind: Kind, which: int) -> None:
            options: dict[str, Any] = {"model": self.models[which], "now": self.now}
            if priority is Priority.INTERACTIVE and kind is Kind.TEXT:
                rows = self.bench.own(items, **options)
                self.preparing += rows
                self.calls.append(rows[0].call)
            else:
                self.calls.append(self.bench.call(items, priority=priority, kind=kind, **options))

        @rule()
        def begin_to_prepare(self) -> None:
            while (row := self.bench.turns.next_to_prepare(self.now)) is not None:
                self.preparing.append(row)

        @rule(many=st.integers(1, 2 * BATCH), bad=st.integers(0, 99))
        def prepared(self, many: int, bad: int) -> None:
            for number, row in enumerate(self.preparing[:many]):
                self.preparing.remove(row)
                if row.call.gone or number == bad:
                    self.bench.turns.abandoned(row)
                    self.settle([row])
                else:
                    row.prepared = PreparedText("", length=row.index % 3)
                    self.bench.turns.prepared(row)

        @rule()
        def begin_to_collate(self) -> None:
            if (batch := self.bench.turns.next_to_collate(self.now)) is not None:
                self.collating.append(batch)
                assert len(self.collating) == 1

        @rule()
        def collated(self) -> None:
            if self.collating:
                self.settle(self.bench.turns.collated(self.collating.pop()))

        @rule()
        def begin_to_run(self) -> None:
            self.begin_to_prepare()
            self.prepared(BATCH, 99)
            if batch := self.bench.begin(self.now):
                self.running.append(batch)
                assert len({row.call.group for row in batch}) == 1
                self.begin_to_collate()

        @rule(which=nth, most=st.integers(1, BATCH))
        def others_join(self, which: int, most: int) -> None:
            if self.running:
                batch = self.running[which % len(self.running)]
                batch.rows += self.bench.turns.next_like(batch.call, most=most)

        @rule(which=nth, how=st.sampled_from(["well", "well", "does not fit", "fails"]))
        def ended(self, which: int, how: str) -> None:
            if not self.running:
                return
            batch = self.running.pop(which % len(self.running))
            if how == "does not fit" and len(batch) > 1:
                self.bench.limit = len(batch) // 2
                self.bench.turns.return_to_front(batch)
            elif how == "fails" and len(batch) > 1:
                self.bench.turns.return_halves(batch)
            else:
                self.settle(batch)
            self.bench.turns.ended(batch)

        @rule(which=nth)
        def leave(self, which: int) -> None:
            if waiting := [call for call in self.calls if call.left]:
                call = waiting[which % len(waiting)]
                call.gone = Cancelled("withdrawn")
                self.settle(self.bench.turns.drop(call))

        @rule(seconds=st.sampled_from([1.0, 11.0]))
        def wait(self, seconds: float) -> None:
            self.now += seconds

        def settle(self, rows: Iterable[Row]) -> None:
            for row in rows:
                row.call.settle(row.index, Cancelled("done with"))

        @invariant()
        def each_is_in_one_place(self) -> None:
            groups = self.bench.turns._groups.values()
            waiting = [row for group in groups for row in (*group.waiting, *group.ready)]
            waiting += [row for group in groups for batch in group.formed for row in batch]
            assert self.bench.turns.depth() == len(waiting)
            rows = [row for batch in [*self.collating, *self.running] for row in batch]
            unsettled = [
                (call.number, index)
                for call in self.calls
                for index, outcome in enumerate(call.outcomes)
                if outcome is None
            ]
            assert sorted(of([*waiting, *self.preparing, *rows])) == sorted(unsettled)

        def teardown(self) -> None:
            ends = cycle(["well", "well", "fails", "well", "well", "does not fit"])
            for _ in range(sum(call.left for call in self.calls) * 4):
                self.begin_to_prepare()
                self.prepared(2 * BATCH, 99)
                self.begin_to_run()
                self.begin_to_collate()
                self.collated()
                self.ended(0, next(ends))
                self.each_is_in_one_place()
            assert not any(call.left for call in self.calls)
            assert not self.bench.turns._groups

    run_state_machine_as_test(
        Walk, settings=settings(max_examples=25, stateful_step_count=40, deadline=None)
    )
