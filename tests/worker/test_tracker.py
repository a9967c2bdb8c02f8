import threading
from queue import SimpleQueue

import pytest
import redis

from api_client.status import read_fleet
from api_client.wire.messages import Event, EventKind, Knobs
from worker import tracker as tracker_module
from worker.backends.base import Placement
from worker.backends.fake import Fake
from worker.catalogue import Entry
from worker.residency import usage
from worker.residency.ledger import Ledger
from worker.residency.memory import Bytes
from worker.residency.slots import Limits, Slots
from worker.settings import WorkerSettings
from worker.tracker import Tracker

VISION = Entry("clip/a", backend="fake", options={"device_bytes": 100, "host_bytes": 60})
TEXT = Entry("text/b", backend="fake", kinds=("text",), options={"host_bytes": 7})
WITHIN_S = 20


class Room:
    """A memory of which so much is used."""

    def __init__(self):
        self.used = 0

    def host(self):
        return Bytes(1000, 1000 - self.used)

    def device(self):
        return Bytes(800, 800)


class Watch:
    """A clock and, on the same second hand, the slots' clock."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def unix(self):
        return self.now

    def ticks(self):
        return self.now - 1_700_000_000


@pytest.fixture
def watch():
    return Watch()


@pytest.fixture
def settings():
    return WorkerSettings.read(redis_url="redis://unused", default_model="clip/a")


@pytest.fixture
def make(store, keys, watch, settings):
    """A tracker over real slots; `beat()` is the writer's next round, made by hand."""
    trackers = []

    def make(node="gpu0@here", settings=settings, store=store, **given):
        tracker = Tracker(
            store,
            keys,
            node=node,
            settings=settings,
            device="cuda:0",
            clock=watch.unix,
            ticks=watch.ticks,
            **given,
        )
        fake, ledger = Fake(Placement("cuda:0")), Ledger()
        tracker.slots = Slots(
            check=fake.check,
            load=fake.load,
            limits=Limits(),
            ledger=ledger,
            unified=False,
            clock=watch.ticks,
            on_event=tracker.on_event,
        )
        tracker.room = Room()
        tracker.attach(tracker.slots, tracker.room, ledger)
        trackers.append(tracker)
        return tracker

    yield make
    for tracker in trackers:
        tracker.slots.close()


def test_a_worker_and_its_models_are_shown_with_what_a_person_asks_first(make, store, keys, watch):
    tracker = make(versions={"torch": "2.15"})
    tracker.slots.load(VISION, asked_by="ann")
    watch.now += 10
    with tracker.slots.lease(VISION):
        tracker.used(VISION)
        tracker.say("ready")
        tracker.beat()
        [worker] = read_fleet(store, keys).workers
    assert (worker.name, worker.state, worker.current) == ("gpu0@here", "ready", "clip/a")
    assert (worker.host_total, worker.device_total) == (1000, 800)
    assert worker.versions == {"torch": "2.15"}
    assert worker.sweep_interval_s == 60
    assert worker.beat_at == watch.now
    [model] = worker.held
    assert (model.id, model.state, model.type, model.leases) == ("clip/a", "device", "vision", 1)
    assert (model.device_bytes, model.host_bytes) == (100, 0)
    assert (model.loaded_at, model.last_used) == (watch.now - 10, watch.now)
    assert (model.usage_count, model.dimension) == (1, 8)
    assert (model.vram_timeout_s, model.ram_timeout_s) == (600, 1800)
    assert model.fingerprint.startswith("fake:")
    assert model.next_out


def test_text_models_have_timeouts_of_their_own(make, store, keys):
    tracker = make()
    tracker.change(Knobs(text_vram_timeout_s=5, text_ram_timeout_s=6))
    tracker.slots.load(TEXT)
    tracker.beat()
    [model] = read_fleet(store, keys).workers[0].held
    assert (model.type, model.vram_timeout_s, model.ram_timeout_s) == ("text", 5, 6)


