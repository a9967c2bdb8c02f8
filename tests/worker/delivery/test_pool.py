import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Event, Semaphore, Thread
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from celery.worker import state

from api_client.wire import correlation, names
from worker.delivery import pool as module
from worker.delivery.pool import (
    Reason,
    TaskPool,
    aside,
    cancelled,
    canceller,
    give_way,
    others,
    parked,
    parked_bulk,
    stop_if_cancelled,
)

PAST_AT_ONCE_S = 1e-9


class Tasks:
    """Runs callables in a pool of one thread and collects what they return."""

    def __init__(self, pool: TaskPool) -> None:
        self.pool = pool
        self._outcomes: SimpleQueue[object] = SimpleQueue()

    def submit(self, target: Callable[[], object], **options: object) -> Any:
        return self.pool.apply_async(target, callback=self._outcomes.put, **options)

    def outcome(self) -> object:
        return self._outcomes.get(timeout=10)


@pytest.fixture
def tasks() -> Iterator[Tasks]:
    pool = TaskPool(1)
    pool.start()
    yield Tasks(pool)
    pool.stop()


@pytest.fixture
def revoked() -> Iterator[str]:
    state.revoked.add("revoked task")
    yield "revoked task"
    state.revoked.discard("revoked task")


def outcome_after_terminate(tasks: Tasks, task_id: str, last_step: Callable[[], object]) -> object:
    """What `last_step` returns in a task that Celery terminates while it runs."""
    begun, terminated = Event(), Event()

    def task() -> object:
        begun.set()
        terminated.wait(10)
        return last_step()

    run = tasks.submit(task, correlation_id=task_id)
    begun.wait(10)
    run.terminate(15)
    terminated.set()
    return tasks.outcome()


def stop() -> Exception | None:
    try:
        stop_if_cancelled()
    except Exception as error:
        return error
    return None


def test_outside_a_task_nothing_is_cancelled() -> None:
    assert cancelled() is None
    stop_if_cancelled()


def test_a_task_that_nobody_stops_goes_on(tasks: Tasks) -> None:
    tasks.submit(cancelled)
    assert tasks.outcome() is None


@pytest.mark.parametrize(("given", "told"), [("order-7", "order-7"), ("a\nb", ""), (None, "")])
def test_what_celery_logs_of_a_task_is_found_under_its_callers_id(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch, given: str | None, told: str
) -> None:
    request = SimpleNamespace(delivery_info={}, request_dict={names.CORRELATION: given})
    monkeypatch.setitem(state.requests, "logged", request)
    tasks.submit(correlation.current, correlation_id="logged")
    assert tasks.outcome() == told


def test_a_revoked_task_learns_that_it_was_revoked(tasks: Tasks, revoked: str) -> None:
    assert outcome_after_terminate(tasks, revoked, cancelled) is Reason.REVOKED


def test_a_task_that_is_terminated_but_not_revoked_learns_of_a_shutdown(tasks: Tasks) -> None:
    assert outcome_after_terminate(tasks, "another task", cancelled) is Reason.SHUTDOWN


def test_another_thread_can_ask_for_a_task(tasks: Tasks, revoked: str) -> None:
    def ask_elsewhere() -> object:
        ask = canceller()
        with ThreadPoolExecutor(1) as elsewhere:
            return elsewhere.submit(ask).result()

    assert outcome_after_terminate(tasks, revoked, ask_elsewhere) is Reason.REVOKED


@pytest.mark.parametrize(
    "limits",
    [
        {"soft_timeout": PAST_AT_ONCE_S},
        {"timeout": PAST_AT_ONCE_S},
        {"soft_timeout": 1000, "timeout": PAST_AT_ONCE_S},
    ],
    ids=["soft", "hard", "the shorter"],
)
def test_a_task_past_its_time_limit_learns_so(tasks: Tasks, limits: dict[str, float]) -> None:
    tasks.submit(cancelled, **limits)
    assert tasks.outcome() is Reason.TIME_LIMIT


@pytest.mark.parametrize("limit", ["soft_timeout", "timeout"])
def test_the_limit_of_the_whole_pool_counts_for_a_task_without_one(limit: str) -> None:
    pool = TaskPool(1, **{limit: PAST_AT_ONCE_S})
    pool.start()
    tasks = Tasks(pool)
    tasks.submit(cancelled)
    assert tasks.outcome() is Reason.TIME_LIMIT
    pool.stop()


