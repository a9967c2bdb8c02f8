import threading
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
import redis
from celery.exceptions import InvalidTaskError
from celery.worker import control, state

from api_client.wire.broker import celery_app
from api_client.wire.settings import Settings
from tests.flow.processes import until
from worker.delivery import consumer
from worker.delivery.consumer import renewable
from worker.delivery.transport import TakesNoWrites


@dataclass(frozen=True)
class Request:
    tag: str
    acknowledged: bool = False
    begun_at: float | None = None

    @property
    def message(self) -> SimpleNamespace:
        return SimpleNamespace(delivery_tag=self.tag)


def tags(*requests: Request) -> list[str]:
    return renewable(requests, now=100.0, longest_run_s=60.0)


def test_a_running_task_keeps_its_lease() -> None:
    assert tags(Request("young", begun_at=99.0)) == ["young"]


def test_a_task_that_waits_for_a_thread_keeps_its_lease_however_long() -> None:
    assert tags(Request("waiting", begun_at=None)) == ["waiting"]


def test_a_task_older_than_the_longest_run_loses_its_lease() -> None:
    assert tags(Request("old", begun_at=40.0), Request("young", begun_at=41.0)) == ["young"]


@pytest.mark.parametrize(("accepted_at", "kept"), [(39.0, []), (41.0, ["t"])])
def test_how_long_a_task_has_run_goes_by_the_monotonic_clock(accepted_at, kept, monkeypatch):
    monkeypatch.setattr(consumer.request, "task_accepted", lambda request: None)
    request = request_of()
    request.on_accepted(1, accepted_at)
    assert tags(request) == kept


def test_an_acknowledged_message_is_not_renewed() -> None:
    assert tags(Request("done", acknowledged=True, begun_at=99.0)) == []


def test_what_is_held_is_held_anew_by_redis_clock(store, prefix, monkeypatch):
    index, requests = f"{prefix}:index", {"1": Request("young"), "2": Request("settled")}
    monkeypatch.setattr(consumer.state, "requests", requests)
    store.zadd(index, {"young": 1.0, "another's": 2.0})
    renewals = consumer._Renewals(store, index_key=index, interval_s=1.0, longest_run_s=60.0)
    with monkeypatch.context() as an_hour_ahead:
        an_hour_ahead.setattr(consumer.time, "time", lambda: store.time()[0] + 3600.0)
        renewals._renew()
    (_, another), (tag, since) = store.zrange(index, 0, -1, withscores=True)
    assert (tag, another) == (b"young", 2.0)
    assert 0 <= store.time()[0] - since < 60


def test_what_is_held_is_held_on_once_redis_is_back(store, prefix, monkeypatch, caplog):
    index = f"{prefix}:index"
    monkeypatch.setattr(consumer.state, "requests", {"1": Request("held")})
    store.zadd(index, {"held": 1.0})
    nowhere = redis.Redis(port=1, retry=None)
    renewals = consumer._Renewals(nowhere, index_key=index, interval_s=0.01, longest_run_s=60.0)
    renewals.start()
    try:
        until(lambda: "cannot renew the lease" in caplog.text)
        renewals.client = store
        until(lambda: store.zscore(index, "held") > 1.0)
    finally:
        renewals.end()


def test_a_redis_that_takes_no_writes_is_not_asked_again_at_once(monkeypatch, caplog):
    pauses: list[float] = []
    monkeypatch.setattr(consumer, "time", SimpleNamespace(sleep=pauses.append))
    asking = consumer.Consumer.__new__(consumer.Consumer)
    with celery_app(Settings.read(redis_url="redis://redis")) as app:
        asking.conninfo = app.connection_for_read()
    asking.on_connection_error_before_connected(TakesNoWrites("it is a replica"))
    assert "it is a replica" in caplog.text
    assert pauses == [1.0]


