"""The gate in front of bulk messages, with a real server and a real worker."""

import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Reject
from kombu.transport import TRANSPORT_ALIASES, redis, resolve_transport
from redis import ConnectionError, OutOfMemoryError
from redis import from_url as client_of
from redis._parsers.base import BaseParser

from api_client import vigil
from api_client.stack.valkey import PrivateValkey
from api_client.wire import names
from api_client.wire.broker import celery_app
from api_client.wire.names import Keys
from api_client.wire.settings import Settings
from tests.flow.processes import Valkey, until
from worker.delivery import pool, transport
from worker.delivery.transport import Channel, Transport, priorities, use

BULK_TASKS = 2
THREADS = 6
BULK = {"bulk", "stubborn", "parked"}
PATIENCE_S = 30.0
STEPS = [names.INTERACTIVE, names.BULK]


def test_a_worker_with_its_share_of_bulk_listens_for_interactive_messages_only() -> None:
    assert priorities(STEPS, bulk_held=2, bulk_tasks=2) == [names.INTERACTIVE]
    assert priorities(STEPS, bulk_held=3, bulk_tasks=2) == [names.INTERACTIVE]


def test_a_worker_with_some_bulk_takes_interactive_messages_first() -> None:
    assert priorities(STEPS, bulk_held=1, bulk_tasks=2) == [names.INTERACTIVE, names.BULK]


def test_a_worker_without_bulk_takes_one_bulk_message_first() -> None:
    assert priorities(STEPS, bulk_held=0, bulk_tasks=2) == [names.BULK, names.INTERACTIVE]


def test_a_process_that_is_about_to_end_asks_for_no_more_messages() -> None:
    queues = SimpleNamespace(consume=lambda count: ["embed"])
    channel = SimpleNamespace(_queue_cycle=queues, active_queues={"embed"}, listens=False)
    Channel._brpop_start(channel)  # whatever it asked for would need a connection


def test_a_message_of_a_lost_channel_can_be_settled_all_the_same(app: Celery) -> None:
    with app.connection_for_read() as connection:
        channel = connection.channel()
        channel.close()
        channel.basic_ack("a tag")
        channel.basic_reject("a tag", requeue=True)


def test_redis_urls_mean_this_transport_once_it_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TRANSPORT_ALIASES, "redis", TRANSPORT_ALIASES["redis"])
    monkeypatch.setitem(TRANSPORT_ALIASES, "rediss", TRANSPORT_ALIASES["rediss"])
    monkeypatch.setattr(BaseParser, "EXCEPTION_CLASSES", dict(BaseParser.EXCEPTION_CLASSES))
    assert resolve_transport("rediss") is redis.Transport
    use()
    assert resolve_transport("redis") is resolve_transport("rediss") is Transport


def app_of(url: str, prefix: str) -> Celery:
    settings = Settings.read(redis_url=url, key_prefix=prefix)
    return celery_app(settings, broker_transport="worker.delivery.transport:Transport")


@contextmanager
def channel_to(url: str, prefix: str) -> Iterator[Channel]:
    with app_of(url, prefix).connection_for_read() as connection, connection.channel() as channel:
        yield channel


def take(channel: Channel, tag: str) -> None:
    info = {"exchange": "", "routing_key": names.EMBED}
    raw = {"properties": {"delivery_tag": tag, "delivery_info": info}}
    channel.qos.append(channel.Message(raw, channel=channel), tag)


def take_and_hear(channel: Channel, tag: str) -> None:
    take(channel, tag)
    channel.qos.hear(at_once=True)


def test_a_channel_makes_its_client_once_for_each_pool(url: str, prefix: str) -> None:
    with channel_to(url, prefix) as channel:
        with channel.conn_or_acquire() as first, channel.conn_or_acquire() as second:
            assert first is second
        channel._pool = channel._get_pool()  # as after a lost connection
        with channel.conn_or_acquire() as third:
            assert third is not first


def test_what_is_held_is_in_redis_until_it_is_acknowledged(url: str, prefix: str) -> None:
    keys = Keys(prefix)
    with channel_to(url, prefix) as channel, client_of(url) as store:
        take(channel, "one")
        take(channel, "two")
        channel.qos.hear(at_once=True)
        assert store.hkeys(keys.held) == [b"one", b"two"]
        assert channel.qos.restore_by_tag("two") is None
        channel.basic_ack("one")
        channel.qos.hear(at_once=True)
        assert not store.exists(keys.held)
        assert store.llen(keys.queue(names.EMBED, names.INTERACTIVE)) == 1
        take(channel, "three")
        channel.basic_ack("three")
    with client_of(url) as store:
        assert not store.exists(keys.held)  # a channel that closes has heard of everything


