"""Celery's own lines, as its loggers make them."""

import logging
from types import SimpleNamespace

import pytest
import redis
from celery import Celery
from celery.app import trace
from celery.worker import request

from api_client.wire import names
from tasks import reembed, sweep
from worker import runtime
from worker.delivery import routine


@pytest.fixture(autouse=True)
def filtered():
    loggers = [logging.getLogger(name) for name in routine.LOGGERS]
    for logger in loggers:
        logger.addFilter(routine.is_worth_a_line)
    yield
    for logger in loggers:
        logger.removeFilter(routine.is_worth_a_line)


@pytest.fixture
def lines(caplog):
    """What Celery says of a task of this name that gives this."""

    def lines(name, given, *, level=logging.INFO):
        caplog.clear()
        caplog.set_level(level, logger=trace.logger.name)

        def work():
            return given

        app = Celery(set_as_current=False, broker="memory://")
        task = app.task(work, name=name, shared=False)
        assert trace.build_tracer(name, task, app=app)("an-id", (), {}).retval == given
        return [record.getMessage() for record in caplog.records]

    return lines


@pytest.fixture
def late(caplog):
    """What Celery says of a message for a task of this name that has expired."""

    def late(name, *, level=logging.INFO):
        caplog.clear()
        caplog.set_level(level, logger=request.logger.name)

        def work():
            """Nobody gets here."""

        app = Celery(set_as_current=False, broker="memory://")
        body, headers = ((), {}, None), {"id": "an-id", "task": name, "expires": "2026-01-01"}
        message = SimpleNamespace(body=body, headers=headers, delivery_info={}, properties={})
        task = app.task(work, name=name, shared=False)
        assert request.Request(message, app=app, task=task, decoded=True).revoked()
        return [record.getMessage() for record in caplog.records]

    return late


@pytest.mark.parametrize(
    ("name", "given"), [(names.JOBS_TEND, 0), (names.SWEEP, {}), (names.SWEEP_FLEET, 3)]
)
def test_the_clock_that_found_nothing_to_do_says_nothing(lines, name, given):
    assert lines(name, given) == []
    assert len(lines(name, given, level=logging.DEBUG)) == 1


@pytest.mark.parametrize(
    ("name", "given"), [(names.JOBS_TEND, 2), (names.SWEEP, {"fake/a": "idle"}), (names.LOAD, None)]
)
def test_what_was_done_is_told(lines, name, given):
    (line,) = lines(name, given)
    assert f"Task {name}[an-id] succeeded" in line


@pytest.mark.parametrize("task", [reembed.jobs_tend, sweep.sweep, sweep.sweep_fleet])
def test_of_what_the_clock_sent_and_redis_refused_a_line_is_told(caplog, monkeypatch, task):
    def here():
        raise redis.AuthenticationError("another password")

    monkeypatch.setattr(runtime, "here", here)
    caplog.set_level(logging.INFO, logger=trace.logger.name)
    trace.build_tracer(task.name, task, app=task.app)("an-id", (), {}, {"id": "an-id"})
    [record] = caplog.records
    assert f"Task {task.name}[an-id] raised expected: " in record.getMessage()
    assert not record.exc_info


@pytest.mark.parametrize("name", [names.JOBS_TEND, names.SWEEP, names.SWEEP_FLEET])
def test_what_the_clock_sent_and_came_too_late_is_passed_over(late, name):
    assert late(name) == []
    assert late(name, level=logging.DEBUG) == [f"Discarding revoked task: {name}[an-id]"]


def test_what_somebody_asked_for_and_came_too_late_is_told(late):
    assert late(names.LOAD) == [f"Discarding revoked task: {names.LOAD}[an-id]"]


@pytest.mark.parametrize(
    ("name", "level", "told"),
    [
        (names.JOBS_TEND, logging.INFO, False),
        (names.LOAD, logging.INFO, True),
        (names.JOBS_TEND, logging.ERROR, True),
    ],
)
def test_of_what_came_the_clock_s_alone_is_passed_over(name, level, told):
    data = {"name": name, "id": "an-id", "args": "()", "kwargs": "{}"}
    record = logging.LogRecord(routine.LOGGERS[0], level, __file__, 1, "%(name)s", (data,), None)
    record.data = data
    assert routine.is_worth_a_line(record) is told
