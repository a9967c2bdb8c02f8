"""What every Celery app and Redis client of ours has in common."""

import asyncio
import os
import socketserver
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import redis
from celery import Celery, current_app
from kombu.exceptions import OperationalError

from api_client.doctor import _redis_and_workers
from api_client.stack.valkey import _free_port, server_binary
from api_client.wire import broker, names
from api_client.wire.broker import (
    LARGE,
    MANY,
    Packer,
    async_redis_client,
    celery_app,
    check_server,
    redis_client,
    said,
    takes_no_writes,
)
from api_client.wire.errors import BadSettings
from api_client.wire.names import Keys
from api_client.wire.settings import Settings
from tests.flow.processes import Valkey, until


def test_a_message_is_sent_without_declaring_its_queue_first(
    valkey_url: str, prefix: str, keys: Keys, store: redis.Redis
) -> None:
    app = celery_app(Settings.read(redis_url=valkey_url, key_prefix=prefix))
    app.send_task("any", queue=names.EMBED)
    app.close()
    assert store.keys(f"{prefix}:*") == [keys.queue(names.EMBED, names.INTERACTIVE).encode()]


def test_who_sends_listens_for_no_result(valkey_of_my_own) -> None:
    app = celery_app(Settings.read(redis_url=valkey_of_my_own.url))
    sent = app.send_task("any", queue=names.EMBED)
    with valkey_of_my_own.client() as client:
        assert sent.id
        assert client.client_list(_type="pubsub") == []
    app.close()


def test_a_process_with_a_celery_of_its_own_keeps_it_as_the_current_one() -> None:
    def theirs() -> str:
        Celery("theirs")
        celery_app(Settings.read(redis_url="redis://ours"))
        return str(current_app.main)

    with ThreadPoolExecutor(1) as pool:  # Celery has a current app for each thread
        assert pool.submit(theirs).result() == "theirs"


def test_the_variables_of_another_celery_are_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "amqp://theirs")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "db+sqlite://theirs")
    monkeypatch.setenv("DJANGO_SETTINGS_MODULE", "theirs.settings")
    app = celery_app(Settings.read(redis_url="redis://ours"))
    ends = app.connection_for_write(), app.connection_for_read(), app.backend
    assert all("ours" in end.as_uri() for end in ends)


def test_a_url_with_options_of_redis_py_is_one_for_celery_too(valkey_url: str, prefix: str) -> None:
    url = f"{valkey_url}?socket_timeout=5"
    with celery_app(Settings.read(redis_url=url, key_prefix=prefix)) as app:
        app.control.revoke(["any"])


def test_a_redis_without_room_is_told_from_a_wrong_command(valkey_of_my_own) -> None:
    settings = Settings.read(redis_url=valkey_of_my_own.url)
    with redis_client(settings) as store:
        with pytest.raises(redis.ResponseError) as wrong:
            store.execute_command("NONSENSE")
        store.config_set("maxmemory", 1)
        with pytest.raises(redis.ResponseError) as full, store.pipeline() as pipe:
            pipe.set("a", "b").execute()
        store.config_set("maxmemory", 0)
        store.config_set("min-replicas-to-write", 1)
        with pytest.raises(redis.ResponseError) as alone:
            store.set("a", "b")
    assert takes_no_writes(full.value)
    assert takes_no_writes(alone.value)
    assert not takes_no_writes(wrong.value)
    assert takes_no_writes(
        redis.ResponseError("Command # 1 (SET a b) of pipeline caused error: MISCONF Errors")
    )


async def _set_in_a_pipeline(settings: Settings) -> None:
    async with async_redis_client(settings, patience_s=1) as store, store.pipeline() as pipe:
        await pipe.set("a", "b").execute()


def test_what_redis_answered_is_known_of_an_awaited_pipeline_too(valkey_of_my_own) -> None:
    settings = Settings.read(redis_url=valkey_of_my_own.url)
    with redis_client(settings) as store:
        store.config_set("min-replicas-to-write", 1)
    with pytest.raises(redis.ResponseError) as alone:
        asyncio.run(_set_in_a_pipeline(settings))
    assert said(alone.value) == "NOREPLICAS Not enough good replicas to write."
    assert takes_no_writes(alone.value)


async def _awaited_ids_around_a_refusal(
    settings: Settings, ask: Callable[[Any], Any], refusal: type[Exception]
) -> list[int]:
    async with async_redis_client(settings, patience_s=0) as store:
        ids = [await store.client_id()]
        with pytest.raises(refusal):
            await ask(store)
        return [*ids, await store.client_id()]


