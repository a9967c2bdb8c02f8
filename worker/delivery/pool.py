"""Celery's threads pool, with tasks that can be asked to stop, to step aside and to give way.

A thread cannot be killed, so stock `-P threads` ignores time limits and answers
`revoke(terminate=True)` and a soft shutdown with NotImplementedError. Here all three set a reason
that the running task reads between two steps of its work:

    for chunk in chunks:
        stop_if_cancelled()
        embed(chunk)

One that waits for long does so `with aside():`, and takes nobody's place meanwhile. One that waits
for what another brings does so `with parked():`, and calls `give_way` before it begins.

`-P threads` means this pool once
`celery.concurrency.ALIASES["threads"] = "worker.delivery.pool:TaskPool"` has been said: Celery
imports the app before it reads `-P`, so worker/app.py is the place. The setting
`worker_pool = "worker.delivery.pool:TaskPool"` does the same for a command line without `-P`.

Checked with celery 5.7.0.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from enum import StrEnum
from functools import partial
from threading import Lock
from typing import Any

from celery.concurrency import thread
from celery.concurrency.base import ExceptionInfo, apply_target
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.worker import state

from api_client.wire import correlation, names

__all__ = [
    "BULK_TASKS",
    "MALFORMED",
    "Reason",
    "TaskPool",
    "aside",
    "cancelled",
    "canceller",
    "give_way",
    "is_bulk",
    "others",
    "parked",
    "parked_bulk",
    "stop_if_cancelled",
]

log = logging.getLogger(__name__)

# The most tasks that wait beside the pool's own. They could be done by another worker, and each
# may have a thread and a connection to Redis.
MOST_ASIDE = 96

BULK_TASKS = 4  # at work at once; they take turns at the device
# Bulk tasks beside those: the windows of two jobs. Whoever else is aside is interactive.
MOST_PARKED = 32

# What Celery raises over a message that it cannot take apart, before there is a task to fail.
MALFORMED = AttributeError, LookupError, TypeError, ValueError


class Reason(StrEnum):
    """Why the running task should stop."""

    REVOKED = "revoked"
    TIME_LIMIT = "time limit"
    SHUTDOWN = "shutdown"


def cancelled() -> Reason | None:
    """Why the task that runs in this thread should stop, None while it should go on.

    None as well outside a task, and under any pool but this one.
    """
    run = _current.get()
    return None if run is None else run.reason()


def canceller() -> Callable[[], Reason | None]:
    """`cancelled` for the task that runs in this thread, to be asked in any other."""
    run = _current.get()
    return cancelled if run is None else run.reason


def stop_if_cancelled() -> None:
    """Raise what ends the running task with the right fate for its message and its result.

    A revoked task already has its result and its acknowledgement (`Ignore`); one that a shutdown
    interrupts goes back to the queue (`Reject`); one past its time limit has failed.
    """
    match reason := cancelled():
        case Reason.REVOKED:
            raise Ignore(reason)
        case Reason.SHUTDOWN:
            raise Reject(reason, requeue=True)
        case Reason.TIME_LIMIT:
            raise SoftTimeLimitExceeded(reason)


@contextmanager
def aside() -> Iterator[None]:
    """While the task in this thread waits for long, another may start in its place."""
    run = _current.get()
    if run is None:
        yield
        return
    _aside.add(run)
    try:
        run.pool.start_more()
        run.pool.ask_for_more()
        yield
    finally:
        _aside.discard(run)


@contextmanager
def parked() -> Iterator[None]:
    """`aside`; and other bulk may start in the place of a bulk task."""
    run = _current.get()
    if run is None or not run.is_bulk:
        with aside():
            yield
        return
    _parked.add(run)
    try:
        with aside():
            yield
    finally:
        _parked.discard(run)
        run.is_crowded_out = run.pool.bulk_at_work() > BULK_TASKS


def give_way() -> None:
    """Raise what sends the running task back to its queue, if it was parked, and others have its
    place now. Whoever is free takes it next."""
    run = _current.get()
    if run is not None and run.is_crowded_out:
        raise Reject("others have its place", requeue=True)


def parked_bulk() -> int:
    """How many bulk tasks may be held now beyond their limit, in the place of those parked."""
    return min(len(_parked), MOST_PARKED)


def others() -> int:
    """How many tasks may be held now beyond the pool's limit, in the place of those aside."""
    return min(len(_aside), MOST_ASIDE)


