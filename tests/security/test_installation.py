"""Four roles at one Redis: each does its work, none does another's, and none tells secrets."""

import base64
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import redis
from celery import Celery
from PIL import Image
from redis.exceptions import NoPermissionError

from api_client import pulse
from api_client.acl import Role
from api_client.wire import names
from api_client.wire.broker import celery_app
from api_client.wire.errors import NotSigned
from api_client.wire.names import Keys
from tests.flow.processes import free_port, until
from tests.security.installation import Installation
from worker import housekeeping

CANARY = "canary7f3a"
PROCESSES = [Role.CLIENT, Role.WORKER, Role.BEAT, Role.DASHBOARD]


def denials(installation: Installation) -> list[str]:
    with installation.connect(Role.ADMIN) as admin:
        rows = admin.acl_log()
        admin.acl_log_reset()
    return [f"{row['username']}: {row['context']} {row['object']}" for row in rows]


@pytest.fixture(autouse=True)
def nobody_is_refused(installation: Installation) -> Iterator[None]:
    """Fails after a test in which Redis refused a role something, unless the test cleared that."""
    yield
    assert not denials(installation)


def test_client_worker_and_beat_do_their_work(installation: Installation) -> None:
    folder = installation.folder / "pictures"
    Image.new("RGB", (40, 30), "red").save(folder / "a.png")
    with installation.client() as client:
        assert client.embed_texts(["one", "two"]).shape == (2, 8)
        pictures = [folder / "a.png", (folder / "a.png").read_bytes()]
        assert np.ptp(client.embed_images(pictures), axis=0).max() == 0
        assert "fake/vision" in [entry.id for entry in client.models()]
        client.load("fake/other")
        client.switch("fake/other")
        client.unload("fake/other")
        client.switch("fake/vision")
        assert [worker.name for worker in client.status().workers] == ["cpu0@here"]
        items = client.stream_images([folder / "a.png"] * 40, batch_size=4)
        next(items)
        items.close()  # withdraws what nobody waits for
    with installation.connect(Role.ADMIN) as admin:
        until(lambda: admin.exists(f"{installation.prefix}:gate:sweep"))


def test_a_worker_that_holds_no_model_looks_at_the_others_and_is_still_shown(
    installation: Installation,
) -> None:
    keys = Keys(installation.prefix)
    with installation.connect(Role.ADMIN) as admin, installation.client() as client:
        admin.copy(keys.worker("cpu0@here"), keys.worker("cpu1@here"))
        admin.sadd(keys.workers, "cpu1@here")
        try:
            client.load("fake/other", workers=["cpu0@here"])
            client.unload(scope="everything", workers=["cpu0@here"])
            assert admin.hget(keys.worker("cpu0@here"), "models") == b"[]"
        finally:
            admin.srem(keys.workers, "cpu1@here")
            admin.delete(keys.worker("cpu1@here"))


def test_the_name_of_a_worker_that_was_stopped_goes_under_these_rights(
    installation: Installation,
) -> None:
    keys, left = Keys(installation.prefix), names.binding("cpu9@gone", "cpu9@gone.dq2")
    tables = keys.bindings(names.DIRECT_EXCHANGE)
    with installation.connect(Role.ADMIN) as admin, installation.connect(Role.WORKER) as store:
        for table in tables:
            admin.sadd(table, left)
        housekeeping.forget_absent(store, keys, ["cpu0@here"])
        housekeeping.keep_reachable(store, keys, ["cpu0@here"])
        assert not any(admin.sismember(table, left) for table in tables)


def test_a_bulk_job_runs_under_these_rights(installation: Installation) -> None:
    folder = installation.folder / "pictures" / "job"
    folder.mkdir()
    for n in range(5):
        Image.new("RGB", (8, 8), (n, 0, 0)).save(folder / f"{n}.png")
    with installation.client() as client:
        job = client.reembed(
            folder, sink=installation.folder / "vectors" / "a", model="fake/vision"
        )
        assert job.pause().state == "paused"
        job.resume()
        assert job.wait(timeout=60).done == 5
        assert job.id in [status.id for status in client.jobs()]