def test_a_model_that_went_is_shown_no_longer(make, store, keys):
    tracker = make()
    tracker.slots.load(VISION)
    tracker.beat()
    tracker.slots.unload("clip/a", reason="x", wait_s=0)
    tracker.beat()
    assert read_fleet(store, keys).workers[0].held == ()
    assert not store.exists(keys.model("gpu0@here", "clip/a"))


def test_all_a_worker_shows_expires_unless_it_shows_it_again(make, store, keys):
    tracker = make(expiry_s=17)
    tracker.slots.load(VISION)
    tracker.beat()
    for key in (keys.worker("gpu0@here"), keys.model("gpu0@here", "clip/a"), keys.current):
        assert 0 < store.ttl(key) <= 17


def test_every_move_stands_in_the_stream_with_its_reason_and_who_asked(make, store, keys, watch):
    tracker = make()
    tracker.slots.load(VISION, asked_by="ann")
    tracker.slots.unload("clip/a", reason="enough", asked_by="bob", wait_s=0)
    tracker.beat()
    newest = read_fleet(store, keys).events
    assert [event.kind for event in newest] == ["unloaded", "lifted", "loaded"]
    assert (newest[0].reason, newest[0].asked_by) == ("enough", "bob")
    assert {(event.worker, event.at) for event in newest} == {("gpu0@here", watch.now)}


def test_of_many_models_the_ones_seen_last_are_remembered(make, monkeypatch):
    monkeypatch.setattr(tracker_module, "SEEN_KEPT", 2)
    tracker = make()
    for model in ("a", "mistyped", "a", "b"):
        tracker.on_event(Event(kind=EventKind.REFUSED, model=model, reason="unknown"))
    assert tracker.been_here(within_s=60) == {"a", "b"}


def test_the_stream_is_capped(make, store, keys, monkeypatch):
    monkeypatch.setattr(tracker_module, "EVENTS_KEPT", 100)
    tracker = make()
    for _ in range(3):
        for n in range(200):
            tracker.on_event(Event(kind=EventKind.LOADED, model=f"m{n}", reason="r"))
        tracker.beat()
    assert store.xlen(keys.events) <= 200  # "about": whole nodes of the stream go at a time


def test_while_redis_is_away_nobody_waits_and_the_newest_events_are_kept(
    make, store, keys, monkeypatch, caplog
):
    monkeypatch.setattr(tracker_module, "EVENTS_UNSENT", 5)
    nobody = redis.Redis(port=1, retry=None)
    tracker = make(store=nobody)
    for n in range(9):
        tracker.on_event(Event(kind=EventKind.LOADED, model=f"m{n}", reason="r"))
        tracker.used(VISION)
        tracker.beat()
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # once, not nine times
    tracker._store = store
    tracker.beat()
    tracker.beat()
    told = [event.model for event in read_fleet(store, keys).events]
    assert told == ["m8", "m7", "m6", "m5", "m4"]
    assert sum(usage.histogram(store, keys, "clip/a")) == 9
    nobody.close()


def test_a_beat_that_breaks_is_logged_and_the_next_one_is_tried(make, store, keys, caplog):
    tracker = make()
    tracker.room.host = lambda: 1 / 0
    tracker.beat()
    assert "division by zero" in caplog.text
    del tracker.room.host
    tracker.beat()
    assert read_fleet(store, keys).workers


def test_uses_are_counted_by_the_hour_over_all_processes(make, store, keys, watch):
    for tracker in (make("gpu0@here"), make("gpu1@here")):
        tracker.used(VISION)
        tracker.used(VISION)
        tracker.beat()
        tracker.beat()
    counts = usage.histogram(store, keys, "clip/a")
    assert counts[usage.hour_of_week(watch.now)] == sum(counts) == 4


def test_pressure_is_that_of_the_fuller_memory(make, store, keys):
    tracker = make()
    tracker.room.used = 850
    tracker.beat()
    assert read_fleet(store, keys).workers[0].pressure == "high"