def test_every_message_in_hand_goes_back_to_its_queue(valkey_url, prefix, keys, store):
    with celery_app(Settings.read(redis_url=valkey_url, key_prefix=prefix)) as app:
        for _ in range(3):
            app.send_task("t", queue="embed")
        with app.connection_for_write() as connection:
            channel = connection.default_channel
            held = [channel.basic_get("embed") for _ in range(2)]
            assert store.hlen(keys.held) == len(held)
            giver = SimpleNamespace(task_consumer=SimpleNamespace(channel=channel))
            assert consumer.Consumer.give_back(giver) == len(held)
            assert store.hlen(keys.held) == 0
            assert store.llen(keys.queue("embed", 0)) == 3


def test_a_message_that_is_settled_by_two_threads_at_once_is_settled_once():
    """A task that ends at the moment its revocation arrives."""
    settled, second = [], threading.Event()
    request = consumer.Request.__new__(consumer.Request)
    request._connection_errors = ()

    def on_ack(*_):
        settled.append(threading.get_ident())
        second.wait(0.2)  # the other one comes now

    request._on_ack = on_ack
    threads = [threading.Thread(target=request.acknowledge) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(settled) == 1


def request_of(**headers):
    message = SimpleNamespace(
        headers={"id": "1", "task": "t", **headers},
        body=[[], {"texts": ["canary"]}, {}],
        properties={},
        payload=[[], {"texts": ["canary"]}, {}],
        delivery_info={},
        delivery_tag="t",
        content_type=None,
        content_encoding=None,
    )
    return consumer.Request(
        message,
        app=celery_app(Settings.read(redis_url="redis://x")),
        task=SimpleNamespace(ignore_result=True, acks_late=True),
    )


@pytest.mark.parametrize(
    "odd",
    [
        {"timelimit": [None, "a"]},
        {"timelimit": [[1], 2]},
        {"shadow": [1]},
        {"stamped_headers": 5},
        {"stamped_headers": [[1]]},
    ],
)
def test_headers_that_would_fail_where_nobody_settles_the_message_are_refused_at_once(odd):
    with pytest.raises(TypeError):
        request_of(**odd)


def test_who_looks_at_a_worker_is_shown_no_text():
    request = request_of(argsrepr="()", kwargsrepr="2 texts")
    assert "canary" not in str(request.info())
    assert request.info()["kwargs"] == "2 texts"


@pytest.mark.parametrize("command", ["pool_restart", "no_such_command"])
def test_a_command_that_cannot_be_done_is_told_in_a_line_to_who_asked_and_in_the_log(
    command, caplog
):
    app = celery_app(Settings.read(redis_url="redis://unused"))
    commands, mailbox = control.Panel.data, app.control.mailbox
    node = consumer.Node("a@h", SimpleNamespace(app=app), handlers=commands, mailbox=mailbox)
    assert "Error" in node.dispatch(command)["error"]
    [line] = caplog.records
    assert command in line.getMessage()
    assert line.exc_info is None


@pytest.mark.parametrize(
    "told",
    [
        "2026-01-01T12:00:00+00:00",
        "2026-01-01T13:00:00+01:00",
        "2026-01-01T12:00:00",
        datetime(2026, 1, 1, 12, tzinfo=UTC),
    ],
)
def test_when_a_message_expires_is_told_in_iso_8601_with_or_without_a_zone(told):
    assert request_of(expires=told, eta=told).expires == datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("told", ["soon", 5, ["2026-01-01"]])
def test_a_message_that_expires_at_no_moment_is_none(told):
    with pytest.raises(InvalidTaskError):
        request_of(expires=told)


def test_what_came_too_late_is_done_when_it_is_sent_again():
    def is_too_late(until):
        return consumer.Request.maybe_expire(SimpleNamespace(id="once", expires=until))

    now = datetime.now(UTC)
    assert is_too_late(now - timedelta(hours=1))
    assert not is_too_late(now + timedelta(hours=1))
    assert not is_too_late(None)
    assert "once" not in state.revoked