def test_the_dashboard_shows_the_worker_and_its_buttons_work(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setenv("CLIPYARD_DASHBOARD_PORT", str(port))
    monkeypatch.setenv("CLIPYARD_DASHBOARD_PASSWORD", "a-password-for-tests")
    with (
        installation.running("flower", Role.DASHBOARD, "-m", "api_client", "dashboard"),
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", auth=("clipyard", "a-password-for-tests")
        ) as http,
    ):
        for path in ("/models/now", "/workers?json=1"):
            until(lambda path=path: "cpu0@here" in _read(http, path))
        asked = {"model": "fake/other", "worker": "cpu0@here"}
        for action in ("load", "unload"):
            assert http.post(f"/models/do/{action}", json=asked).json()["answers"][0]["changed"]


@pytest.mark.parametrize("role", [Role.WORKER, Role.DASHBOARD])
def test_what_a_dead_worker_held_is_given_back(installation: Installation, role: Role) -> None:
    held, queue = f"{installation.prefix}:unacked", "embed-of-the-dead"
    app = celery_app(installation.settings(role))
    with installation.connect(Role.ADMIN) as admin, app.connection_for_read() as connection:
        admin.hset(held, "tag", json.dumps([{"properties": {"priority": 0}}, "", queue]))
        connection.default_channel.qos.restore_by_tag("tag")
        assert not admin.hexists(held, "tag")
        assert admin.delete(f"{installation.prefix}:{queue}")
    app.close()


def test_keda_sees_with_the_login_of_the_dashboard_what_waits(installation: Installation) -> None:
    length = "return {redis.call('type', KEYS[1]).ok, redis.call('llen', KEYS[1])}"
    keys, steps = Keys(installation.prefix), (names.INTERACTIVE, names.BULK)
    queues = [keys.queue(names.EMBED, step) for step in steps]
    with installation.connect(Role.DASHBOARD) as keda:
        assert [keda.eval(length, 1, queue) for queue in queues] == [[b"none", 0]] * len(queues)


def test_a_workers_health_check_may_try_whether_redis_takes_writes(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPYARD_REDIS_URL", installation.url(Role.WORKER))
    monkeypatch.setenv("CLIPYARD_KEY_PREFIX", installation.prefix)
    assert "there are cpu0@here" in pulse.sickness(worker="gpu9@gone", url=None)


def test_the_doctor_says_which_login_it_needs(installation: Installation) -> None:
    argv = [sys.executable, "-m", "api_client", "doctor", "--json"]
    said = {
        role: subprocess.run(
            argv, env=installation.environment(role), capture_output=True, text=True, check=False
        ).stdout
        for role in (Role.CLIENT, Role.ADMIN)
    }
    with installation.connect(Role.ADMIN) as admin:
        admin.acl_log_reset()
    assert "the login of the role admin" in said[Role.CLIENT]
    assert "cpu0@here is ready" in said[Role.ADMIN]


def _read(http: httpx.Client, path: str) -> str:
    try:
        return http.get(path).text
    except httpx.TransportError:
        return ""


FORBIDDEN = {
    Role.CLIENT: [
        "BRPOP {p}:embed 1",
        "HSET {p}:worker:x a 1",
        "SET {p}:current x",
        "HGETALL {p}:blobs:x",
        "DEL {p}:sent:x",
        "HSET {p}:safe-batches a 1",
        "SET {p}:gate:sweep 1",
        "ZADD {p}:unacked_index 1 a",
        "SUBSCRIBE {p}:/0.celeryev/worker.heartbeat",
        "SUBSCRIBE {p}:/0.celery.pidbox",
        "GET {p}:celery-task-meta-x",
        "SADD {p}:_kombu.binding.embed x",
        "SADD {p}:jobs x",
    ],
    Role.WORKER: [
        "HSET {p}:blobs:x a 1",
        "HMGET {p}:sent:x queue",
        "LPOP {p}:answer:x",
        "DEL {p}:gate:sweep",
        "HKEYS {p}:job:x",
    ],
    Role.BEAT: [
        "HGETALL {p}:worker:x",
        "LRANGE {p}:answer:x 0 0",
        "BRPOP {p}:control 1",
        "PUBLISH {p}:/0.celery.pidbox x",
        "HVALS {p}:unacked",
    ],
    Role.DASHBOARD: [
        "HSET {p}:blobs:x a 1",
        "HGETALL {p}:blobs:x",
        "HSET {p}:worker:x a 1",
        "HSET {p}:job:x a 1",
        "HGETALL {p}:quarantine",
    ],
}
NOBODYS = [
    *("FLUSHALL", "FLUSHDB", "KEYS *", "SCAN 0", "CONFIG GET *", "ACL LIST", "SHUTDOWN", "SAVE"),
    *("MONITOR", "CLIENT LIST", "CLIENT KILL ID 1", "SCRIPT FLUSH"),
    *("MODULE LIST", "REPLICAOF NO ONE", "SWAPDB 0 1", "FUNCTION LIST"),
    *("GET neighbour:secret", "LPUSH neighbour:embed x"),
    *("EVAL return{{}} 1 neighbour:x", "PUBLISH neighbour:/0.celery.pidbox x"),
    *("SET celery x", "RENAME {p}:current neighbour:x", "COPY {p}:current neighbour:x"),
    *("MIGRATE 127.0.0.1 1 {p}:current 0 1", "DUMP {p}:current", "SORT {p}:workers"),
]  # fmt: skip


class Evil:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self._file,))