def test_changed_settings_hold_at_once_and_are_shown(make, store, keys):
    tracker = make()
    tracker.change(Knobs(slots=1, vision_vram_timeout_s=3))
    tracker.change(Knobs(pinned=("clip/a",)))
    now = tracker.settings
    assert (now.slots, now.vision_vram_timeout_s, now.pinned) == (1, 3, ("clip/a",))
    assert now.text_vram_timeout_s == 600
    tracker.beat()
    shown = read_fleet(store, keys).workers[0].settings
    assert (shown["slots"], shown["pinned"]) == ("1", "('clip/a',)")


def test_a_worker_whose_device_is_lost_says_so_before_it_ends(make, store, keys, monkeypatch):
    tracker = make()
    tracker.beat()

    def lost():
        raise RuntimeError("CUDA error: device-side assert triggered")  # to every call from then on

    monkeypatch.setattr(tracker.room, "device", lost)
    tracker.say("stopping", trouble="the device was lost")
    tracker.beat()
    [worker] = read_fleet(store, keys).workers
    assert (worker.state, worker.trouble) == ("stopping", "the device was lost")


def test_every_knob_is_a_setting_of_that_name():
    assert set(Knobs.model_fields) <= set(WorkerSettings.model_fields)


def test_a_restarted_worker_starts_from_its_environment(make):
    first = make()
    first.change(Knobs(slots=1))
    first.make_current("text/b", reach="worker")
    again = make()
    again.resume()
    assert (again.settings.slots, again.current()) == (2, "clip/a")


def test_a_restarted_worker_takes_up_what_its_predecessor_had_if_told_so(make, settings):
    first = make()
    first.change(Knobs(slots=1))
    first.change(Knobs(pressure_threshold=0.5))
    first.make_current("text/b", reach="worker")
    again = make(settings=settings.model_copy(update={"resume": True}))
    again.resume()
    assert (again.settings.slots, again.settings.pressure_threshold) == (1, 0.5)
    assert again.current() == "text/b"
    other = make("gpu1@here", settings=settings.model_copy(update={"resume": True}))
    other.resume()
    assert other.current() == "clip/a"


def test_settings_that_count_for_more_than_the_environment_are_told(make, settings, caplog):
    caplog.set_level("INFO")
    make().change(Knobs(slots=1, pinned=["clip/a"], pressure_threshold=settings.pressure_threshold))
    resuming = settings.model_copy(update={"resume": True, "slots": 5})
    make(settings=resuming).resume()
    make("gpu1@here", settings=resuming).resume()
    assert caplog.messages == [
        'as `clipyard set` left the last gpu0@here: slots 1, pinned ["clip/a"]'
    ]


@pytest.mark.parametrize("reach", ["worker", "fleet"])
def test_a_model_is_not_current_before_redis_has_kept_it(make, store, keys, monkeypatch, reach):
    tracker = make()

    def away(*_):
        raise redis.ConnectionError("away")

    monkeypatch.setattr(redis.client.Pipeline, "execute", away)
    with pytest.raises(redis.ConnectionError):
        tracker.make_current("text/b", reach=reach)
    assert tracker.current() == "clip/a"
    assert not store.exists(keys.current, keys.will("gpu0@here"))


def test_a_setting_holds_once_redis_has_kept_it(make, monkeypatch):
    tracker = make()

    def away(*_):
        raise redis.ConnectionError("away")

    monkeypatch.setattr(redis.client.Pipeline, "execute", away)
    with pytest.raises(redis.ConnectionError):
        tracker.change(Knobs(slots=1))
    assert tracker.settings.slots == 2  # else who tries again hears that nothing has changed


def test_of_a_newer_workers_will_what_is_known_is_taken_up(make, store, keys, settings):
    will = {"knobs": '{"slots": 3, "colour": "red"}', "current": "text/b"}
    store.hset(keys.will("gpu0@here"), mapping=will)
    tracker = make(settings=settings.model_copy(update={"resume": True}))
    tracker.resume()
    assert (tracker.settings.slots, tracker.current()) == (3, "text/b")


