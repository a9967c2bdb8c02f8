"""The batcher with real threads and a model that misbehaves on demand."""

import gc
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import pairwise
from threading import Barrier, Event, Semaphore, Thread, current_thread
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from api_client.wire import spans
from api_client.wire.errors import (
    BackendAway,
    BackendFailed,
    Cancelled,
    DeviceLost,
    Expired,
    ImageMissing,
    NonFiniteVector,
    NoWorker,
    OutOfMemory,
)
from api_client.wire.messages import Kind, Priority
from api_client.wire.otel import Recording
from worker.backends.base import Collated, Footprint, Prepared, PreparedText, Traits
from worker.datapath import batcher
from worker.datapath.batcher import Batcher, Rows
from worker.datapath.outcomes import Known
from worker.datapath.pace import ENOUGH
from worker.datapath.sizes import GROWS_AFTER_S, Sizes
from worker.datapath.turns import Turns
from worker.processors import CLAIMS

PATIENCE_S = 30.0
BATCH = 8
AS_TEXT: dict[str, Any] = {"kind": Kind.TEXT, "prepare": lambda n: PreparedText(str(n))}


class Puppet:
    """An item is a number; its vector points where only that number points.

    Attributes:
        runs: the numbers of each forward pass, in order.
        fits: rows of the largest batch that does not run out of memory.
        misbehave: called with the numbers of a batch; may raise, or answer in the model's stead.
    """

    def __init__(self, fingerprint: str = "puppet", *, parallel: int = 1) -> None:
        kinds = (Kind.IMAGE, Kind.TEXT)
        self.traits = Traits(2, kinds, fingerprint, max_batch=BATCH, parallel=parallel)
        self.runs: list[list[int]] = []
        self.fits = BATCH
        self.misbehave: Callable[[list[int]], Any] = lambda numbers: None

    def prepare_image(self, image: Any) -> NDArray[np.uint8]:
        raise NotImplementedError

    def prepare_text(self, text: str) -> PreparedText:
        return PreparedText(text[:4], truncated=len(text) > 4)

    def collate(self, kind: Kind, rows: Collated) -> Collated:
        return rows

    def run(self, kind: Kind, batch: Collated) -> NDArray[np.float32]:
        numbers = [number_of(row) for row in batch]
        self.runs.append(numbers)
        if len(batch) > self.fits:
            raise MemoryError
        answer = self.misbehave(numbers)
        return np.stack([direction(n) * 3 for n in numbers]) if answer is None else answer

    def footprint(self) -> Footprint:
        return Footprint()

    def lift(self) -> None: ...
    def lower(self) -> None: ...
    def unload(self) -> None: ...


def prepare(number: int) -> NDArray[np.uint8]:
    return np.frombuffer(np.int64(number).tobytes(), np.uint8)


def number_of(row: Prepared) -> int:
    if isinstance(row, PreparedText):
        return int(str(row.tokens))
    return int(row.view(np.int64)[0])


def direction(number: int) -> NDArray[np.float32]:
    return np.array([np.cos(number), np.sin(number)], np.float32)


class Desk:
    """A batcher, a model and threads that call."""

    def __init__(self, batcher: Batcher, callers: ThreadPoolExecutor) -> None:
        self.batcher = batcher
        self.model = Puppet()
        self.callers = callers
        self.release = Event()

    def embed(self, *numbers: int, **options: Any) -> Rows:
        options.setdefault("priority", Priority.INTERACTIVE)
        options.setdefault("prepare", prepare)
        model = options.pop("model", self.model)
        return self.batcher.embed(
            model, options.pop("kind", Kind.IMAGE), numbers, model_id="some/model", **options
        )

    def ask(self, *numbers: int, **options: Any) -> "Future[Rows]":
        return self.callers.submit(self.embed, *numbers, **options)

    def occupy_device(self, **options: Any) -> "Future[Rows]":
        """The device is busy with number -1 until `release` is set."""
        busy = Event()

        def hold(numbers: list[int]) -> None:
            busy.set()
            assert self.release.wait(PATIENCE_S)
            holder.misbehave = lambda _: None

        holder = Puppet("holder")
        holder.misbehave = hold
        call = self.ask(-1, model=holder, **options)
        assert busy.wait(PATIENCE_S)
        return call

    def wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, "in vain"
            time.sleep(0.001)


@contextmanager
def a_desk(**options: Any) -> Iterator[Desk]:
    options = {"batch_size": BATCH, "decode_threads": 2, **options}
    with closing(Batcher(**options)) as batcher, ThreadPoolExecutor(32) as callers:
        desk = Desk(batcher, callers)
        try:
            yield desk
        finally:
            desk.release.set()


@pytest.fixture
def desk() -> Iterator[Desk]:
    with a_desk() as desk:
        yield desk


@pytest.fixture
def recorded() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    recording = Recording("tests", instance="here", processor=SimpleSpanProcessor(exporter))
    yield exporter
    recording.end()


def assert_rows(rows: Rows, numbers: Sequence[int]) -> None:
    assert len(rows.vectors) == len(numbers)
    for vector, number in zip(rows.vectors, numbers, strict=True):
        assert isinstance(vector, np.ndarray), vector
        assert vector.dtype == np.float32
        np.testing.assert_allclose(vector, direction(number), atol=1e-6)


def test_rows_come_in_the_order_of_the_items_and_have_length_one(desk: Desk) -> None:
    numbers = range(3 * BATCH + 1)
    assert_rows(desk.embed(*numbers), numbers)