def test_a_refusal_is_raised_with_the_next_look_and_the_one_after_finds_all_in_order(
    valkey_of_my_own: Valkey, prefix: str
) -> None:
    url = valkey_of_my_own.url
    with channel_to(url, prefix) as channel, client_of(url) as store:
        store.config_set("maxmemory", 1)
        take(channel, "refused")
        with pytest.raises(OutOfMemoryError):
            channel.qos.hear(at_once=True)
        channel.qos.hear(at_once=True)
        store.config_set("maxmemory", 0)
        take_and_hear(channel, "held")
        assert store.hkeys(Keys(prefix).held) == [b"held"]


def test_a_message_goes_on_before_its_hold_is_heard_of_and_the_refusal_is_not_missed(
    valkey_of_my_own: Valkey, prefix: str
) -> None:
    app, taken = app_of(valkey_of_my_own.url, prefix), []
    app.send_task("any", queue=names.EMBED)
    with (
        client_of(valkey_of_my_own.url) as store,
        app.connection_for_read() as connection,
        connection.channel() as channel,
    ):
        queue = app.amqp.queues[names.EMBED](channel)
        queue.consume(callback=taken.append, no_ack=False)
        store.config_set("maxmemory", 1)
        with pytest.raises(OutOfMemoryError):
            connection.drain_events(timeout=PATIENCE_S)
        store.config_set("maxmemory", 0)
    assert len(taken) == 1
    app.close()