def test_a_will_that_cannot_be_read_does_not_keep_a_worker_from_starting(
    make, settings, store, keys
):
    store.hset(keys.will("gpu0@here"), "knobs", '{"slots": -1}')
    tracker = make(settings=settings.model_copy(update={"resume": True}))
    tracker.resume()
    assert tracker.settings.slots == 2


def test_one_workers_current_model_is_not_the_fleets_unless_it_is_meant_so(make, store, keys):
    one, other = make("gpu0@here"), make("gpu1@here")
    one.beat()
    other.make_current("text/b", reach="worker")
    other.beat()
    assert read_fleet(store, keys).current == "clip/a"
    other.make_current("text/b", reach="fleet")
    assert read_fleet(store, keys).current == "text/b"


def test_a_worker_that_comes_later_has_the_fleets_current_model(make, store, keys):
    one = make("gpu0@here")
    one.make_current("text/b", reach="fleet")
    one.beat()
    late = make("gpu1@here")
    late.beat()
    assert late.current() == "text/b"
    assert [worker.current for worker in read_fleet(store, keys).workers] == ["text/b", "text/b"]


def test_a_redis_that_lost_the_fleets_current_model_is_told_again_by_whoever_comes_first(
    make, store, keys
):
    one, late = make("gpu0@here"), make("gpu1@here")
    one.beat()
    one.make_current("text/b", reach="fleet")
    late.beat()
    late.make_current("text/c", reach="worker")
    store.delete(keys.current)
    late.beat()
    assert read_fleet(store, keys).current == "text/b"
    assert late.current() == "text/c"


def test_a_switch_of_the_fleet_ends_what_one_worker_was_switched_to(make):
    tracker = make()
    tracker.make_current("text/c", reach="worker")
    tracker.make_current("text/b", reach="fleet")
    assert tracker.current() == "text/b"


def test_a_switch_of_the_fleet_counts_for_more_than_what_a_predecessor_knew(make, settings):
    first, other = make("gpu0@here"), make("gpu1@here")
    first.make_current("text/b", reach="fleet")
    other.make_current("text/c", reach="fleet")
    again = make(settings=settings.model_copy(update={"resume": True}))
    again.resume()
    assert again.current() == "text/b"
    again.beat()
    assert again.current() == "text/c"


def test_a_default_that_nobody_chose_is_not_left_to_the_successor(make, store, keys):
    for node in ("gpu0@here", "gpu1@here"):
        make(node).beat()
        assert not store.exists(keys.will(node))


def test_what_was_heard_of_the_fleet_is_left_to_the_successor(make, settings, store, keys):
    make("gpu1@here").make_current("text/b", reach="fleet")
    make("gpu0@here").beat()  # it came later and was not switched itself
    store.delete(keys.current)  # all of them stopped, and this one starts first
    again = make("gpu0@here", settings=settings.model_copy(update={"resume": True}))
    again.resume()
    again.beat()
    assert read_fleet(store, keys).current == "text/b"


@pytest.mark.parametrize("then", ["beat", "farewell"])
def test_what_was_heard_of_the_fleet_in_a_beat_that_failed_is_left_with_the_next(
    make, settings, store, keys, then
):
    make("gpu1@here").make_current("text/b", reach="fleet")
    first = make("gpu0@here")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(first.room, "host", lambda: 1 / 0)
        first.beat()
    if then == "beat":
        first.beat()
    else:
        first._stop.set()
        first._run()
    store.delete(keys.current)
    again = make("gpu0@here", settings=settings.model_copy(update={"resume": True}))
    again.resume()
    assert again.current() == "text/b"


def test_the_last_worker_to_leave_takes_the_fleets_current_model_with_it(make, store, keys):
    trackers = make("gpu0@here"), make("gpu1@here")
    for tracker in trackers:
        tracker.start()
        tracker.say("ready")
    trackers[0].close()
    trackers[1].close()
    assert read_fleet(store, keys).workers == ()
    assert store.get(keys.current) is None
    assert store.smembers(keys.workers) == set()