@pytest.mark.parametrize(
    ("ask", "refusal"),
    [
        (lambda store: store.set("a", "b"), redis.exceptions.ReadOnlyError),
        (lambda store: store.pipeline().set("a", "b").execute(), redis.exceptions.ReadOnlyError),
        (lambda store: store.get("a"), redis.exceptions.MasterDownError),
    ],
    ids=["a write", "a pipeline", "a read"],
)
def test_a_connection_to_who_has_become_a_replica_is_given_up(
    valkey_of_my_own, ask: Callable[[Any], Any], refusal: type[Exception]
) -> None:
    settings = Settings.read(redis_url=valkey_of_my_own.url)
    with redis_client(settings, patience_s=0) as store:
        before = store.client_id()
        store.config_set("replica-serve-stale-data", "no")
        store.replicaof("127.0.0.1", 1)
        with pytest.raises(refusal):
            ask(store)
        assert store.client_id() != before
    before, after = asyncio.run(_awaited_ids_around_a_refusal(settings, ask, refusal))
    assert before != after


def waited(settings: Settings, ask: Callable[[Any], Any]) -> Any:
    with redis_client(settings) as store:
        return ask(store)


def awaited(settings: Settings, ask: Callable[[Any], Any]) -> Any:
    async def answer() -> Any:
        async with async_redis_client(settings, patience_s=30) as store:
            return await ask(store)

    return asyncio.run(answer())


@pytest.mark.parametrize("wait", [waited, awaited])
@pytest.mark.parametrize(
    "ask",
    [
        lambda store: store.blmove("a", "a", 30, "LEFT", "LEFT"),
        lambda store: store.pipeline(False).blmove("a", "a", 30, "LEFT", "LEFT").execute(),
    ],
    ids=["a command", "a pipeline"],
)
def test_who_waits_at_a_failover_waits_on_at_the_new_primary(
    valkey_of_my_own, wait: Callable[..., Any], ask: Callable[[Any], Any]
) -> None:
    settings = Settings.read(redis_url=valkey_of_my_own.url)
    with redis_client(settings) as store, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(wait, settings, ask)
        while not store.info("clients")["blocked_clients"]:
            assert not answer.done()
        store.replicaof("127.0.0.1", 1)
        store.replicaof("NO", "ONE")
        store.rpush("a", "b")
        assert answer.result() in (b"b", [b"b"])


def test_who_waits_for_redis_looks_again_every_other_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _: None)
    app = celery_app(Settings.read(redis_url="redis://127.0.0.1:1"))
    with app.connection_for_read() as connection, pytest.raises(OperationalError):
        connection.ensure_connection(lambda _, pause: pauses.append(pause), max_retries=9)
    assert pauses[0] < 1
    assert max(pauses) == 2


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Those between two tries, which are not made."""
    found: list[float] = []

    async def pause(seconds: float) -> None:
        found.append(seconds)

    monkeypatch.setattr("redis.retry.sleep", found.append)
    monkeypatch.setattr("redis.asyncio.retry.sleep", pause)
    return found


@pytest.fixture(params=["away", "closing"])
def nobody(request: pytest.FixtureRequest) -> Iterator[str]:
    """An address where nobody answers, and one where connections are closed at once."""
    if request.param == "away":
        yield "redis://127.0.0.1:1"
        return
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as server:
        Thread(target=server.serve_forever, args=(0.01,)).start()
        yield "redis://{}:{}".format(*server.server_address)
        server.shutdown()


@pytest.mark.parametrize("patience_s", [0.0, 1.0, 2.0, 30.0])
def test_a_command_is_tried_for_about_as_long_as_its_client_is_patient(
    pauses: list[float], nobody: str, patience_s: float
) -> None:
    client = redis_client(Settings.read(redis_url=nobody), patience_s=patience_s)
    with client, pytest.raises(redis.ConnectionError):
        client.ping()
    assert patience_s / 2 <= sum(pauses) <= patience_s


async def asked(settings: Settings, *, patience_s: float) -> None:
    async with async_redis_client(settings, patience_s=patience_s) as client:
        await client.ping()


@pytest.mark.parametrize("patience_s", [0.0, 2.0, 30.0])
def test_so_is_one_that_is_awaited(pauses: list[float], nobody: str, patience_s: float) -> None:
    with pytest.raises(redis.ConnectionError):
        asyncio.run(asked(Settings.read(redis_url=nobody), patience_s=patience_s))
    assert patience_s / 2 <= sum(pauses) <= patience_s


FORKED = """
import os, signal, threading
from api_client.wire.broker import redis_client
from api_client.wire.settings import Settings

