"""The batcher: threads that run models, and a pool that prepares what they eat.

No timers. A runner takes what is ready at the moment it is free; see `turns` for what goes first.
A GPU has one runner, a CPU one per core: cores that share single operations wait for each other
at the end of each, cores with a batch of their own never do. Whatever a model or a reader raises
costs its item or its call, never a thread: callers get an error, and nobody waits for ever.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal, TypeVar

from api_client.wire import correlation, spans
from api_client.wire.errors import (
    Cancelled,
    ClipyardError,
    DeviceLost,
    Expired,
    NoWorker,
    OutOfMemory,
)
from api_client.wire.messages import Kind, Priority

from .. import processors
from ..backends.base import Model, Prepared, PreparedText
from .calls import Batch, Call, Row
from .outcomes import Known, Outcome, failure, normalised
from .pace import Pace
from .pulse import Pass, Passes, Pulse
from .sizes import Sizes
from .turns import Turns

BULK_WAITS_S = 2.0  # without a turn, before bulk goes first once
CLOSE_WAITS_S = 30.0  # for a forward pass or a decoder that does not come back

TOO_MUCH = "the worker has too much to do to be done with this before its deadline"

log = logging.getLogger(__name__)
_Item = TypeVar("_Item")
Passed = Literal["ok", "failed", "out_of_memory"]


@dataclass(frozen=True)
class Rows:
    """What `embed` answers.

    Attributes:
        vectors: one per item, in order: (dimension,), finite, L2-normalised; or why there is none.
        truncated: positions of texts that were cut to the context length.
        decode_s: from the first item's preparation to the last one's end.
        forward_s: from the first forward pass to the last one's end.
    """

    vectors: list[Outcome]
    truncated: tuple[int, ...] = ()
    decode_s: float = 0.0
    forward_s: float = 0.0


class Batcher:
    """Joins what many tasks want embedded into forward passes.

    Args:
        batch_size: the most rows of a forward pass.
        decode_threads: prepare images and bulk texts.
        runners: threads that run models.
        collates_ahead: whether the next full batch is collated while another one runs: for a device
            that would wait for it.
        sizes: how many rows are known to fit; without it this process learns for itself.
        bulk_waits_s: how long interactive work may keep bulk waiting.
        on_pass: told of every forward pass: kind, rows, and what came of it; must not raise.
        around_pass: held while a model runs, which it is given the id of.
        clock, wall: seconds, monotonic and unix.
    """

    def __init__(
        self,
        *,
        batch_size: int,
        decode_threads: int,
        runners: int = 1,
        collates_ahead: bool = False,
        sizes: Sizes | None = None,
        bulk_waits_s: float = BULK_WAITS_S,
        on_pass: Callable[[Kind, int, Passed], None] = lambda kind, rows, passed: None,
        around_pass: Callable[[str], AbstractContextManager[None]] = lambda model_id: nullcontext(),
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._clock, self._wall = clock, wall
        self._batch_size, self._collates_ahead = batch_size, collates_ahead
        self._on_pass, self._around_pass = on_pass, around_pass
        self._sizes = sizes or Sizes()
        self._turns = Turns(limit=self._limit, bulk_waits_s=bulk_waits_s)
        self._pace = Pace(limit=self._limit, wall=wall)
        self._numbers = count()
        self._calls: set[Call] = set()  # copied before it is looked through: they leave at any time
        self._closed = False
        self._lost: str | None = None
        self._running: set[int] = set()  # numbers of runners
        self._uncollated: set[str] = set()  # ids of models whose last batch could not be
        self._passes = Passes()

        lock = threading.Lock()
        self._to_prepare = threading.Condition(lock)
        self._to_run = threading.Condition(lock)  # of the first runner
        self._to_help = threading.Condition(lock)  # of the others
        work: dict[str, Callable[[], None]] = {
            **{
                f"run-{n}": partial(self._work, partial(self._step_runner, n))
                for n in range(runners)
            },
            **{f"decode-{n}": self._decode for n in range(decode_threads)},
        }
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True) for name, target in work.items()
        ]
        for thread in self._threads:
            thread.start()

    def embed(
        self,
        model: Model,
        kind: Kind,
        items: Sequence[_Item],
        prepare: Callable[[_Item], Prepared | Known],
        *,
        model_id: str,
        priority: Priority,
        deadline: float | None = None,
        cancelled: Callable[[], str | None] = lambda: None,
    ) -> Rows:
        """One vector or error per item. Blocks; the caller holds a lease on `model` meanwhile.

        Args:
            prepare: one item to one row, in a thread of the pool, or the vector itself if it is
                known; raises ItemError for a bad item.
            model_id: for error messages.
            deadline: unix seconds.
            cancelled: why the call was withdrawn, or None; asked often, so it must be quick.

        Raises:
            Expired, Cancelled: the caller has gone, or will have before the work can be done; what
                had not begun was dropped.
            NoWorker: the batcher was closed.
            DeviceLost: nothing runs any more before the process is started again.
        """
        if not items:
            return Rows([])
        call = Call(
            number=next(self._numbers),
            model=model,
            model_id=model_id,
            kind=kind,
            priority=priority,
            items=items,
            prepare=prepare,
            deadline=deadline,
            cancelled=cancelled,
            since=self._clock(),
            correlation=correlation.current(),
            caller=spans.caller(),
        )
        self._sizes.recall(call.space)
        self._submit(call)
        call.done.get()
        # Without the lock, which all who have their answer from one pass would wait for.
        self._calls.discard(call)
        self._sizes.save()
        if call.decode.seconds:
            spans.past(
                spans.Name.DECODE,
                call.decode.first,
                call.decode.last,
                model=model_id,
                kind=kind,
                items=len(items),
            )
        if call.gone is not None:
            raise call.gone
        return Rows(
            vectors=[outcome for outcome in call.outcomes if outcome is not None],
            truncated=tuple(sorted(call.truncated)),
            decode_s=call.decode.seconds,
            forward_s=call.forward.seconds,
        )

    def pulse(self) -> Pulse:
        with self._to_run:
            calls = list(self._calls)
            return self._passes.pulse(calls, queued=self._turns.depth(), now=self._clock())

    def forget(self, model_id: str) -> None:
        """A model has left memory: that its last pass failed is no trouble any more."""
        with self._to_run:
            self._passes.forget(model_id)

    def close(self) -> None:
        """Fail what waits, finish what runs, end the threads."""
        with self._to_run:
            self._closed = True
            for call in list(self._calls):
                self._dismiss(call, NoWorker("this worker is stopping; ask again"))
            self._to_prepare.notify_all()
            self._to_run.notify()
            self._to_help.notify_all()
        for thread in self._threads:
            thread.join(CLOSE_WAITS_S)

    def _submit(self, call: Call) -> None:
        # A short text costs less than handing it over, and must not wait for a busy pool.
        by_itself = call.kind is Kind.TEXT and call.priority is Priority.INTERACTIVE
        with self._to_run:
            if self._closed:
                raise NoWorker("this worker is stopping; ask again")
            if self._lost is not None:
                raise DeviceLost(self._lost)
            ahead = sum(rival.left for rival in self._rivals(call))
            if ahead and self._pace.is_late(call, ahead=ahead):
                raise Expired(TOO_MUCH)
            self._calls.add(call)
            if by_itself:
                rows = self._turns.begin(call)
            else:
                self._turns.add(call)
                self._to_prepare.notify(len(call.items))
        if by_itself:
            self._prepare(rows)

    # Each step is a function of its own, so that an idle thread's frame holds no model.

    def _work(self, step: Callable[[], bool]) -> None:
        """A thread that ends over what nobody foresaw takes its worker along: all that still came
        would be waited for in vain."""
        try:
            while step():
                pass
        except BaseException as error:
            log.critical("a thread of the batcher ends", exc_info=True)
            self._lose(f"a thread of the batcher has ended: {type(error).__name__}")
            for call in list(self._calls):
                call.done.put(None)

    def _decode(self) -> None:
        processors.step_aside()
        self._work(self._step_decoder)

    def _step_decoder(self) -> bool:
        with self._to_prepare:
            while (work := self._next_work()) is None:
                if self._closed:
                    return False
                self._to_prepare.wait()
        if isinstance(work, Batch):
            self._collate(work)
        else:
            self._prepare([work])
        return True

    def _next_work(self) -> Batch | Row | None:
        now = self._clock()
        batch = self._turns.next_to_collate(now) if self._collates_ahead else None
        return batch or self._turns.next_to_prepare(now)

    def _collate(self, batch: Batch) -> None:
        """What goes wrong costs no more than time: the pass gets the rows, and does it itself."""
        call = batch.call
        try:
            batch.collated = call.model.collate(call.kind, batch.inputs)
            self._uncollated.discard(call.model_id)
        except BaseException:
            if call.model_id not in self._uncollated:  # else it has been said
                log.warning("%s: collating a batch failed", call.model_id, exc_info=True)
            self._uncollated.add(call.model_id)
        with self._to_run:
            _settle_gone(self._turns.collated(batch))
            self._wake_runners()

    def _prepare(self, rows: list[Row]) -> None:
        """Rows of one call; together they become ready, or fail."""
        call = rows[0].call
        gone = self._why_gone(call)
        start = self._clock()
        with correlation.about(call.correlation):
            settled = [None if gone else _prepare_row(row) for row in rows]
        end = self._clock()
        with self._to_run:
            if gone:
                self._dismiss(call, gone)
            else:
                call.decode.note(start, end)
            for row, outcome in zip(rows, settled, strict=True):
                self._end_preparation(row, call.gone or outcome)
            self._wake_runners()

    def _end_preparation(self, row: Row, outcome: Outcome | None) -> None:
        if outcome is None:
            self._turns.prepared(row)
        else:
            self._turns.abandoned(row)
            row.call.settle(row.index, outcome)

    def _step_runner(self, number: int) -> bool:
        with self._to_run:
            while (batch := self._next_batch(number)) is None:
                if self._closed:
                    return False
                (self._to_help if number else self._to_run).wait()
            self._running.add(number)
            if more := self._turns.depth():
                self._to_prepare.notify_all()
                self._wake_runners()
        with processors.CLAIMS if more else nullcontext():
            if wanted := self._worth_running(batch):
                self._forward(wanted)
        with self._to_run:
            self._running.discard(number)
            self._turns.ended(batch)
            if self._turns.depth():
                self._wake_runners()
        return True

    def _next_batch(self, number: int) -> Batch | None:
        """The first runner goes first: what runs alone always runs in the same thread.

        Once closed it may have ended, and what a failed pass gives back is there to be settled.
        """
        if number and 0 not in self._running and not self._closed:
            return None
        return self._turns.next_batch(self._clock())

    def _wake_runners(self) -> None:
        """Those who could run something; whoever wakes in vain takes a core from who does not."""
        self._to_run.notify()
        if 0 in self._running:
            self._to_help.notify_all()

    def _worth_running(self, batch: Batch) -> Batch:
        """The rows somebody still waits for and can get in time, filled up with those behind them.

        All calls are looked at, not only this batch's: else those behind would be no better.
        """
        calls = list(self._calls)
        gone = [(call, error) for call in calls if (error := self._why_gone(call)) is not None]
        with self._to_run:
            for call, error in gone:
                self._dismiss(call, error)
            for call in self._pace.too_late(self._rivals(batch.call)):
                self._dismiss(call, Expired(TOO_MUCH))
            wanted = [row for row in batch if row.call.gone is None]
            if len(wanted) == len(batch):
                return batch
            _settle_gone(batch)
            most = len(batch) - len(wanted)
            return Batch(wanted + self._turns.next_like(batch.call, most=most))

    def _rivals(self, like: Call) -> list[Call]:
        calls = list(self._calls)
        return [call for call in calls if call.gone is None and call.group == like.group]

    def _forward(self, batch: Batch) -> None:
        """One pass. Rows without an outcome have been given back to the queue."""
        call = batch.call
        this = Pass(self._clock(), call.model_id)
        with self._to_run:
            self._passes.begun(this)
        passed: Passed = "ok"
        try:
            with self._around_pass(call.model_id):
                raw = call.model.run(call.kind, batch.inputs)
            shape = (len(batch), call.traits.dimension)
            outcomes = normalised(raw, shape, who=call.model_id)
        except BaseException as error:
            # Dealt with here: the error's frames hold device memory that the next pass needs.
            passed = "out_of_memory" if isinstance(error, MemoryError) else "failed"
            with correlation.about_many(row.call.correlation for row in batch):
                outcomes = self._after(error, batch)
        end = self._clock()
        spans.past(
            spans.Name.FORWARD,
            this.start,
            end,
            callers=(row.call.caller for row in batch),
            model=call.model_id,
            kind=call.kind,
            rows=len(batch),
            outcome=passed,
        )
        worked = passed == "ok"
        with self._to_run:
            self._passes.ended(this, outcomes, ok=worked)
            if worked:
                self._pace.note(call, end - this.start)
                if self._sizes.fitted(call.space, len(batch)):
                    self._turns.limit_changed(call)
            for row, outcome in zip(batch, outcomes, strict=False):
                _deliver(row, outcome, this.start, end)
        # Counted last: whoever waited is woken up meanwhile.
        self._on_pass(call.kind, len(batch), passed)

    def _after(self, error: BaseException, batch: Batch) -> list[Outcome]:
        """What a batch of one gets; a larger one goes back to the queue in smaller pieces."""
        call = batch.call
        if isinstance(error, MemoryError):
            rows = max(1, len(batch) // 2)
            log.warning("%s: no memory for %d rows, now %d", call.model_id, len(batch), rows)
            self._sizes.learn(call.space, rows)
            if len(batch) == 1:
                return [OutOfMemory(f"{call.model_id}: no memory for a single {call.kind}")]
            with self._to_run:
                self._turns.return_to_front(batch)
            return []
        if self._passes.last_ok is not False:  # else it has been said
            log.warning("%s: a forward pass failed", call.model_id, exc_info=error)
        found = failure(error, f"{call.model_id}: its back end")
        if isinstance(found, DeviceLost):
            self._lose(str(found))
            return [found] * len(batch)
        if found.retryable or len(batch) == 1:  # what will pass is no row's fault
            return [found] * len(batch)
        with self._to_run:
            self._turns.return_halves(batch)
        return []

    def _lose(self, why: str) -> None:
        """Nobody is served any more, whatever was asked for."""
        with self._to_run:
            self._lost = why
            for call in list(self._calls):
                self._dismiss(call, DeviceLost(why))

    def _limit(self, call: Call) -> int:
        return self._sizes.at_most(call.space, min(self._batch_size, call.traits.max_batch))

    def _why_gone(self, call: Call) -> ClipyardError | None:
        if call.gone is not None:
            return call.gone
        if call.deadline is not None and self._wall() >= call.deadline:
            return Expired("its deadline passed before the work was done")
        try:
            reason = call.cancelled()
        except BaseException as error:
            return failure(error, "asking whether the call was withdrawn")
        return Cancelled(reason) if reason is not None else None

    def _dismiss(self, call: Call, error: ClipyardError) -> None:
        """Drop what has not begun; what is being prepared or running is settled by its thread."""
        call.gone = call.gone or error
        for row in self._turns.drop(call):
            call.settle(row.index, call.gone)
        self._to_prepare.notify_all()
        self._wake_runners()


def _prepare_row(row: Row) -> Outcome | None:
    """What the item ends as already; None if it has to run."""
    call = row.call
    try:
        prepared = call.prepare(call.items[row.index])
    except ClipyardError as error:
        return failure(error, "")
    except MemoryError:
        return OutOfMemory(f"no host memory to prepare this {call.kind}")
    except BaseException as error:
        log.warning("%s: preparing one %s failed", call.model_id, call.kind, exc_info=True)
        return failure(error, f"{call.model_id}: preparing this {call.kind}")
    if isinstance(prepared, Known):
        return prepared.vector
    row.prepared = prepared
    return None


def _settle_gone(rows: Iterable[Row]) -> None:
    for row in rows:
        if row.call.gone is not None:
            row.call.settle(row.index, row.call.gone)


def _deliver(row: Row, outcome: Outcome, start: float, end: float) -> None:
    call = row.call
    call.forward.note(start, end)
    if isinstance(row.prepared, PreparedText) and row.prepared.truncated:
        call.truncated.append(row.index)
    call.settle(row.index, outcome)