@pytest.mark.parametrize("holder_s", [0, 3600, -3600])
@pytest.mark.parametrize("looker_s", [0, 3600, -3600])
def test_what_is_held_is_overdue_by_redis_clock_whatever_those_of_workers_say(
    holder_s: int, looker_s: int, url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def clock(ahead_s: int) -> None:
        for module in (transport, redis):
            monkeypatch.setattr(module, "time", lambda: time.time() + ahead_s)

    held = Keys(prefix).held
    with channel_to(url, prefix) as holder, client_of(url) as store:
        clock(holder_s)
        take_and_hear(holder, "one")
        clock(looker_s)
        for timeout_s, is_held in ((60, True), (-1, False)):
            with channel_to(url, prefix) as looker:
                looker.visibility_timeout = timeout_s
                looker.qos.restore_visible()
                assert bool(store.exists(held)) is is_held


def test_who_is_no_worker_gives_nothing_back(
    url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = celery_app(Settings.read(redis_url=url, key_prefix=prefix))
    with channel_to(url, prefix) as worker, client_of(url) as store:
        take_and_hear(worker, "one")
        monkeypatch.setattr(redis, "time", lambda: time.time() + 3600)
        with app.connection_for_read() as connection, connection.channel() as channel:
            assert type(channel) is redis.Channel
            channel.queue_declare("mine")
            channel.basic_consume("mine", False, print, "me")
            connection.transport.cycle.maybe_restore_messages()
        assert store.hexists(Keys(prefix).held, "one")


def test_what_is_held_since_a_time_to_come_is_held_since_now(url: str, prefix: str) -> None:
    index = f"{prefix}:unacked_index"
    with channel_to(url, prefix) as channel, client_of(url) as store:
        take_and_hear(channel, "one")
        take_and_hear(channel, "two")
        before = store.zscore(index, "one")
        store.zadd(index, {"two": before + 3600})  # until Redis' clock was set back
        channel.qos.restore_visible()
        assert store.zscore(index, "one") == before
        assert before <= store.zscore(index, "two") < before + 60


def test_what_became_of_many_messages_is_heard_together(
    monkeypatch: pytest.MonkeyPatch, valkey_of_my_own: Valkey, prefix: str
) -> None:
    url = valkey_of_my_own.url
    with channel_to(url, prefix) as channel, client_of(url) as store:
        take_and_hear(channel, "before")
        store.config_set("maxmemory", 1)
        take(channel, "refused")
        channel.qos.hear()
        later = time.monotonic() + transport.HEARS_AGAIN_S
        monkeypatch.setattr(transport, "monotonic", lambda: later)
        with pytest.raises(OutOfMemoryError):
            channel.qos.hear()
        store.config_set("maxmemory", 0)


def test_a_lost_line_is_found_lost_once(url: str, prefix: str) -> None:
    with channel_to(url, prefix) as channel, client_of(url) as store:
        take_and_hear(channel, "before")
        store.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(ConnectionError):
            take_and_hear(channel, "lost")
        take_and_hear(channel, "after")
        assert b"after" in store.hkeys(Keys(prefix).held)


@pytest.mark.parametrize("settle", [Channel.basic_ack, partial(Channel.basic_reject, requeue=True)])
def test_what_cannot_be_settled_over_a_lost_line_takes_no_place(
    settle: Callable[[Channel, str], None], url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise ConnectionError("lost")

    with channel_to(url, prefix) as channel:
        channel.qos.prefetch_count = 1
        take(channel, "one")
        assert not channel.qos.can_consume()
        monkeypatch.setattr(channel.qos, "_tell", lost)
        monkeypatch.setattr(channel.qos, "restore_by_tag", lost)
        with pytest.raises(ConnectionError):
            settle(channel, "one")
        assert channel.qos.can_consume()


class Tally:
    """What tasks have run, and how many bulk tasks ran at once. Bulk waits while `hold` is on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.go_on.set()
        self.running = self.peak = 0
        self.done: list[Any] = []
        self._changed = threading.Condition()

    @contextmanager
    def bulk(self, what: Any) -> Iterator[None]:
        with self._changed:
            self.running += 1
            self.peak = max(self.peak, self.running)
            self._changed.notify_all()
        assert self.go_on.wait(PATIENCE_S)
        try:
            yield
        finally:
            with self._changed:
                self.running -= 1
            self.note(what)

    def note(self, what: Any) -> None:
        with self._changed:
            self.done.append(what)
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S), self.done


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory: Path = tmp_path_factory.mktemp("valkey")
    with PrivateValkey(directory) as server:
        yield server.url


@pytest.fixture
def tally() -> Iterator[Tally]:
    tally = Tally()
    yield tally
    tally.go_on.set()


@pytest.fixture
def app(url: str, tally: Tally, request: pytest.FixtureRequest) -> Iterator[Celery]:
    settings = Settings.read(redis_url=url, key_prefix=request.node.name[:40])
    app = celery_app(settings, broker_transport="worker.delivery.transport:Transport")
    app.conf.broker_transport_options["bulk_tasks"] = BULK_TASKS

    @app.task(name="bulk", shared=False)
    def bulk(what: Any) -> None:
        with tally.bulk(what):
            pass

    @app.task(name="stubborn", bind=True, shared=False)
    def stubborn(self: Any, what: Any) -> None:
        with tally.bulk(what):
            if not self.request.delivery_info.get("redelivered"):
                raise Reject("not yet", requeue=True)

    @app.task(name="patient", shared=False)
    def patient(what: Any) -> None:
        with pool.aside(), tally.bulk(what):
            pass

    @app.task(name="parked", shared=False)
    def parked(what: Any) -> None:
        with pool.parked(), tally.bulk(what):
            pass

    @app.task(name="busy", bind=True, shared=False)
    def busy(self: Any) -> None:
        raise self.retry(countdown=PATIENCE_S)

    @app.task(name="interactive", shared=False)
    def interactive(what: Any) -> None:
        tally.note(what)

    with start_worker(
        app,
        pool="worker.delivery.pool:TaskPool",
        concurrency=THREADS,
        perform_ping_check=False,
        shutdown_timeout=PATIENCE_S,
        loglevel="WARNING",
        hostname="here@test",
    ):
        yield app


def send(app: Celery, name: str, what: Any, **options: Any) -> None:
    priority = names.BULK if name in BULK else names.INTERACTIVE
    app.send_task(name, (what,), priority=priority, **options)


def test_interactive_and_control_messages_pass_while_bulk_holds_its_share(
    app: Celery, tally: Tally
) -> None:
    tally.go_on.clear()
    for number in range(3 * THREADS):
        send(app, "bulk", number)
    tally.wait_until(lambda: tally.running == BULK_TASKS)
    send(app, "interactive", "text")
    send(app, "interactive", "unload", queue=names.direct_queue("here@test"))
    tally.wait_until(lambda: {"text", "unload"} == set(tally.done))
    tally.go_on.set()
    tally.wait_until(lambda: set(tally.done) >= set(range(3 * THREADS)))
    assert tally.peak == BULK_TASKS


def test_tasks_that_step_aside_take_nobodys_place(app: Celery, tally: Tally) -> None:
    tally.go_on.clear()
    for number in range(2 * THREADS):
        send(app, "patient", number)
    tally.wait_until(lambda: tally.running == 2 * THREADS)
    send(app, "interactive", "text")
    tally.wait_until(lambda: tally.done == ["text"])
    tally.go_on.set()
    tally.wait_until(lambda: len(tally.done) == 2 * THREADS + 1)
    assert pool.others() == 0


def test_bulk_that_is_parked_takes_no_place_of_other_bulk(app: Celery, tally: Tally) -> None:
    tally.go_on.clear()
    for number in range(2 * BULK_TASKS):
        send(app, "parked", number)
    tally.wait_until(lambda: tally.running == 2 * BULK_TASKS)
    for number in range(2 * BULK_TASKS):
        send(app, "bulk", number)
    tally.wait_until(lambda: tally.running == 3 * BULK_TASKS)
    tally.go_on.set()
    tally.wait_until(lambda: len(tally.done) == 4 * BULK_TASKS)
    assert tally.peak == 3 * BULK_TASKS
    assert pool.parked_bulk() == 0


def test_a_worker_that_stands_back_leaves_the_shared_queue_to_others(
    app: Celery, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Channel, "stands_back", staticmethod(lambda: True))
    send(app, "interactive", "the poll under way may end with it", queue=names.CONTROL)
    tally.wait_until(lambda: len(tally.done) == 1)
    send(app, "interactive", "text")
    send(app, "bulk", "picture")
    send(app, "interactive", "switch", queue=names.CONTROL)
    tally.wait_until(lambda: len(tally.done) == 2)
    send(app, "interactive", "unload", queue=names.direct_queue("here@test"))
    tally.wait_until(lambda: tally.done[1:] == ["switch", "unload"])
    monkeypatch.undo()
    tally.wait_until(lambda: {"text", "picture"} == set(tally.done[3:]))


def test_who_waits_finds_the_message_of_a_task_that_tries_again_later(
    app: Celery, url: str, request: pytest.FixtureRequest
) -> None:
    keys, sent = Keys(request.node.name[:40]), app.send_task("busy")
    queue = keys.queue(names.EMBED, names.INTERACTIVE)
    with client_of(url) as store:

        def retries() -> list[Any]:
            return [json.loads(held)[0]["headers"]["retries"] for held in store.hvals(keys.held)]

        until(lambda: retries() == [1])
        assert store.eval(vigil._FIND, 2, keys.held, queue, sent.id, vigil.SEARCHED)


def test_requeued_bulk_messages_are_counted_once(app: Celery, tally: Tally) -> None:
    for number in range(50):
        send(app, "stubborn", number)
    tally.wait_until(lambda: len(tally.done) == 100)
    assert sorted(tally.done) == sorted([*range(50), *range(50)])
    assert tally.peak <= BULK_TASKS


def test_nothing_is_lost_or_doubled_while_the_gate_opens_and_closes(
    app: Celery, tally: Tally
) -> None:
    with app.producer_pool.acquire(block=True) as producer:
        for number in range(1000):
            name = "bulk" if number % 3 else "interactive"
            send(app, name, number, producer=producer)
    tally.wait_until(lambda: len(tally.done) >= 1000)
    assert sorted(tally.done) == list(range(1000))
    assert tally.peak <= BULK_TASKS


PROPERTIES = {
    "delivery_tag": "t",
    "delivery_info": {"exchange": "", "routing_key": names.EMBED},
    "body_encoding": "base64",
}
NO_ENVELOPES = [
    *(b"canary", b"\xff\xfe", b"[]", b"{}", b"5", b"[" * 100_000),
    b'{"__type__": "decimal", "__value__": "canary"}',
    json.dumps({"properties": PROPERTIES, "headers": {"compression": "zlib"}, "body": "e30="}),
    *(
        json.dumps({"properties": properties, "headers": {"task": "canary"}, "body": "e30="})
        for properties in (
            *([], {}, {"canary": 1}),
            PROPERTIES | {"delivery_tag": {}},
            PROPERTIES | {"delivery_info": None},
            PROPERTIES | {"body_encoding": "canary"},
            PROPERTIES | {"priority": "canary"},
        )
    ),
]


def test_what_is_no_envelope_ends_no_worker_and_is_not_shown(
    app: Celery, tally: Tally, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = app.conf.broker_transport_options["global_keyprefix"]
    with client_of(url) as store:
        for step in STEPS:
            queue = Keys(prefix.removesuffix(":")).queue(names.EMBED, step)
            store.lpush(queue, *NO_ENVELOPES)
        until(lambda: store.publish(f"{prefix}/0.celery.pidbox", "[]") == 1)  # it listens now
    send(app, "interactive", "text")
    send(app, "bulk", "picture")
    tally.wait_until(lambda: {"text", "picture"} == set(tally.done))
    dropped = 2 * len(NO_ENVELOPES) + 1
    until(lambda: caplog.text.count("a message was dropped") == dropped)
    assert "canary" not in caplog.text


def test_a_body_that_cannot_be_taken_apart_is_not_held(
    app: Celery, tally: Tally, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = app.conf.broker_transport_options["global_keyprefix"]
    keys = Keys(prefix.removesuffix(":"))
    headers = {"task": "interactive", "id": "odd", "lang": "py"}
    body = b64encode(b'[["canary"], {}, 5]').decode()
    kind = {"content-type": "application/json", "content-encoding": "utf-8"}
    odd = {"properties": PROPERTIES, "headers": headers, "body": body, **kind}
    with client_of(url) as store:
        store.lpush(keys.queue(names.EMBED, names.INTERACTIVE), json.dumps(odd))
        send(app, "interactive", "text")
        tally.wait_until(lambda: tally.done == ["text"])
        until(lambda: "odd could not be recorded" in caplog.text)
        until(lambda: not store.exists(keys.held), within_s=5)
    assert "canary" not in caplog.text