store = redis_client(Settings.read())
is_held, is_over = threading.Event(), threading.Event()

def hold():
    pool = store.connection_pool
    with pool._lock, pool._event_dispatcher._lock:  # as while it takes a connection back
        is_held.set()
        is_over.wait()

threading.Thread(target=hold).start()
is_held.wait()
if not (child := os.fork()):
    signal.alarm(10)  # rather than for ever
    store.ping()
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
is_over.set()
"""


def test_a_fork_waits_for_no_thread_that_stayed_behind(valkey_url: str) -> None:
    here = os.environ | {"CLIPYARD_REDIS_URL": valkey_url}
    ended = subprocess.run(
        [sys.executable, "-c", FORKED], env=here, stdout=subprocess.PIPE, check=True
    )
    assert ended.stdout == b"0\n"


def test_a_connection_that_was_lost_is_made_again(valkey_url: str, store: redis.Redis) -> None:
    with redis_client(Settings.read(redis_url=valkey_url), patience_s=2) as client:
        for _ in range(2):
            store.client_kill_filter(_id=str(client.client_id()))
        assert client.ping()


def test_a_connection_is_looked_at_unless_it_was_used_a_moment_ago(
    monkeypatch: pytest.MonkeyPatch, valkey_url: str, store: redis.Redis
) -> None:
    with redis_client(Settings.read(redis_url=valkey_url), patience_s=0) as client:
        used = client.client_id()
        monkeypatch.setattr(client.connection_pool, "_available_connections", None)
        assert client.client_id() == used
        monkeypatch.undo()
        monkeypatch.setattr(broker, "FRESH_S", 0.0)
        store.client_kill_filter(_id=str(used))
        assert client.ping()


def test_a_pool_that_is_emptied_keeps_none_that_was_used_a_moment_ago(
    valkey_url: str, store: redis.Redis
) -> None:
    with redis_client(Settings.read(redis_url=valkey_url)) as client:
        used = client.client_id()
        client.connection_pool.disconnect(inuse_connections=False)
        until(lambda: str(used) not in {one["id"] for one in store.client_list()})


@pytest.mark.parametrize(
    "ask",
    [
        redis.Redis.client_id,
        lambda client: client.pipeline(transaction=False).echo("a").echo("b").execute(),
        lambda client: client.connection_pool.disconnect() or client.ping(),
    ],
    ids=["a command", "a pipeline", "connecting"],
)
def test_a_reply_that_was_not_read_is_not_taken_for_the_next_ones(
    monkeypatch: pytest.MonkeyPatch, valkey_url: str, ask: Callable[[redis.Redis], object]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with redis_client(Settings.read(redis_url=valkey_url), patience_s=2) as client:
        client.ping()
        with monkeypatch.context() as patch:
            patch.setattr(redis.Connection, "read_response", interrupted)
            with pytest.raises(KeyboardInterrupt):
                ask(client)
        assert [client.echo("c"), client.echo("d")] == [b"c", b"d"]


def test_a_connection_that_is_given_back_as_ctrl_c_comes_is_given_back_once(
    monkeypatch: pytest.MonkeyPatch, valkey_url: str
) -> None:
    with redis_client(Settings.read(redis_url=valkey_url), patience_s=2) as client:
        pool = client.connection_pool
        release = pool.release

        def interrupted(connection: redis.Connection) -> None:
            release(connection)
            raise KeyboardInterrupt

        pipe = client.pipeline().echo("a")
        with monkeypatch.context() as patch:
            patch.setattr(pool, "release", interrupted)
            with pytest.raises(KeyboardInterrupt):
                pipe.execute()
        first = pool.get_connection()
        del pipe
        assert pool.get_connection() is not first


def test_a_login_that_is_refused_is_not_tried_again(pauses: list[float], valkey_url: str) -> None:
    settings = Settings.read(redis_url=valkey_url.replace("//", "//nobody", 1))
    with redis_client(settings) as client, pytest.raises(redis.AuthenticationError):
        client.ping()
    with pytest.raises(redis.AuthenticationError):
        asyncio.run(asked(settings, patience_s=30))
    assert not pauses


@pytest.mark.parametrize("size", [0, 10, LARGE, LARGE + 1, 3 * LARGE])
def test_values_of_any_size_are_written_as_redis_py_writes_them(size: int) -> None:
    commands = ("HSET", "a key", 7, b"x" * size), ("SET", b"\x00", "\u00e9" * 9, "PX", 1.5)
    usual = redis.connection.HiredisRespSerializer()
    for command in commands:
        assert b"".join(Packer().pack(*command)) == b"".join(usual.pack(*command))


def test_large_values_are_not_copied_on_their_way() -> None:
    picture = bytes(LARGE + 1)
    assert any(piece is picture for piece in Packer().pack("HSET", "blobs", 0, picture))


def test_large_values_arrive_as_they_were(valkey_url: str, prefix: str) -> None:
    picture = bytes(range(256)) * LARGE
    with redis_client(Settings.read(redis_url=valkey_url)) as client:
        client.hset(prefix, mapping={"0": picture, "1": "small"})
        assert client.hgetall(prefix) == {b"0": picture, b"1": b"small"}


@pytest.fixture
def sends(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[str]:
    """When each of those that are much began to be sent, and when it was. With a parameter, each
    goes on once so many have begun."""
    noted: list[str] = []
    begun = getattr(request, "param", 0)
    send = redis.Connection.send_packed_command
    send_awaited = redis.asyncio.Connection.send_packed_command

    def waiting(self: redis.Connection, command: Any, check_health: bool = True) -> None:
        is_much = isinstance(command, list) and sum(map(len, command)) > MANY
        noted.extend(["begun"] * is_much)
        while is_much and noted.count("begun") < begun:
            time.sleep(0.01)
        send(self, command, check_health)
        noted.extend(["sent"] * is_much)

    async def awaiting(self: Any, command: Any, check_health: bool = True) -> None:
        is_much = isinstance(command, list) and sum(map(len, command)) > MANY
        noted.extend(["begun"] * is_much)
        while is_much and noted.count("begun") < begun:
            await asyncio.sleep(0.01)
        await send_awaited(self, command, check_health)
        noted.extend(["sent"] * is_much)

    monkeypatch.setattr(redis.Connection, "send_packed_command", waiting)
    monkeypatch.setattr(redis.asyncio.Connection, "send_packed_command", awaiting)
    return noted


def sent_by_threads(settings: Settings, values: dict[str, bytes]) -> None:
    with redis_client(settings, patience_s=2) as client, ThreadPoolExecutor(len(values)) as pool:
        list(pool.map(client.set, values.keys(), values.values()))


def sent_by_tasks(settings: Settings, values: dict[str, bytes]) -> None:
    async def all_of_them() -> None:
        async with async_redis_client(settings, patience_s=2) as client:
            await asyncio.gather(*(client.set(*item) for item in values.items()))

    asyncio.run(all_of_them())


at_once = pytest.mark.parametrize("send", [sent_by_threads, sent_by_tasks])
Send = Callable[[Settings, dict[str, bytes]], None]


@at_once
def test_much_is_sent_in_turn(
    monkeypatch: pytest.MonkeyPatch,
    valkey_url: str,
    prefix: str,
    store: redis.Redis,
    sends: list[str],
    send: Send,
) -> None:
    monkeypatch.setattr(broker, "TURN_S", 60.0)
    values = {f"{prefix}{number}": bytes([number]) * 8 * MANY for number in range(4)}
    send(Settings.read(redis_url=valkey_url), values)
    assert sends == ["begun", "sent"] * len(values)
    assert store.mget(values) == list(values.values())


@at_once
@pytest.mark.parametrize("sends", [2], indirect=True)
def test_nobody_waits_for_a_turn_that_does_not_come(
    monkeypatch: pytest.MonkeyPatch, valkey_url: str, prefix: str, sends: list[str], send: Send
) -> None:
    monkeypatch.setattr(broker, "TURN_S", 0.05)
    settings = Settings.read(redis_url=valkey_url)
    send(settings, {f"{prefix}{number}": bytes(2 * MANY) for number in range(2)})
    assert sends == ["begun", "begun", "sent", "sent"]


def test_a_turn_that_was_not_given_back_is_found_again(
    monkeypatch: pytest.MonkeyPatch, valkey_url: str, prefix: str, sends: list[str]
) -> None:
    with redis_client(Settings.read(redis_url=valkey_url)) as client:
        turn = client.connection_pool.turn()
        turn.__enter__()  # and Ctrl-C
        with monkeypatch.context() as patch:
            patch.setattr(broker, "TURN_S", 0.05)
            client.set(prefix, bytes(2 * MANY))
        monkeypatch.setattr(broker, "TURN_S", 600.0)
        client.set(prefix, bytes(2 * MANY))
    assert sends == ["begun", "sent"] * 2


def is_half_sent(client: redis.asyncio.Redis) -> bool:
    """Whether some of what was written is held back."""
    in_use: Any = client.connection_pool._in_use_connections
    writers = [one._writer for one in in_use if one._writer]
    return any(writer.transport.get_write_buffer_size() for writer in writers)


async def closed_within(settings: Settings, key: str, picture: bytes) -> dict[bytes, bytes]:
    client = async_redis_client(settings, patience_s=2)
    pipe = client.pipeline(transaction=False)
    sending = asyncio.create_task(pipe.hset(key, "0", picture).hset(key, "1", picture).execute())
    while not is_half_sent(client):
        await asyncio.sleep(0)
    await client.aclose()
    await sending
    arrived: dict[bytes, bytes] = await client.hgetall(key)
    await client.aclose()
    return arrived


def test_a_command_never_goes_on_in_a_connection_that_did_not_see_it_begin(
    valkey_url: str, prefix: str
) -> None:
    settings, picture = Settings.read(redis_url=valkey_url), bytes(512 * LARGE)
    arrived = asyncio.run(closed_within(settings, prefix, picture))
    assert arrived == {b"0": picture, b"1": picture}


async def closed_with_half_a_command_sent(server: Valkey) -> None:
    settings = Settings.read(redis_url=f"{server.url}?socket_connect_timeout=0.5")
    client = async_redis_client(settings, patience_s=2)
    await client.ping()
    with server.silent():
        sending = asyncio.create_task(client.set("a", bytes(2048 * LARGE)))
        while not is_half_sent(client):
            await asyncio.sleep(0)
        await client.aclose()
        sending.cancel()
        await asyncio.wait([sending])


def test_a_client_is_closed_though_redis_takes_nothing_of_what_was_half_sent(
    valkey_of_my_own: Valkey,
) -> None:
    asyncio.run(closed_with_half_a_command_sent(valkey_of_my_own))


def test_a_login_is_checked_and_a_redis_that_is_away_is_no_reason_to_end(valkey_url: str) -> None:
    check_server(Settings.read(redis_url=valkey_url))
    check_server(Settings.read(redis_url="redis://:any@127.0.0.1:1/0"))
    wrong = valkey_url.replace("redis://:", "redis://:not-")
    with pytest.raises(BadSettings, match=r"refuses the login \(.*\); correct") as raised:
        check_server(Settings.read(redis_url=wrong))
    assert "not-" not in str(raised.value)
    with pytest.raises(BadSettings, match="wants a login; correct"):
        check_server(Settings.read(redis_url=f"redis://{valkey_url.partition('@')[2]}"))


@pytest.mark.parametrize("mode", ["cluster", "sentinel"])
def test_what_is_no_server_is_a_reason_to_end_and_the_doctor_tells_of_it(
    tmp_path: Path, mode: str
) -> None:
    port = _free_port()
    own = f"cluster-enabled yes\ncluster-port {_free_port()}\n" if mode == "cluster" else ""
    (tmp_path / "its.conf").write_text(f"bind 127.0.0.1\nport {port}\n{own}")
    argv = [str(server_binary()), "its.conf", *(["--sentinel"] if mode == "sentinel" else [])]
    url = f"redis://127.0.0.1:{port}/0"
    with subprocess.Popen(argv, cwd=tmp_path, stdout=subprocess.DEVNULL) as server:
        try:
            with redis_client(Settings.read(redis_url=url)) as client:
                assert client.ping()  # once it listens
            for protocol in (2, 3):
                settings = Settings.read(redis_url=f"{url}?protocol={protocol}")
                with pytest.raises(BadSettings, match=f"/0 is a {mode}; name the one server"):
                    check_server(settings)
                [told] = _redis_and_workers(settings)
                assert (told.health, told.found) == ("sick", f"{url} is a {mode}")
        finally:
            server.terminate()


def test_a_database_that_is_not_there_is_a_reason_to_end(valkey_url: str) -> None:
    with pytest.raises(BadSettings, match=r"/99 cannot be used \(DB index is out of range\)"):
        check_server(Settings.read(redis_url=f"{valkey_url.removesuffix('/0')}/99"))