def test_the_end_of_one_task_leaves_the_next_in_its_thread_alone(tasks: Tasks) -> None:
    tasks.submit(cancelled, timeout=PAST_AT_ONCE_S)
    tasks.submit(cancelled)
    assert [tasks.outcome(), tasks.outcome()] == [Reason.TIME_LIMIT, None]


def test_past_its_time_limit_a_task_fails(tasks: Tasks) -> None:
    tasks.submit(stop, timeout=PAST_AT_ONCE_S)
    assert isinstance(tasks.outcome(), SoftTimeLimitExceeded)


def test_a_revoked_task_ends_without_another_result(tasks: Tasks, revoked: str) -> None:
    assert isinstance(outcome_after_terminate(tasks, revoked, stop), Ignore)


def test_a_task_that_a_shutdown_interrupts_goes_back_to_the_queue(tasks: Tasks) -> None:
    error = outcome_after_terminate(tasks, "another task", stop)
    assert isinstance(error, Reject)
    assert error.requeue


def test_who_steps_aside_while_the_pool_stops_does_not_hear_of_it(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor, go_on, starting = tasks.pool.executor, Event(), Event()
    submit = executor.submit

    def step_aside() -> object:
        go_on.wait(10)
        with aside():
            return "done"

    def slowly(run: Callable[[], None]) -> object:
        starting.set()
        time.sleep(0.1)  # the pool stops meanwhile, unless it waits
        return submit(run)

    tasks.submit(step_aside)
    tasks.pool.apply_async(bool, callback=bool)  # would take its place
    monkeypatch.setattr(executor, "submit", slowly)
    go_on.set()
    starting.wait(10)
    tasks.pool.stop()
    assert tasks.outcome() == "done"
    assert others() == 0


def test_a_message_that_celery_cannot_take_apart_is_settled_and_leaves_its_thread(
    tasks: Tasks,
) -> None:
    def take_apart() -> None:
        raise KeyError("lang")

    settled: SimpleQueue[Any] = SimpleQueue()
    tasks.submit(take_apart, error_callback=settled.put)
    assert settled.get(timeout=10).type is KeyError
    tasks.submit(lambda: "the next one")
    assert tasks.outcome() == "the next one"


def test_what_a_task_is_given_is_no_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    pool = TaskPool(1)
    pool.start()
    tasks = Tasks(pool)
    tasks.submit(len, args=("what somebody searched for",))
    assert tasks.outcome() == len("what somebody searched for")
    pool.stop()
    assert "searched" not in caplog.text


def test_outside_a_task_nobody_leaves_a_place_to_others() -> None:
    with aside(), parked():
        give_way()
        assert (others(), parked_bulk()) == (0, 0)


@pytest.mark.parametrize(("priority", "of_bulk"), [(names.BULK, 1), (names.INTERACTIVE, 0)])
def test_who_is_parked_leaves_a_place_to_bulk_only_if_it_is_bulk(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch, priority: int, of_bulk: int
) -> None:
    request = SimpleNamespace(delivery_info={"priority": priority}, request_dict={})
    monkeypatch.setitem(state.requests, "parked", request)

    def park() -> tuple[int, int]:
        with parked():
            return others(), parked_bulk()

    tasks.submit(park, correlation_id="parked")
    assert tasks.outcome() == (1, of_bulk)
    assert (others(), parked_bulk()) == (0, 0)


@pytest.mark.parametrize(("most", "count"), [("MOST_ASIDE", others), ("MOST_PARKED", parked_bulk)])
def test_no_more_places_are_left_than_one_worker_may_take_messages_for(
    monkeypatch: pytest.MonkeyPatch, most: str, count: Callable[[], int]
) -> None:
    monkeypatch.setattr(module, most, 1)
    pool, go_on, waiting = TaskPool(2), Event(), Semaphore(0)
    pool.start()
    tasks = Tasks(pool)

    def park() -> None:
        with parked():
            waiting.release()
            go_on.wait(10)

    for name in ("one", "two"):
        request = SimpleNamespace(delivery_info={"priority": names.BULK}, request_dict={})
        monkeypatch.setitem(state.requests, name, request)
        tasks.submit(park, correlation_id=name)
    both = [waiting.acquire(timeout=10) for _ in range(2)]
    left = count()
    go_on.set()
    assert [tasks.outcome(), tasks.outcome()] == [None, None]
    pool.stop()
    assert (both, left) == ([True, True], 1)


@pytest.mark.parametrize("wait", [aside, parked])
def test_who_fails_while_it_waits_leaves_no_place_afterwards(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch, wait: Callable[[], Any]
) -> None:
    request = SimpleNamespace(delivery_info={"priority": names.BULK}, request_dict={})
    monkeypatch.setitem(state.requests, "fails", request)

    def fail() -> tuple[int, int]:
        with suppress(ZeroDivisionError), wait():
            raise ZeroDivisionError
        return others(), parked_bulk()

    tasks.submit(fail, correlation_id="fails")
    assert tasks.outcome() == (0, 0)


@pytest.mark.parametrize(
    ("priority", "beside", "goes_back"),
    [
        (names.BULK, names.BULK, True),
        (names.BULK, names.INTERACTIVE, False),
        (names.INTERACTIVE, names.BULK, False),
    ],
)
def test_a_bulk_task_that_was_parked_goes_back_where_other_bulk_has_its_place(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch, priority: int, beside: int, goes_back: bool
) -> None:
    monkeypatch.setattr(module, "BULK_TASKS", 1)
    for name, step in (("parked", priority), ("beside", beside)):
        request = SimpleNamespace(delivery_info={"priority": step}, request_dict={})
        monkeypatch.setitem(state.requests, name, request)
    begun, has_given_way = Event(), Event()

    def take_its_place() -> str:
        begun.set()
        has_given_way.wait(10)
        return "beside"

    def park() -> Exception | None:
        with parked():
            begun.wait(10)
        try:
            give_way()
        except Reject as error:
            return error
        finally:
            has_given_way.set()
        return None

    tasks.submit(park, correlation_id="parked")
    tasks.submit(take_its_place, correlation_id="beside")
    outcomes = [tasks.outcome(), tasks.outcome()]
    assert "beside" in outcomes
    assert any(isinstance(one, Reject) and one.requeue for one in outcomes) is goes_back


def test_a_bulk_task_that_was_parked_keeps_its_place_while_the_others_are_parked(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BULK_TASKS", 1)
    for name in ("first", "second"):
        request = SimpleNamespace(delivery_info={"priority": names.BULK}, request_dict={})
        monkeypatch.setitem(state.requests, name, request)
    second_waits, first_has_gone_on = Event(), Event()

    def first() -> str:
        with parked():
            second_waits.wait(10)
        try:
            give_way()
        finally:
            first_has_gone_on.set()
        return "first"

    def second() -> str:
        with parked():
            second_waits.set()
            first_has_gone_on.wait(10)
        return "second"

    tasks.submit(first, correlation_id="first")
    tasks.submit(second, correlation_id="second")
    assert {tasks.outcome(), tasks.outcome()} == {"first", "second"}


def test_a_bulk_task_that_has_ended_leaves_its_place_to_others(
    tasks: Tasks, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = SimpleNamespace(delivery_info={"priority": names.BULK}, request_dict={})
    monkeypatch.setitem(state.requests, "bulk", request)
    tasks.submit(tasks.pool.bulk_at_work, correlation_id="bulk")
    tasks.submit(tasks.pool.bulk_at_work)  # in the same thread, so after its end
    assert [tasks.outcome(), tasks.outcome()] == [1, 0]


def test_tasks_begin_in_the_order_they_came(tasks: Tasks) -> None:
    go_on = Event()
    tasks.submit(partial(go_on.wait, 10))
    for number in range(3):
        tasks.submit(partial(int, number))
    go_on.set()
    assert [tasks.outcome() for _ in range(4)] == [True, 0, 1, 2]


@pytest.mark.parametrize("at_work", [0, 1])
def test_where_no_thread_is_to_be_had_a_task_is_done_by_one_of_those_there_are(
    at_work: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: Thread) -> None:
        raise RuntimeError("can't start new thread")

    pool, go_on = TaskPool(2), Event()
    pool.start()
    tasks = Tasks(pool)
    for _ in range(at_work):
        tasks.submit(partial(go_on.wait, 10))
    monkeypatch.setattr(Thread, "start", refuse)
    tasks.submit(lambda: "done")
    go_on.set()
    assert [tasks.outcome() for _ in range(at_work + 1)] == [True] * at_work + ["done"]
    monkeypatch.undo()
    pool.stop()


@pytest.mark.parametrize(("places", "times"), [(1, 1), (2, 0)])
def test_the_event_loop_is_woken_up_when_who_took_the_last_place_steps_aside(
    places: int, times: int
) -> None:
    woken: list[object] = []
    pool = TaskPool(places)
    pool.register_with_event_loop(SimpleNamespace(call_soon=woken.append))
    tasks = Tasks(pool)

    def step_aside() -> None:
        with aside():
            pass

    tasks.submit(step_aside)
    tasks.outcome()
    assert len(woken) == times
    pool.stop()