def test_nothing_to_embed_is_nothing(desk: Desk) -> None:
    assert desk.embed().vectors == []


def test_many_small_calls_share_one_forward_pass(desk: Desk) -> None:
    held = desk.occupy_device()
    small = [desk.ask(number) for number in range(BATCH)]
    desk.wait_for(lambda: desk.batcher.pulse().queued == BATCH)
    desk.release.set()
    for number, call in enumerate(small):
        assert_rows(call.result(PATIENCE_S), [number])
    held.result(PATIENCE_S)
    assert sum(map(len, desk.model.runs)) == BATCH
    assert len(desk.model.runs) <= 2  # a row may still have been on its way from its decoder


def test_calls_that_share_a_forward_pass_each_have_it_in_their_own_trace(
    desk: Desk, recorded: InMemorySpanExporter
) -> None:
    def ask(number: int) -> int:
        with spans.serving({}):  # a text: it counts as queued once it is prepared
            desk.embed(number, **AS_TEXT)
            return trace.get_current_span().get_span_context().trace_id

    held = desk.occupy_device()
    calls = [desk.callers.submit(ask, number) for number in range(2)]
    desk.wait_for(lambda: desk.batcher.pulse().queued == 2)
    desk.release.set()
    traces = {call.result(PATIENCE_S) for call in calls}
    held.result(PATIENCE_S)
    made = {
        name: [span for span in recorded.get_finished_spans() if span.name == name]
        for name in (spans.Name.DECODE, spans.Name.FORWARD)
    }
    for found in made.values():
        assert {span.context.trace_id for span in found} == traces
    shared = made[spans.Name.FORWARD]
    assert {link.context.trace_id for span in shared for link in span.links} == traces
    assert shared[0].attributes is not None
    assert shared[0].attributes["clipyard.rows"] == 2


def test_a_bulk_call_runs_in_full_batches_even_when_decoding_is_slow() -> None:
    with a_desk(decode_threads=1) as desk:
        desk.embed(*range(2 * BATCH + 1), priority=Priority.BULK)
        assert [len(run) for run in desk.model.runs] == [BATCH, BATCH, 1]


def test_interactive_work_overtakes_bulk(desk: Desk) -> None:
    held = desk.occupy_device()
    bulk = desk.ask(*range(2 * BATCH), priority=Priority.BULK)
    desk.wait_for(lambda: desk.batcher.pulse().queued == 2 * BATCH)
    text = desk.ask(99, **AS_TEXT)
    desk.wait_for(lambda: desk.batcher.pulse().queued == 2 * BATCH + 1)
    desk.release.set()
    for call in (held, bulk, text):
        call.result(PATIENCE_S)
    assert desk.model.runs[0] == [99]


def test_the_next_full_batch_is_collated_while_the_device_works() -> None:
    made: list[Collated] = []
    given: list[Collated] = []

    class Collating(Puppet):
        def collate(self, kind: Kind, rows: Collated) -> Collated:
            made.append([*rows])
            return made[-1]

        def run(self, kind: Kind, batch: Collated) -> NDArray[np.float32]:
            given.append(batch)
            return super().run(kind, batch)

    with a_desk(collates_ahead=True) as desk:
        desk.model = Collating()
        desk.occupy_device()
        bulk = desk.ask(*range(BATCH + 1), priority=Priority.BULK)
        desk.wait_for(lambda: bool(made))
        assert given == []
        desk.release.set()
        assert_rows(bulk.result(PATIENCE_S), range(BATCH + 1))
        assert given[0] is made[0]
        assert len(made) == 1  # the last row had nothing to wait for


def test_a_model_that_cannot_collate_gets_the_rows_themselves_and_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tried = Semaphore(0)

    class Clumsy(Puppet):
        def collate(self, kind: Kind, rows: Collated) -> Collated:
            tried.release()
            raise AttributeError

    with a_desk(collates_ahead=True) as desk:
        desk.model = Clumsy()
        for _ in range(2):
            desk.release.clear()
            desk.occupy_device()
            bulk = desk.ask(*range(BATCH), priority=Priority.BULK)
            assert tried.acquire(timeout=PATIENCE_S)
            desk.release.set()
            assert_rows(bulk.result(PATIENCE_S), range(BATCH))
    assert caplog.text.count("collating a batch failed") == 1


def test_a_call_that_goes_while_it_is_collated_is_answered_after_it() -> None:
    begun, go_on = Event(), Event()

    class Slow(Puppet):
        def collate(self, kind: Kind, rows: Collated) -> Collated:
            begun.set()
            assert go_on.wait(PATIENCE_S)
            return rows

    with a_desk(collates_ahead=True) as desk:
        desk.model = Slow()
        held = desk.occupy_device()
        bulk = desk.ask(*range(BATCH), priority=Priority.BULK)
        assert begun.wait(PATIENCE_S)
        closing_down = desk.callers.submit(desk.batcher.close)
        desk.release.set()
        with pytest.raises(NoWorker):
            held.result(PATIENCE_S)
        assert not bulk.done()  # its model is still at work
        go_on.set()
        closing_down.result(PATIENCE_S)
        with pytest.raises(NoWorker):
            bulk.result(PATIENCE_S)
        assert desk.model.runs == []


