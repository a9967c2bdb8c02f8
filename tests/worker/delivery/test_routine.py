"""Celery's own lines, as its loggers make them."""

import logging

import pytest
from celery import Celery
from celery.app import trace

from api_client.wire import names
from worker.delivery import routine


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

    trace.logger.addFilter(routine.is_worth_a_line)
    yield lines
    trace.logger.removeFilter(routine.is_worth_a_line)


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
