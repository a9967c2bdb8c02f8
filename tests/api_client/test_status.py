import asyncio
import json
import re

import pytest
import redis.asyncio

from api_client.status import Depth, Fleet, Worker, alarms, fleet_talk, read_fleet, why
from api_client.wire import names
from api_client.wire.broker import celery_app
from api_client.wire.codec import pack_record
from api_client.wire.messages import Event, EventKind, ModelStatus, WorkerStatus
from api_client.wire.settings import Settings

NOW = 1_800_000_000.0


def worker(name="gpu0@a", **fields):
    told = {"device": "cuda:0", "pid": 1, "started_at": NOW, "beat_at": NOW, "state": "ready"}
    return WorkerStatus(name=name, **(told | {"device_total": 10} | fields))


def model(model_id="clip/a", **fields):
    timeouts = {"vram_timeout_s": 600, "ram_timeout_s": 1800}
    return ModelStatus(
        id=model_id, **({"state": "device", "last_used": NOW - 60} | timeouts | fields)
    )


def event(kind, model_id="clip/a", **fields):
    return Event(**({"kind": kind, "model": model_id, "worker": "gpu0@a", "reason": "r"} | fields))


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
        store.xadd(keys.events, pack_record(event(EventKind.LOADED, f"m{n}")))
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


def test_the_awaiting_client_reads_the_same_fleet(show, store, keys, valkey_url):
    show(worker(), model())

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


def fleet_of(status, *models, events=()):
    return Fleet(workers=(Worker(**dict(status), held=models),), events=events)


def test_why_tells_where_a_model_is_who_brought_it_and_what_goes_next():
    arrival = event(EventKind.LIFTED, at=NOW - 300, reason="asked for", asked_by="ann")
    fleet = fleet_of(worker(), model(next_out=True), events=(arrival,))
    sentences = why(fleet, "clip/a")
    assert re.fullmatch(
        r"clip/a is on the device of gpu0@a, last used 60 s ago; "
        r"lifted at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \(asked for, asked by ann\)\.",
        sentences[0],
    )
    assert sentences[1:] == [
        "On gpu0@a it is the next to make room for another model.",
        "Unused, it goes to host memory of gpu0@a in 9 min.",
        "Unused, it leaves gpu0@a in 29 min.",
    ]


def test_why_tells_who_goes_first():
    fleet = fleet_of(worker(), model("clip/b", next_out=True), model())
    assert "On gpu0@a clip/b goes before it to make room." in why(fleet, "clip/a")


def test_why_tells_why_a_model_went():
    story = (
        event(EventKind.UNLOADED, at=NOW, reason="idle in RAM for 1812 s"),
        event(EventKind.LOADED, at=NOW - 4000),
    )
    sentences = why(fleet_of(worker(), events=story), "clip/a")
    assert sentences[0] == "clip/a is in no worker's memory."
    assert re.search(r"On gpu0@a unloaded at .* \(idle in RAM for 1812 s\)\.", sentences[1])


def test_why_tells_of_a_model_that_was_lost_with_its_process_and_not_of_how_it_went_before():
    story = (
        event(EventKind.LIFTED, at=NOW, reason="asked for"),
        event(EventKind.UNLOADED, at=NOW - 4000, reason="idle in RAM for 1812 s"),
    )
    [_, went] = why(Fleet(events=story), "clip/a")
    assert re.search(
        r"On gpu0@a lifted at .* \(asked for\), and lost when that process ended", went
    )


def test_a_model_in_use_or_pinned_or_kept_is_not_said_to_go():
    assert "in use by 2 requests" in why(fleet_of(worker(), model(leases=2)), "clip/a")[0]
    assert not any("Unused" in one for one in why(fleet_of(worker(), model(leases=2)), "clip/a"))
    assert any("pinned" in one for one in why(fleet_of(worker(), model(pinned=True)), "clip/a"))
    kept = why(fleet_of(worker(), model(keep_alive_s=-1)), "clip/a")
    assert "A request asked gpu0@a to keep it." in kept


def test_a_keep_alive_stands_in_for_the_timeouts():
    sentences = why(fleet_of(worker(), model(keep_alive_s=90)), "clip/a")
    assert "Unused, it leaves gpu0@a in 30 s." in sentences


def test_without_an_accelerator_there_is_no_way_down_but_out():
    sentences = why(fleet_of(worker(device_total=0), model()), "clip/a")
    assert not any("host memory" in one for one in sentences[1:])
    assert "Unused, it leaves gpu0@a in 29 min." in sentences


def test_a_model_stays_in_host_memory_no_shorter_than_on_the_device():
    sentences = why(fleet_of(worker(), model(ram_timeout_s=300)), "clip/a")
    assert sentences[1:3] == [
        "Unused, it goes to host memory of gpu0@a in 9 min.",
        "Unused, it leaves gpu0@a in 9 min.",
    ]


def test_what_is_overdue_goes_with_the_next_sweep():
    sentences = why(fleet_of(worker(), model(state="host", last_used=NOW - 9999)), "clip/a")
    assert sentences[0].startswith("clip/a is in host memory of gpu0@a, last used 3 h ago")
    assert "Unused, it leaves gpu0@a with the next sweep." in sentences


def test_a_model_nobody_has_heard_of_is_said_to_be_one():
    assert why(Fleet(), "clip/z")[-1].startswith("The event stream tells nothing of it")