def test_a_message_that_holds_code_is_not_unpacked(installation: Installation) -> None:
    trace = installation.folder / "trace"
    app = celery_app(installation.settings())
    with app.connection_for_write() as connection, installation.client() as client:
        connection.Producer().publish(
            pickle.dumps(Evil(trace)),
            routing_key=names.EMBED,
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={"id": "x", "task": names.EMBED_BATCH},
        )
        assert len(client.embed_texts(["behind it"])) == 1
    app.close()
    assert not trace.exists()


def test_a_message_that_cannot_be_read_ends_no_worker_and_is_not_shown(
    installation: Installation,
) -> None:
    fit: dict[str, object] = {"id": "x", "task": names.EMBED_BATCH}
    odd: list[dict[str, object]] = [{"task": "none"}, {"task": {}}, {"id": []}, {"timelimit": 5}]
    dropped = installation.log("worker").count("a message was dropped")
    app = celery_app(installation.settings())
    with app.connection_for_write() as connection, installation.client() as client:
        for headers in [{}, *odd]:
            connection.Producer(serializer="json").publish(
                [[], {"texts": [CANARY]}, {}], routing_key=names.EMBED, headers=fit | headers
            )
        assert len(client.embed_texts(["behind them"])) == 1
    app.close()
    assert installation.log("worker").count("a message was dropped") == dropped + len(odd)
    assert CANARY not in installation.log("worker")


@pytest.mark.parametrize("role", PROCESSES)
def test_a_role_does_nothing_else(installation: Installation, role: Role) -> None:
    with installation.connect(role) as connection, connection.client() as one:
        for command in [*FORBIDDEN[role], *NOBODYS]:
            words = command.format(p=installation.prefix).split()
            assert _refused(one, words), f"{role} may {command}"
    with installation.connect(Role.ADMIN) as admin:
        admin.acl_log_reset()


def _refused(connection: redis.Redis, words: list[str]) -> bool:
    try:
        connection.execute_command(*words)
    except NoPermissionError:
        return True
    except redis.ResponseError:
        pass
    return False


def test_nobody_comes_in_without_a_name(installation: Installation) -> None:
    for url in ("redis://127.0.0.1", "redis://default:@127.0.0.1", "redis://:x@127.0.0.1"):
        with (
            redis.Redis.from_url(f"{url}:{installation.port}") as stranger,
            pytest.raises(redis.AuthenticationError),
        ):
            stranger.ping()
    with installation.connect(Role.ADMIN) as admin:
        admin.acl_log_reset()


