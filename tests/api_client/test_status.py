import asyncio
import json

import pytest
import redis.asyncio

from api_client.status import Depth, alarms, fleet_talk, read_fleet
from api_client.wire import names
from api_client.wire.broker import celery_app
from api_client.wire.codec import pack_record
from api_client.wire.messages import Event, EventKind, ModelStatus, WorkerStatus
from api_client.wire.settings import Settings

NOW = 1_800_000_000.0


def worker(name="gpu0@a", **fields):
    told = {"device": "cuda:0", "pid": 1, "started_at": NOW, "beat_at": NOW, "state": "ready"}
    return WorkerStatus(name=name, **(told | {"device_total": 10} | fields))


def model(model_id):
    return ModelStatus(id=model_id, state="device", last_used=NOW - 60)


@pytest.fixture
def show(store, keys):
    """Writes what a worker shows of itself."""

    def show(status, *models):
        status = status.model_copy(update={"models": tuple(one.id for one in models)})
        store.sadd(keys.workers, status.name)
        store.hset(keys.worker(status.name), mapping=pack_record(status))
        for one in models:
            store.hset(keys.model(status.name, one.id), mapping=pack_record(one))

    return show


def test_live_workers_are_read_with_their_models(show, store, keys):
    show(worker("gpu1@a"), model("clip/b"), model("clip/a"))
    show(worker("gpu0@a"))
    store.sadd(keys.workers, "dead@a")
    fleet = read_fleet(store, keys)
    assert [one.name for one in fleet.workers] == ["gpu0@a", "gpu1@a"]
    assert [one.id for one in fleet.workers[1].held] == ["clip/b", "clip/a"]
    assert [(one.name, held.id) for one, held in fleet.holding("clip/a")] == [("gpu1@a", "clip/a")]


def test_a_model_whose_hash_has_expired_is_left_out(show, store, keys):
    show(worker(), model("clip/a"))
    store.delete(keys.model("gpu0@a", "clip/a"))
    assert read_fleet(store, keys).workers[0].held == ()


def as_text(store, key):
    store.delete(key)
    store.set(key, "a stranger's")


def test_a_message_that_was_sent_at_no_time_there_is_hides_nobody(show, store, keys):
    show(worker())
    sent = {"headers": {names.SENT_AT: 10**400}}
    store.rpush(keys.queue(names.EMBED, 0), json.dumps(sent))
    assert read_fleet(store, keys).depths[names.EMBED] == Depth(interactive=1)


@pytest.mark.parametrize(
    ("named", "spoil"),
    [
        ("worker:other@a", lambda store, keys: as_text(store, keys.worker("other@a"))),
        ("worker:other@a", lambda store, keys: store.hset(keys.worker("other@a"), "name", "{")),
        ("worker:other@a", lambda store, keys: store.hset(keys.worker("other@a"), "pid", "NaN")),
        ("model:gpu0@a:clip/b", lambda store, keys: as_text(store, keys.model("gpu0@a", "clip/b"))),
        (
            "model:gpu0@a:clip/b",
            lambda store, keys: store.hset(keys.model("gpu0@a", "clip/b"), "state", '"lost"'),
        ),
        ("events", lambda store, keys: store.xadd(keys.events, {"a": "b"}) * 2),
        ("events", lambda store, keys: as_text(store, keys.events)),
        ("current", lambda store, keys: store.lpush(keys.current, "a")),
        ("embed", lambda store, keys: as_text(store, keys.queue(names.EMBED, 0))),
    ],
)
def test_what_is_none_of_ours_costs_itself_alone_and_is_told_once(
    show, store, keys, prefix, named, spoil
):
    show(worker(), model("clip/a"), model("clip/b"))
    show(worker("other@a", pid=2))
    spoil(store, keys)
    fleet = read_fleet(store, keys)
    [told] = fleet.strange
    assert told.startswith(f"'{prefix}:{named}': what Redis holds as ")
    mine = next(one for one in fleet.workers if one.name == "gpu0@a")
    assert mine.held[0].id == "clip/a"
    assert alarms(fleet, now=NOW) == [told]


def test_a_name_that_is_no_text_is_nobodys(show, store, keys):
    show(worker())
    store.sadd(keys.workers, b"\xff@a")
    assert [one.name for one in read_fleet(store, keys).workers] == ["gpu0@a"]


def test_an_empty_installation_is_an_empty_fleet(store, keys):
    fleet = read_fleet(store, keys)
    assert (fleet.workers, fleet.current, fleet.events) == ((), None, ())
    assert fleet.depths == {"embed": Depth(), "control": Depth()}


def test_events_come_newest_first_and_as_many_as_asked(store, keys):
    for n in range(5):
        store.xadd(
            keys.events, pack_record(Event(kind=EventKind.LOADED, model=f"m{n}", reason="r"))
        )
    assert [one.model for one in read_fleet(store, keys, events=2).events] == ["m4", "m3"]


def test_waiting_messages_are_counted_by_priority_where_celery_puts_them(
    show, store, keys, prefix, valkey_url
):
    show(worker())
    settings = Settings.read(redis_url=valkey_url, key_prefix=prefix)
    with celery_app(settings) as app:
        for priority in (names.INTERACTIVE, names.BULK, names.BULK):
            app.send_task("x", queue=names.EMBED, priority=priority)
        app.send_task("x", queue=names.direct_queue("gpu0@a"))
    depths = read_fleet(store, keys).depths
    assert depths["embed"] == Depth(interactive=1, bulk=2)
    assert depths["gpu0@a.dq2"] == Depth(interactive=1)


def test_the_message_that_waits_longest_tells_since_when(store, keys, prefix, valkey_url):
    settings = Settings.read(redis_url=valkey_url, key_prefix=prefix)
    with celery_app(settings) as app:
        for priority, at in ((names.INTERACTIVE, NOW), (names.BULK, NOW - 30), (names.BULK, NOW)):
            headers = {names.SENT_AT: at}
            app.send_task("x", queue=names.EMBED, priority=priority, headers=headers)
    store.lpush(keys.queue(names.CONTROL, names.BULK), b"no message")
    depths = read_fleet(store, keys).depths
    assert depths["embed"].ages_s(NOW + 1) == {"interactive": 1, "bulk": 31}
    assert depths["control"] == Depth(bulk=1)
    assert depths["control"].ages_s(NOW) == {"interactive": 0, "bulk": 0}


def test_what_a_login_may_not_read_is_no_strangers(store, keys, valkey_url, prefix):
    store.acl_setuser(prefix, enabled=True, passwords=["+pw"], keys=["other:*"], commands=["+@all"])
    url = f"redis://{prefix}:pw@{valkey_url.rpartition('@')[2]}"
    try:
        with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.NoPermissionError):
            read_fleet(client, keys)
    finally:
        store.acl_deluser(prefix)


def test_the_awaiting_client_reads_the_same_fleet(show, store, keys, valkey_url):
    show(worker(), model("clip/a"))

    async def read():
        async with redis.asyncio.Redis.from_url(valkey_url) as client:
            talk = fleet_talk(keys)
            step = next(talk)
            while True:
                try:
                    step = talk.send(await step(client))
                except StopIteration as end:
                    return end.value

    assert asyncio.run(read()) == read_fleet(store, keys)