def test_an_interactive_text_does_not_wait_for_busy_decoders(desk: Desk) -> None:
    release, at_work = Event(), Semaphore(0)

    def slow(number: int) -> NDArray[np.uint8]:
        at_work.release()
        assert release.wait(PATIENCE_S)
        return prepare(number)

    bulk = desk.ask(*range(BATCH), prepare=slow, priority=Priority.BULK)
    assert all(at_work.acquire(timeout=PATIENCE_S) for _ in range(2))  # both decoders
    text = desk.ask(5, **AS_TEXT)
    try:
        assert_rows(text.result(PATIENCE_S / 2), [5])
    finally:
        release.set()
    assert_rows(bulk.result(PATIENCE_S), range(BATCH))


def test_the_texts_of_one_interactive_call_share_one_forward_pass(desk: Desk) -> None:
    desk.embed(*range(5), **AS_TEXT)
    assert desk.model.runs == [[0, 1, 2, 3, 4]]


def test_a_model_that_allows_it_runs_in_several_threads_at_once() -> None:
    meeting = Barrier(2)  # nobody passes alone

    def meet(numbers: list[int]) -> None:
        meeting.wait(PATIENCE_S)

    with a_desk(runners=3) as desk:
        desk.model = Puppet(parallel=2)
        desk.model.misbehave = meet
        numbers = range(4 * BATCH)
        assert_rows(desk.embed(*numbers, priority=Priority.BULK), numbers)


def test_a_model_that_does_not_runs_in_one_whatever_the_runners() -> None:
    begun, go_on = Semaphore(0), Event()

    def hold(numbers: list[int]) -> None:
        begun.release()
        assert go_on.wait(PATIENCE_S)

    with a_desk(runners=3) as desk:
        desk.model.misbehave = hold
        calls = [desk.ask(*range(BATCH), priority=Priority.BULK) for _ in range(3)]
        try:
            assert begun.acquire(timeout=PATIENCE_S)
            desk.wait_for(
                lambda: desk.batcher.pulse().queued == 2 * BATCH or len(desk.model.runs) > 1
            )
            assert not begun.acquire(timeout=0.1)
        finally:
            go_on.set()
        for call in calls:
            assert_rows(call.result(PATIENCE_S), range(BATCH))


def test_what_runs_alone_always_runs_in_the_same_thread() -> None:
    threads = set()

    def look(_: list[int]) -> None:
        threads.add(current_thread().name)

    with a_desk(runners=3) as desk:
        desk.model = Puppet(parallel=3)
        desk.model.misbehave = look
        for number in range(20):
            desk.embed(number)
    assert threads == {"run-0"}


def test_the_first_runner_goes_on_with_what_is_left_behind_another() -> None:
    ran_in: dict[int, str] = {}
    busy, go_on = Event(), Event()

    def hold(numbers: list[int]) -> None:
        ran_in[numbers[0]] = current_thread().name
        busy.set()
        assert go_on.wait(PATIENCE_S)

    with a_desk(runners=2) as desk:
        desk.model.misbehave = hold
        held = desk.occupy_device()
        first = desk.ask(1)
        assert busy.wait(PATIENCE_S)
        second = desk.ask(2)
        desk.wait_for(lambda: desk.batcher.pulse().queued == 1)
        desk.release.set()
        held.result(PATIENCE_S)
        desk.wait_for(lambda: bool(desk.batcher._to_run._waiters))
        go_on.set()
        assert_rows(first.result(PATIENCE_S), [1])
        assert_rows(second.result(PATIENCE_S), [2])
    assert ran_in == {1: "run-1", 2: "run-0"}


def test_a_pass_behind_which_more_waits_says_so() -> None:
    claimed: list[bool] = []
    with a_desk() as desk:
        desk.model.misbehave = lambda _: claimed.append(bool(CLAIMS))
        desk.embed(*range(2 * BATCH), priority=Priority.BULK)
    assert claimed == [True, False]
    assert not CLAIMS


def test_bulk_is_served_when_it_has_waited_too_long() -> None:
    clock = [0.0]
    with a_desk(clock=lambda: clock[0], bulk_waits_s=5.0) as desk:
        held = desk.occupy_device()
        bulk = desk.ask(*range(BATCH), priority=Priority.BULK)
        desk.wait_for(lambda: desk.batcher.pulse().queued == BATCH)
        other = desk.ask(*range(100, 100 + BATCH))
        desk.wait_for(lambda: desk.batcher.pulse().queued == 2 * BATCH)
        clock[0] = 5.0
        desk.release.set()
        for call in (held, bulk, other):
            call.result(PATIENCE_S)
        assert sorted(desk.model.runs[0]) == list(range(BATCH))


def test_truncated_texts_are_named(desk: Desk) -> None:
    rows = desk.embed(
        1,
        2,
        3,
        kind=Kind.TEXT,
        prepare=lambda n: PreparedText(str(n), truncated=n != 2),
        priority=Priority.BULK,
    )
    assert rows.truncated == (0, 2)


def test_timings_span_from_the_first_item_to_the_last() -> None:
    now = 0.0

    def takes(seconds: float) -> None:
        nonlocal now
        now += seconds

    def slow(number: int) -> NDArray[np.uint8]:
        takes(2.0)
        return prepare(number)

    with a_desk(clock=lambda: now, decode_threads=1) as desk:
        held = desk.occupy_device()
        call = desk.ask(*range(2 * BATCH), prepare=slow, priority=Priority.BULK)
        desk.wait_for(lambda: desk.batcher.pulse().queued == 2 * BATCH and now == 4.0 * BATCH)
        desk.model.misbehave = lambda _: takes(5.0)
        desk.release.set()
        held.result(PATIENCE_S)
        rows = call.result(PATIENCE_S)
    assert (rows.decode_s, rows.forward_s) == (4.0 * BATCH, 10.0)