class _Run:
    """One task: what the executor calls, and what Celery terminates.

    Celery keeps a weak reference only; the pool's and then the executor's are those that hold it
    while the task waits and runs.
    """

    is_crowded_out = False

    def __init__(
        self, pool: "TaskPool", work: Callable[[], None], *, task_id: str | None, limit_s: float
    ) -> None:
        self.pool = pool
        request = state.requests.get(task_id)
        self.is_bulk = is_bulk(request.delivery_info if request else {})
        given = request.request_dict.get(names.CORRELATION) if request else None
        self._about = correlation.accepted(given)  # Celery's line on what came of it has it, too
        self._work = work
        self._task_id = task_id
        self._limit_s = limit_s
        self._deadline = math.inf  # on the monotonic clock, from the start of the run
        self._is_terminated = False

    def __call__(self) -> None:
        self._deadline = time.monotonic() + self._limit_s
        token = _current.set(self)
        with correlation.about(self._about):
            try:
                self._work()
            except BaseException:
                log.exception("the outcome of task %s could not be recorded", self._task_id)
                raise
            finally:
                _current.reset(token)
                self.pool.ended(self)

    def terminate(self, signal: int | None = None) -> None:
        """Called by Celery for `revoke(terminate=True)` and at the end of a soft shutdown."""
        self._is_terminated = True

    def reason(self) -> Reason | None:
        if self._is_terminated:
            return Reason.REVOKED if self._task_id in state.revoked else Reason.SHUTDOWN
        return Reason.TIME_LIMIT if time.monotonic() >= self._deadline else None


_current: ContextVar[_Run | None] = ContextVar("clipyard_current_run", default=None)
_aside: set[_Run] = set()
_parked: set[_Run] = set()


def is_bulk(told: Mapping[str, Any]) -> bool:
    """By the priority in a message's properties, or in what Celery keeps of them.

    Raises:
        TypeError: it is no number.
    """
    return bool((told.get("priority") or names.INTERACTIVE) >= names.BULK)


class TaskPool(thread.TaskPool):  # type: ignore[misc]  # celery has no types
    """Threads whose tasks learn through `cancelled` that they should stop.

    Nothing is enforced: a task that never asks runs to its end, and a cold shutdown waits for it.
    Soft and hard limit are one here, whichever is shorter, and no timer runs for them: the task
    compares its deadline with the clock when it asks.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.executor = ThreadPoolExecutor(max_workers=self.limit + MOST_ASIDE)
        self._waiting: deque[_Run] = deque()
        self._running = 0
        self._bulk: set[_Run] = set()
        self._starting = Lock()
        self._wake: Callable[[], object] = lambda: None

    def on_start(self) -> None:
        self._does_debug = False  # Celery's own line holds what is to be embedded
        self.executor.submit(bool)  # there is a thread, whatever comes, or no worker

    def register_with_event_loop(self, hub: Any) -> None:
        self._wake = partial(hub.call_soon, bool)  # anything

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        *,
        error_callback: Callable[[ExceptionInfo], object] = lambda error: None,
        correlation_id: str | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> _Run:
        limits_s = (
            soft_timeout or self.options.get("soft_timeout"),
            timeout or self.options.get("timeout"),
        )

        def settled(*args: Any, **kwargs: Any) -> Any:
            try:
                return target(*args, **kwargs)
            except MALFORMED:  # its message would be held, and come back
                error_callback(ExceptionInfo())
                raise

        run = _Run(
            self,
            partial(apply_target, settled, args, kwargs, callback, accept_callback),
            task_id=correlation_id,
            limit_s=min(filter(None, limits_s), default=math.inf),
        )
        if run.is_bulk:
            self._bulk.add(run)
        self._waiting.append(run)
        self.start_more()
        return run

    def bulk_at_work(self) -> int:
        return len(self._bulk) - parked_bulk()

    def start_more(self) -> None:
        with self._starting:
            while self._waiting and self._running < self.limit + others():
                self._running += 1
                try:
                    self.executor.submit(self._waiting.popleft())
                except RuntimeError as error:  # it stands in line all the same
                    log.warning("a task waits for one of the threads there are: %s", error)

    def ask_for_more(self) -> None:
        """The event loop asks for no message while all places are taken, and sleeps for a second
        then; only what ends wakes it up."""
        if self._running + len(self._waiting) >= self.limit + others() - 1:
            self._wake()

    def ended(self, run: _Run) -> None:
        self._bulk.discard(run)
        with self._starting:
            self._running -= 1
        self.start_more()

    def on_stop(self) -> None:
        with self._starting:  # who is starting one now would find it gone, or nobody to run it
            self._waiting.clear()
        self.executor.shutdown(wait=False, cancel_futures=True)
        log.info("no more tasks are started; waiting for those that run")
        super().on_stop()

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Nothing to kill: Celery calls `_Run.terminate` right after this."""