def test_an_acl_file_holds_no_password(installation: Installation) -> None:
    text = installation.folder.with_name("users.acl").read_text()
    assert not any(password in text for password in installation.passwords.values())
    for file in (installation.folder / "secrets").iterdir():
        assert file.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("key", [None, "0" * 32])
def test_only_holders_of_the_key_make_a_worker_embed_or_load(
    installation: Installation, key: str | None
) -> None:
    with installation.client(signing_key=key) as stranger:
        for ask in (lambda: stranger.embed_texts(["a"]), lambda: stranger.load("fake/other")):
            with pytest.raises(NotSigned):
                ask()


def test_nothing_secret_is_shown_anywhere(installation: Installation) -> None:
    folder = installation.folder / "pictures"
    picture = folder / "noise.png"
    noise = np.random.default_rng(1).integers(0, 256, (30, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(picture)
    app = celery_app(installation.settings(Role.DASHBOARD))
    with listening(app) as told, installation.client() as client:
        vectors = client.embed_texts([f"{CANARY} text"])
        client.embed_images([picture, picture.read_bytes()])
        refused = [folder / "none.png", f"http://{CANARY}:{CANARY}@host/a.png?{CANARY}"]
        errors = [str(item.error) for item in client.embed_images_detailed(refused)]
        assert all(errors)
        status = str(client.status())
        app.send_task(
            names.EMBED_BATCH,
            kwargs={"texts": [CANARY], "unknown": 1},
            queue=names.EMBED,
            ignore_result=True,
        )
        until(lambda: any("task-failed" in line for line in told))
    shown = {log.name: log.read_text() for log in installation.folder.glob("*.log")}
    shown |= {"errors": str(errors), "status": status}
    shown["events"] = "\n".join(told)
    shown["redis"] = _dump(installation)
    part = picture.read_bytes()[60:90]
    secrets = {
        "text": [CANARY],
        # As dicts and logs show bytes; and as JSON has to carry them, of which 60 is a step.
        "picture": [repr(part)[2:-1]],
        "picture in base64": [base64.b64encode(part).decode()],
        # A single one may be the seconds that a task took.
        "vector": [repr(float(number))[:7] for number in vectors[0][:4]],
        "key": [installation.key],
        **{f"{role} password": [word] for role, word in installation.passwords.items()},
    }
    leaks = [
        (what, where)
        for where, text in shown.items()
        for what, words in secrets.items()
        if all(word in text for word in words)
    ]
    assert not leaks


@contextmanager
def listening(app: Celery) -> Iterator[list[str]]:
    """Every event, as Flower would get it."""
    told: list[str] = []

    def note(event: object) -> None:
        told.append(str(event))

    def listen() -> None:
        with suppress(TimeoutError):
            for _ in receiver.itercapture(timeout=5, wakeup=False):
                pass

    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": note})
        thread = threading.Thread(target=listen)
        thread.start()
        try:
            until(lambda: told)  # a heartbeat
            yield told
        finally:
            receiver.should_stop = True
            thread.join()


def _dump(installation: Installation) -> str:
    """What lasts in Redis, answers apart: they are for whoever asked."""
    found = []
    with installation.connect(Role.ADMIN) as admin:
        for key in admin.scan_iter(count=1000):
            name = key.decode()
            if ":answer:" in name:
                continue
            reads = {
                "hash": admin.hgetall,
                "string": admin.get,
                "set": admin.smembers,
                "list": partial(admin.lrange, start=0, end=-1),
                "zset": partial(admin.zrange, start=0, end=-1),
                "stream": admin.xrange,
                "none": repr,  # it has gone just now, and may be back at once as another kind
            }
            value = reads[admin.type(key).decode()](key)
            found.append(f"{name} {value}")
    return "\n".join(found)