def test_a_batch_that_does_not_fit_is_halved_and_the_size_is_remembered(desk: Desk) -> None:
    desk.model.fits = 3
    numbers = range(2 * BATCH)
    assert_rows(desk.embed(*numbers, priority=Priority.BULK), numbers)
    assert [len(run) for run in desk.model.runs[:2]] == [BATCH, BATCH // 2]
    assert all(len(run) == 2 for run in desk.model.runs[2:])
    desk.model.runs.clear()
    desk.embed(*range(4), priority=Priority.BULK)
    assert [len(run) for run in desk.model.runs] == [2, 2]


def test_the_next_process_starts_at_the_safe_size() -> None:
    kept: dict[str, int] = {}
    with a_desk(sizes=Sizes(get=kept.get, put=kept.__setitem__)) as desk:
        desk.model.fits = 5
        desk.embed(*range(BATCH), priority=Priority.BULK)
    assert list(kept.values()) == [4]
    with a_desk(sizes=Sizes(get=kept.get, put=kept.__setitem__)) as desk:
        desk.embed(*range(BATCH), priority=Priority.BULK)
        assert [len(run) for run in desk.model.runs] == [4, 4]


@pytest.mark.parametrize(("fits", "sizes"), [(BATCH, [BATCH]), (4, [BATCH, 4, 4])])
def test_a_size_that_has_held_for_long_is_doubled_once(fits: int, sizes: list[int]) -> None:
    kept: dict[str, int] = {}
    now = 0.0
    with a_desk(sizes=Sizes(put=kept.__setitem__, clock=lambda: now)) as desk:

        def ran() -> list[int]:
            desk.model.runs.clear()
            desk.embed(*range(BATCH), priority=Priority.BULK)
            return [len(run) for run in desk.model.runs]

        desk.model.fits = 4
        assert ran() == [BATCH, 4, 4]
        desk.model.fits = fits
        assert ran() == [4, 4]
        now = GROWS_AFTER_S
        assert ran() == [4, 4]
        assert ran() == sizes
        assert list(kept.values()) == [fits]
        assert ran() == sizes[-2:]


def test_a_size_grows_in_the_middle_of_a_call() -> None:
    now = 0.0

    def run(numbers: list[int]) -> None:
        nonlocal now
        now += GROWS_AFTER_S

    with a_desk(sizes=Sizes(get=lambda space: 2, clock=lambda: now)) as desk:
        desk.model.misbehave = run
        desk.embed(*range(4 * BATCH), priority=Priority.BULK)
        assert [len(rows) for rows in desk.model.runs[:3]] == [2, 4, BATCH]


def test_a_size_that_proves_to_fit_is_doubled_soon_again() -> None:
    now = 0.0
    sizes = Sizes(clock=lambda: now)
    sizes.learn("space", 1)
    now = 10.0
    assert sizes.fitted("space", 1)
    sizes.learn("space", 1)  # the next try comes after 20 s
    now = 30.0
    assert sizes.fitted("space", 1)
    assert not sizes.fitted("space", 2)
    now = 40.0
    assert sizes.fitted("space", 2)
    assert sizes.at_most("space", BATCH) == 4


def test_smaller_batches_do_not_prove_that_a_size_fits() -> None:
    now = 0.0
    sizes = Sizes(clock=lambda: now)
    sizes.learn("space", 2)
    now = 10.0
    assert not sizes.fitted("space", 1)
    assert sizes.fitted("space", 2)
    assert not sizes.fitted("space", 2)
    sizes.learn("space", 2)  # four were too many all the same
    now = 29.0
    assert not sizes.fitted("space", 2)
    now = 30.0
    assert sizes.fitted("space", 2)


def hour(sizes: Sizes, now: list[float], *, fits: int) -> list[float]:
    """When more than fits was tried, of full batches one a second."""
    tried = []
    for _ in range(3600):
        now[0] += 1.0
        if (rows := sizes.at_most("space", BATCH)) > fits:
            tried.append(now[0])
            sizes.learn("space", rows // 2)
        else:
            sizes.fitted("space", rows)
    return tried


def test_a_size_that_holds_is_tried_again_soon_and_what_does_not_fit_ever_more_rarely() -> None:
    now = [0.0]
    sizes = Sizes(clock=lambda: now[0])
    sizes.learn("space", 1)  # a neighbour had it all, for a moment
    tried = hour(sizes, now, fits=4)
    assert tried[0] < 60
    waits = np.diff(tried)
    assert all(before <= after for before, after in pairwise(waits))
    assert GROWS_AFTER_S <= waits[-1] < GROWS_AFTER_S + 9
    assert hour(sizes, now, fits=BATCH) == []
    assert sizes.at_most("space", BATCH) == BATCH


def test_a_memory_of_sizes_that_is_away_stops_nobody() -> None:
    def away(*_: object) -> None:
        raise ConnectionError

    with a_desk(sizes=Sizes(get=away, put=away)) as desk:
        desk.model.fits = 5
        assert_rows(desk.embed(*range(BATCH)), range(BATCH))


def test_a_memory_of_sizes_is_asked_once_and_no_size_it_tells_stops_anybody() -> None:
    asked: list[str] = []

    def nothing(space: str) -> int:
        asked.append(space)
        return 0

    with a_desk(sizes=Sizes(get=nothing)) as desk:
        for _ in range(2):
            assert_rows(desk.embed(1, 2), [1, 2])
    assert len(asked) == 1


@pytest.mark.parametrize(("batch_size", "most"), [(2, 2), (2 * BATCH, BATCH)])
def test_no_batch_is_larger_than_the_setting_or_the_model_allows(
    batch_size: int, most: int
) -> None:
    with a_desk(batch_size=batch_size) as desk:
        desk.embed(*range(2 * BATCH), priority=Priority.BULK)
        assert max(map(len, desk.model.runs)) == most


def test_what_fits_of_one_model_limits_neither_another_nor_its_other_kind(desk: Desk) -> None:
    many = range(2 * BATCH)
    desk.model.fits = 2
    assert_rows(desk.embed(*many, priority=Priority.BULK), many)
    desk.model.fits = BATCH
    desk.model.runs.clear()
    other = Puppet("other")
    desk.embed(*many, model=other, priority=Priority.BULK)
    desk.embed(*many, **AS_TEXT, priority=Priority.BULK)
    assert [max(map(len, model.runs)) for model in (other, desk.model)] == [BATCH, BATCH]


def test_an_item_that_does_not_fit_alone_is_out_of_memory(desk: Desk) -> None:
    desk.model.fits = 0
    [outcome] = desk.embed(1).vectors
    assert isinstance(outcome, OutOfMemory)
    assert "some/model" in str(outcome)
    desk.model.fits = 1
    assert_rows(desk.embed(2), [2])


def test_what_is_held_around_a_pass_hears_of_its_model_and_of_what_it_raises() -> None:
    heard: list[str] = []

    @contextmanager
    def around(model_id: str) -> Iterator[None]:
        try:
            yield
            heard.append(f"{model_id} ran")
        except RuntimeError:
            heard.append(f"{model_id} failed")
            raise

    def refuse(numbers: list[int]) -> None:
        raise RuntimeError

    with a_desk(around_pass=around) as desk:
        desk.embed(1)
        desk.model.misbehave = refuse
        desk.embed(2)
    assert heard == ["some/model ran", "some/model failed"]


def test_the_culprits_of_a_failed_batch_are_found_and_their_mates_served(desk: Desk) -> None:
    def choke(numbers: list[int]) -> None:
        if {2, 5} & set(numbers):
            raise RuntimeError("secret of the back end")

    desk.model.misbehave = choke
    rows = desk.embed(*range(BATCH), priority=Priority.BULK)
    for number, outcome in enumerate(rows.vectors):
        if number in (2, 5):
            assert isinstance(outcome, BackendFailed)
            assert str(outcome) == "some/model: its back end raised RuntimeError"
        else:
            assert_rows(Rows([outcome]), [number])


def test_a_typed_error_of_the_back_end_reaches_the_caller_as_it_is(desk: Desk) -> None:
    def refuse(numbers: list[int]) -> None:
        raise BackendFailed("the server of this family said no")

    desk.model.misbehave = refuse
    [outcome] = desk.embed(1).vectors
    assert str(outcome) == "the server of this family said no"


def test_a_failure_that_will_pass_is_not_looked_for_in_halves_of_the_batch(desk: Desk) -> None:
    tried: list[int] = []

    def away(numbers: list[int]) -> None:
        tried.append(len(numbers))
        raise BackendAway("the server of this family is away")

    desk.model.misbehave = away
    outcomes = desk.embed(1, 2, 3, 4).vectors
    assert all(isinstance(outcome, BackendAway) for outcome in outcomes)
    assert sum(tried) == 4


@pytest.mark.parametrize("kind_of_error", [RuntimeError, SystemExit, KeyboardInterrupt])
def test_nothing_a_model_raises_ends_the_thread(
    desk: Desk, kind_of_error: type[BaseException]
) -> None:
    def explode(numbers: list[int]) -> None:
        raise kind_of_error

    desk.model.misbehave = explode
    assert all(isinstance(outcome, BackendFailed) for outcome in desk.embed(1, 2).vectors)
    assert desk.batcher.pulse().last_forward_ok is False
    desk.model.misbehave = lambda numbers: None
    assert_rows(desk.embed(1, 2), [1, 2])
    assert desk.batcher.pulse().last_forward_ok is True


@pytest.mark.parametrize(
    "answer",
    [np.ones((3, 2)), np.ones((2, 3)), np.ones(2), object(), "words"],
    ids=["rows", "width", "flat", "object", "words"],
)
def test_an_answer_of_the_wrong_shape_is_a_failed_back_end(desk: Desk, answer: Any) -> None:
    desk.model.misbehave = lambda numbers: answer
    assert all(isinstance(outcome, BackendFailed) for outcome in desk.embed(1, 2).vectors)


def test_a_back_end_that_drops_a_row_costs_that_row_only(desk: Desk) -> None:
    desk.model.misbehave = lambda numbers: np.stack(
        [direction(n) for n in numbers if n != 3] or [np.zeros(0)]
    )
    rows = desk.embed(*range(BATCH), priority=Priority.BULK)
    assert [isinstance(outcome, BackendFailed) for outcome in rows.vectors] == [
        number == 3 for number in range(BATCH)
    ]


def test_a_row_in_half_precision_is_normalised_though_its_square_is_out_of_range(
    desk: Desk,
) -> None:
    desk.model.misbehave = lambda numbers: np.array([[300, 400]], np.float16)
    [vector] = desk.embed(1).vectors
    assert vector == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_a_row_without_a_direction_is_an_error_and_its_mates_are_served(
    desk: Desk, bad: float
) -> None:
    desk.model.misbehave = lambda numbers: np.stack(
        [np.full(2, bad) if n == 1 else direction(n) for n in numbers]
    )
    first, second, third = desk.embed(0, 1, 2, priority=Priority.BULK).vectors
    assert isinstance(second, NonFiniteVector)
    assert_rows(Rows([first, third]), [0, 2])


def test_a_bad_item_costs_itself_only(desk: Desk) -> None:
    def careful(number: int) -> NDArray[np.uint8]:
        if number == 1:
            raise ImageMissing("no such file")
        if number == 2:
            raise KeyError("a bug")
        if number == 3:
            raise MemoryError
        return prepare(number)

    rows = desk.embed(*range(5), prepare=careful, priority=Priority.BULK)
    zero, one, two, three, four = rows.vectors
    assert isinstance(one, ImageMissing)
    assert isinstance(two, BackendFailed)
    assert "KeyError" in str(two)
    assert isinstance(three, OutOfMemory)
    assert_rows(Rows([zero, four]), [0, 4])


def test_an_expired_call_is_dropped_before_it_is_prepared(desk: Desk) -> None:
    prepared = []
    with pytest.raises(Expired):
        desk.embed(1, prepare=prepared.append, deadline=time.time() - 1)
    assert prepared == []
    assert desk.model.runs == []


def test_a_call_that_expires_while_it_waits_is_dropped_before_the_forward_pass() -> None:
    now = [1000.0]
    with a_desk(wall=lambda: now[0]) as desk:
        desk.occupy_device()
        late = desk.ask(1, deadline=1001.0, **AS_TEXT)  # counts as queued once it is prepared
        desk.wait_for(lambda: desk.batcher.pulse().queued == 1)
        now[0] = 1002.0
        desk.release.set()
        with pytest.raises(Expired):
            late.result(PATIENCE_S)
        assert desk.model.runs == []


def test_those_behind_fill_up_the_batch_of_one_that_has_gone_and_no_more() -> None:
    now = [1000.0]
    with a_desk(wall=lambda: now[0]) as desk:
        desk.occupy_device()
        late = desk.ask(1, 2, deadline=1001.0, **AS_TEXT)
        desk.wait_for(lambda: desk.batcher.pulse().queued == 2)
        others = desk.ask(*range(10, 10 + 2 * BATCH), **AS_TEXT)
        desk.wait_for(lambda: desk.batcher.pulse().queued == 2 + 2 * BATCH)
        now[0] = 1002.0
        desk.release.set()
        with pytest.raises(Expired):
            late.result(PATIENCE_S)
        assert_rows(others.result(PATIENCE_S), range(10, 10 + 2 * BATCH))
        assert [len(run) for run in desk.model.runs] == [BATCH, BATCH]


@contextmanager
def a_slow_desk() -> Iterator[tuple[Desk, list[float]]]:
    """Its passes take ten seconds of a clock that stands still otherwise; enough have been seen."""
    now = [1000.0]

    def take_long(_: list[int]) -> None:
        now[0] += 10

    with a_desk(clock=lambda: now[0], wall=lambda: now[0]) as desk:
        desk.model.misbehave = take_long
        for _ in range(ENOUGH):
            desk.embed(0)
        desk.model.runs.clear()
        yield desk, now


def test_what_cannot_be_done_in_time_makes_room_for_what_can() -> None:
    with a_slow_desk() as (desk, now):
        desk.occupy_device()
        late = desk.ask(*range(BATCH), deadline=now[0] + 25)
        desk.wait_for(lambda: desk.batcher.pulse().queued == BATCH)
        able = desk.ask(BATCH, deadline=now[0] + 100)
        desk.wait_for(lambda: desk.batcher.pulse().queued == BATCH + 1)
        now[0] += 10
        desk.release.set()
        assert_rows(able.result(PATIENCE_S), [BATCH])
        with pytest.raises(Expired, match="too much to do"):
            late.result(PATIENCE_S)
        assert desk.model.runs == [[BATCH]]


def test_a_call_behind_more_than_fits_before_its_deadline_is_refused_at_once() -> None:
    with a_slow_desk() as (desk, now):
        desk.occupy_device()
        first = desk.ask(*range(2 * BATCH))
        desk.wait_for(lambda: desk.batcher.pulse().queued == 2 * BATCH)
        with pytest.raises(Expired, match="too much to do"):
            desk.embed(99, deadline=now[0] + 40)
        desk.release.set()
        assert_rows(first.result(PATIENCE_S), range(2 * BATCH))


def test_a_call_with_little_time_is_tried_while_it_is_in_nobodys_way() -> None:
    with a_slow_desk() as (desk, now):
        assert_rows(desk.embed(1, deadline=now[0] + 5), [1])


def test_a_cancelled_call_goes_even_when_its_turn_is_far_away(desk: Desk) -> None:
    why: list[str] = []
    desk.occupy_device()
    ahead = desk.ask(*range(4 * BATCH), priority=Priority.BULK)
    desk.wait_for(lambda: desk.batcher.pulse().queued == 4 * BATCH)
    withdrawn = desk.ask(
        *range(100, 100 + 4 * BATCH),
        priority=Priority.BULK,
        cancelled=lambda: why[0] if why else None,
    )
    desk.wait_for(lambda: desk.batcher.pulse().queued == 8 * BATCH)
    why.append("revoked by an operator")
    desk.release.set()
    with pytest.raises(Cancelled, match="revoked by an operator"):
        withdrawn.result(PATIENCE_S)
    assert_rows(ahead.result(PATIENCE_S), range(4 * BATCH))
    assert all(number < 100 for run in desk.model.runs for number in run)


def test_who_waits_behind_a_call_that_goes_is_prepared_in_its_place(desk: Desk) -> None:
    leaves = Event()

    def nothing_to_decode() -> bool:
        return len(desk.batcher._to_prepare._waiters) == 2

    def cancelled() -> str | None:
        if not leaves.is_set():
            return None
        desk.wait_for(nothing_to_decode)
        return "revoked"

    desk.occupy_device()
    bulk: dict[str, Any] = {"priority": Priority.BULK}
    withdrawn = desk.ask(*range(2 * BATCH), cancelled=cancelled, **bulk)  # all that may be ahead
    desk.wait_for(lambda: desk.batcher.pulse().queued == 2 * BATCH)
    behind = desk.ask(100, **bulk)
    desk.ask(1, model=Puppet(), **AS_TEXT)
    desk.wait_for(lambda: desk.batcher.pulse().queued == 2 * BATCH + 2)
    desk.wait_for(nothing_to_decode)
    leaves.set()
    desk.release.set()
    assert_rows(behind.result(PATIENCE_S), [100])
    with pytest.raises(Cancelled):
        withdrawn.result(PATIENCE_S)


def test_what_is_known_runs_in_no_pass(desk: Desk) -> None:
    rows = desk.embed(1, 2, prepare=lambda n: Known(direction(n)) if n == 1 else prepare(n))
    assert_rows(rows, [1, 2])
    assert desk.model.runs == [[2]]


def test_a_cancel_check_that_raises_costs_its_call_only(desk: Desk) -> None:
    def broken() -> str:
        raise LookupError

    with pytest.raises(BackendFailed, match="LookupError"):
        desk.embed(1, cancelled=broken)
    assert_rows(desk.embed(1), [1])


def test_close_fails_what_waits_and_finishes_what_runs(desk: Desk) -> None:
    held = desk.occupy_device()
    waiting = desk.ask(*range(4 * BATCH), priority=Priority.BULK)
    desk.wait_for(lambda: desk.batcher.pulse().queued == 4 * BATCH)
    closing_down = desk.callers.submit(desk.batcher.close)
    with pytest.raises(NoWorker):
        waiting.result(PATIENCE_S)
    desk.release.set()
    closing_down.result(PATIENCE_S)
    with pytest.raises(NoWorker):
        held.result(PATIENCE_S)
    with pytest.raises(NoWorker):
        desk.embed(1)


def test_close_settles_what_fails_after_the_first_runner_has_ended() -> None:
    at_work: dict[int, Thread] = {}
    go_on = Event()

    def fail_late(numbers: list[int]) -> None:
        at_work[numbers[0]] = current_thread()
        if numbers[0] == 0:
            assert desk.release.wait(PATIENCE_S)
        else:
            assert go_on.wait(PATIENCE_S)
            raise RuntimeError

    with a_desk(runners=2) as desk:
        desk.model = Puppet(parallel=2)
        desk.model.misbehave = fail_late
        desk.ask(0, priority=Priority.BULK)
        desk.wait_for(lambda: 0 in at_work)
        failing = desk.ask(1, 2, priority=Priority.BULK)
        desk.wait_for(lambda: 1 in at_work)
        waiting = desk.ask(3, priority=Priority.BULK)
        desk.wait_for(lambda: desk.batcher.pulse().queued == 1)
        closing_down = desk.callers.submit(desk.batcher.close)
        with pytest.raises(NoWorker):
            waiting.result(PATIENCE_S)
        desk.release.set()
        at_work[0].join(PATIENCE_S)
        go_on.set()
        with pytest.raises(NoWorker):
            failing.result(PATIENCE_S)
        closing_down.result(PATIENCE_S)


def test_close_settles_what_is_being_prepared_when_the_runner_has_ended() -> None:
    begun, go_on = Event(), Event()

    def slow(number: int) -> NDArray[np.uint8]:
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return prepare(number)

    with a_desk(decode_threads=1) as desk:
        call = desk.ask(1, prepare=slow)
        assert begun.wait(PATIENCE_S)
        closing_down = desk.callers.submit(desk.batcher.close)
        desk.wait_for(lambda: not desk.batcher._threads[0].is_alive())
        go_on.set()
        with pytest.raises(NoWorker):
            call.result(PATIENCE_S)
        closing_down.result(PATIENCE_S)


def test_a_lost_device_is_told_to_all_who_wait_and_to_all_who_come(desk: Desk) -> None:
    def lose(numbers: list[int]) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    desk.model.misbehave = lose
    waiting = [desk.ask(n) for n in range(3)]
    for call in waiting:
        with pytest.raises(DeviceLost, match="device-side assert"):
            call.result(PATIENCE_S)
    runs = len(desk.model.runs)
    with pytest.raises(DeviceLost):
        desk.ask(9).result(PATIENCE_S)
    assert len(desk.model.runs) == runs


def test_who_waits_for_a_thread_that_ends_over_a_mistake_is_told_and_so_is_who_comes(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def mistaken(*_: object) -> None:
        raise TypeError("nobody foresaw this")

    monkeypatch.setattr(batcher, "_deliver", mistaken)
    for call in [desk.ask(n) for n in range(3)]:
        with pytest.raises(DeviceLost, match=r"a thread of the batcher has ended: TypeError$"):
            call.result(PATIENCE_S)
    with pytest.raises(DeviceLost):
        desk.ask(9).result(PATIENCE_S)
    assert "nobody foresaw this" in caplog.text


def test_an_idle_batcher_keeps_no_model_in_memory(desk: Desk) -> None:
    model = Puppet()
    desk.embed(1, 2, 3, model=model, priority=Priority.BULK)
    seen = weakref.ref(model)
    del model
    desk.wait_for(lambda: gc.collect() >= 0 and seen() is None)


def test_a_lone_text_wakes_nobody_but_the_first_runner(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for question in ("next_to_prepare", "next_batch"):
        answer = getattr(Turns, question)

        def heard(turns: Turns, now: float, answer: Any = answer) -> Any:
            asked.append(current_thread().name)
            return answer(turns, now)

        monkeypatch.setattr(Turns, question, heard)

    with a_desk(runners=2) as desk:
        desk.model = Puppet(parallel=2)
        desk.wait_for(lambda: {"decode-0", "decode-1"} <= set(asked))
        asked.clear()
        for number in range(3):
            desk.embed(number, **AS_TEXT)
        assert set(asked) == {"run-0"}


def test_a_job_may_take_its_turns_and_is_no_old_call() -> None:
    clock = [4.0]
    with a_desk(clock=lambda: clock[0]) as desk:
        desk.occupy_device(priority=Priority.BULK)
        clock[0] = 10.0
        desk.ask(1)
        desk.wait_for(lambda: desk.batcher.pulse().queued == 1)
        clock[0] = 13.0
        pulse = desk.batcher.pulse()
        assert (pulse.ages_s, pulse.calls) == ({"some/model": 3.0}, {"some/model": 2})
        desk.release.set()


def test_the_pulse_tells_how_the_device_is_doing() -> None:
    clock = [10.0]
    with a_desk(clock=lambda: clock[0]) as desk:
        assert desk.batcher.pulse().last_forward_ok is None
        held = desk.occupy_device()
        waiting = desk.ask(1)
        desk.wait_for(lambda: desk.batcher.pulse().queued == 1)
        clock[0] = 13.0
        pulse = desk.batcher.pulse()
        assert (pulse.ages_s, pulse.active_s) == ({"some/model": 3.0}, 3.0)
        desk.release.set()
        held.result(PATIENCE_S)
        waiting.result(PATIENCE_S)
        pulse = desk.batcher.pulse()
        assert (pulse.queued, pulse.active_s) == (0, 0.0)


def test_once_all_models_that_failed_have_left_nobody_knows_of_the_device(desk: Desk) -> None:
    def fail(numbers: list[int]) -> None:
        raise RuntimeError

    desk.model.misbehave = fail
    desk.embed(1)
    desk.batcher.forget("another/model")
    pulse = desk.batcher.pulse()
    assert (pulse.last_forward_ok, pulse.failing) == (False, ("some/model",))
    desk.batcher.forget("some/model")
    pulse = desk.batcher.pulse()
    assert (pulse.last_forward_ok, pulse.failing) == (None, ())
    desk.model.misbehave = lambda numbers: None
    desk.embed(1)
    desk.batcher.forget("some/model")
    assert desk.batcher.pulse().last_forward_ok


calls = st.lists(
    st.tuples(
        st.lists(st.integers(0, 999), max_size=3 * BATCH),
        st.sampled_from(Priority),
        st.sampled_from(Kind),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(
    calls=calls,
    fits=st.integers(1, BATCH),
    poison=st.sets(st.integers(0, 999), max_size=300),
    runners=st.integers(1, 3),
    collates_ahead=st.booleans(),
)
def test_any_mix_of_calls_gets_exactly_its_own_rows_in_order(
    calls: list[tuple[list[int], Priority, Kind, int]],
    fits: int,
    poison: set[int],
    runners: int,
    collates_ahead: bool,
) -> None:
    def choke(numbers: list[int]) -> None:
        if poison & set(numbers):
            raise RuntimeError

    def prepare_text(number: int) -> PreparedText:
        return PreparedText(str(number))

    models = [Puppet("one"), Puppet("two", parallel=2)]
    for model in models:
        model.fits, model.misbehave = fits, choke
    with a_desk(runners=runners, collates_ahead=collates_ahead) as desk:
        asked = [
            desk.ask(
                *numbers,
                priority=priority,
                kind=kind,
                model=models[which],
                prepare=prepare if kind is Kind.IMAGE else prepare_text,
            )
            for numbers, priority, kind, which in calls
        ]
        for (numbers, *_), call in zip(calls, asked, strict=True):
            rows = call.result(PATIENCE_S).vectors
            assert len(rows) == len(numbers)
            for number, row in zip(numbers, rows, strict=True):
                if number in poison:
                    assert isinstance(row, BackendFailed)
                else:
                    assert_rows(Rows([row]), [number])