def test_a_worker_that_closes_still_tells_its_last_moves(make, store, keys):
    tracker = make(beat_s=3600)
    tracker.start()
    tracker.slots.load(VISION)
    tracker.close()
    fleet = read_fleet(store, keys)
    assert [event.kind for event in fleet.events] == ["lifted", "loaded"]
    assert fleet.workers == ()


def test_an_event_is_written_at_once_and_not_with_the_next_beat(make, store, keys):
    tracker = make(beat_s=3600)
    tracker.start()
    tracker.slots.load(VISION)
    [(_, entries)] = store.xread({keys.events: 0}, block=WITHIN_S * 1000)
    assert entries
    tracker.close()


@pytest.mark.parametrize(
    "note",
    [
        lambda tracker: tracker.say("ready"),
        lambda tracker: tracker.show_soon(),
        lambda tracker: tracker.change(Knobs(slots=3)),
        lambda tracker: tracker.make_current("clip/b", reach="worker"),
    ],
    ids=["how it is", "a load has begun", "settings", "the current model"],
)
def test_what_people_look_for_is_shown_at_once(make, note):
    tracker, beats = make(beat_s=3600), SimpleQueue()
    tracker.attach(tracker.slots, tracker.room, Ledger(), renew=lambda: beats.put("beat"))
    tracker.start()
    assert beats.get(timeout=WITHIN_S)
    note(tracker)
    assert beats.get(timeout=WITHIN_S)
    tracker.close()


def test_a_worker_without_a_model_knows_whether_another_is_ready(make, store, keys):
    here, there = make("gpu0@here"), make("gpu0@there")
    here.say("ready")
    here.beat()
    assert not here.has_company  # it is not its own
    there.beat()
    here.beat()
    assert not here.has_company  # the other one is starting
    there.say("ready")
    there.beat()
    here.beat()
    assert here.has_company
    store.delete(keys.worker("gpu0@there"))  # as it expires
    here.beat()
    assert not here.has_company


def test_a_worker_is_shown_though_anothers_hash_is_none_of_ours(make, store, keys):
    store.sadd(keys.workers, "stranger")
    store.hset(keys.worker("stranger"), "state", "canary")
    here = make("gpu0@here")
    here.beat()
    assert store.exists(keys.worker("gpu0@here"))
    assert not here.has_company


def test_two_workers_of_one_name_say_so_and_a_successor_does_not(make, store, keys, watch):
    def trouble():
        [worker] = read_fleet(store, keys).workers
        return worker.trouble

    before = make()
    before.say("ready")
    before.beat()
    watch.now += 5
    here = make()
    here.say("ready")
    here.beat()
    here.beat()
    assert trouble() == ""
    watch.now += 5
    before.beat()  # it had not gone
    assert trouble().startswith("another process is called gpu0@here too")
    here.beat()
    assert trouble().startswith("another process is called gpu0@here too")
    before.say("stopping")
    before.beat()
    assert trouble() == ""  # what it has begun is not dropped over that


def test_a_worker_that_brings_its_first_model_too_is_no_company(make):
    here, there = make("gpu0@here"), make("gpu0@there")
    there.say("ready")

    def while_there_loads(step):
        if step == "load":
            there.beat()
            here.beat()

    options = {"before": while_there_loads}
    there.slots.load(Entry("clip/first", backend="fake", options=options))
    assert not here.has_company
    there.beat()
    here.beat()
    assert here.has_company
    there.slots.load(Entry("clip/second", backend="fake", options=options))
    assert here.has_company


def test_beats_renew_what_the_process_has_reserved(make):
    renewed = threading.Event()
    tracker = make(beat_s=3600)
    tracker._renew = renewed.set
    tracker.start()
    assert renewed.wait(WITHIN_S)
    tracker.close()
