"""One worker's sweeps, in this process and with the slots' clock moved by hand."""

import time
from types import SimpleNamespace

import pytest
from celery.worker import state

from api_client.status import read_fleet
from api_client.wire import names
from api_client.wire.broker import redis_client
from api_client.wire.codec import unpack_record
from api_client.wire.messages import Event, Knobs
from tasks.sweep import sweep, sweep_fleet
from tests.tasks import fleet
from worker import runtime
from worker.backends.fake import FakeModel
from worker.delivery.watchdog import EXIT_CODE
from worker.residency import sweeping, usage
from worker.settings import WorkerSettings

VISION = "clip/a"


@pytest.fixture
def make(monkeypatch):
    made = []

    def make(url, prefix, **settings):
        given = WorkerSettings.read(
            redis_url=url, key_prefix=prefix, default_model=VISION, **settings
        )
        here = fleet.parts(given, "gpu0@here")
        made.append(here)
        monkeypatch.setattr(runtime, "here", lambda: here)
        return here

    yield make
    for here in made:
        fleet.stop(here)


@pytest.fixture
def here(make, valkey_url, prefix):
    return make(valkey_url, prefix)


@pytest.fixture
def idle(monkeypatch):
    """Lets time pass, as the sweeps see it."""
    really, passed = time.monotonic, [0.0]
    monkeypatch.setattr(sweeping.time, "monotonic", lambda: really() + passed[0])

    def idle(seconds):
        passed[0] += seconds

    return idle


def held(here):
    return {slot.model_id: slot.tier for slot in here.slots.view()}


def load(here, *models):
    for model in models:
        here.slots.load(here.catalogue[model])


def test_whoever_the_clock_asks_first_tells_every_worker_and_keeps_house(here):
    sent, store, keys = [], here.redis, here.keys
    app = SimpleNamespace(send_task=lambda name, **options: sent.append((name, options)))
    table, _ = keys.bindings(names.DIRECT_EXCHANGE)
    store.sadd(table, names.binding("gpu9@gone", names.direct_queue("gpu9@gone")))
    orphans = keys.queue(names.direct_queue("gpu9@gone"), names.INTERACTIVE)
    store.lpush(orphans, "message")
    store.sadd(keys.reply_queues, names.binding("", "client.reply.celery.pidbox"))
    unfetched = keys.reply_queue(names.binding("", "client.reply.celery.pidbox"))
    store.lpush(unfetched, "pong")

    here.tracker.beat()  # by which it is known that this worker is there
    assert sweep_fleet.run.__func__(SimpleNamespace(app=app)) == 1
    [(name, options)] = sent
    assert (name, options["queue"]) == (names.SWEEP, names.direct_queue(here.node))
    assert options["expires"] == here.settings.sweep_interval_s
    reachable = names.binding(here.node, names.direct_queue(here.node))
    assert store.sismember(table, reachable)
    assert store.ttl(orphans) > 0
    assert store.ttl(unfetched) > 0

    assert sweep_fleet.run.__func__(SimpleNamespace(app=app)) == 0  # another beat's
    assert len(sent) == 1


def test_an_idle_model_goes_down_and_then_out(here, idle):
    load(here, "clip/a")
    assert sweep() == {}
    idle(601)
    assert "idle in VRAM" in sweep()["clip/a"]
    assert held(here) == {"clip/a": "host"}
    idle(1200)
    assert "idle in RAM" in sweep()["clip/a"]
    assert held(here) == {}


def test_a_model_in_use_stays(here, idle):
    with here.slots.lease(here.catalogue["clip/a"]):
        idle(10_000)
        assert sweep() == {}
    assert held(here) == {"clip/a": "device"}


def test_timeouts_changed_at_run_time_hold_for_the_next_sweep(here, idle):
    here.tracker.change(Knobs(text_vram_timeout_s=1))
    load(here, "clip/a", "text/c")
    idle(5)
    sweep()
    assert held(here) == {"clip/a": "device", "text/c": "host"}


def test_pressure_sends_the_longest_idle_away_until_there_is_room(here, idle):
    here.tracker.change(Knobs(slots=3, pressure_timeout_s=0.0))
    load(here, "clip/a", "clip/b")
    here.fake.device.take(650)  # a stranger: 850 of 1000 are used now
    idle(1)
    moved = sweep()
    assert list(moved) == ["clip/a"]
    assert "pressure" in moved["clip/a"]
    here.fake.device.give(650)


def test_adaptive_timeouts_keep_a_model_that_always_comes_back(here, idle):
    load(here, "clip/a")
    here.tracker._uses["clip/a"].pauses_s.extend([660.0] * 6)
    idle(650)
    here.tracker.change(Knobs(adaptive_timeouts=True))
    assert sweep() == {}
    here.tracker.change(Knobs(adaptive_timeouts=False))
    assert list(sweep()) == ["clip/a"]


@pytest.fixture
def much_used(here):
    """Models that this hour has seen a lot of, on whatever worker."""

    def much_used(**uses):
        hour = usage.hour_of_week(time.time())
        with here.redis.pipeline() as pipe:
            counts = {(here.catalogue[model].id, hour): count for model, count in uses.items()}
            usage.record(pipe, here.keys, counts)
            pipe.execute()

    return much_used


def test_an_idle_worker_brings_what_is_mostly_wanted_at_this_hour(here, much_used):
    much_used(a=20, b=500)
    assert sweep() == {"clip/b": "likely to be wanted next"}
    assert held(here) == {"clip/b": "device"}


def test_nothing_is_brought_to_a_busy_worker(here, much_used):
    much_used(b=500)
    with here.slots.lease(here.catalogue["text/c"]):
        assert sweep() == {}


def test_with_every_place_taken_what_is_wanted_waits_in_host_memory(here, much_used):
    much_used(b=500)
    here.tracker.change(Knobs(slots=1))
    here.slots.limits = here.slots.limits.__class__(slots=1)
    load(here, "clip/a")
    assert sweep() == {"clip/b": "likely to be wanted next"}
    assert held(here) == {"clip/a": "device", "clip/b": "host"}


def test_nothing_is_brought_into_memory_that_is_short(here, much_used):
    much_used(b=500)
    here.fake.device.take(750)
    assert sweep() == {}
    here.fake.device.give(750)


def test_a_model_that_has_just_gone_is_not_brought_back(here, much_used, idle):
    much_used(a=500)
    load(here, "clip/a")
    idle(5000)
    sweep()
    idle(5000)
    sweep()
    assert held(here) == {}
    assert sweep() == {}


def test_foresight_can_be_switched_off(make, valkey_url, prefix, much_used):
    much_used(a=500)
    make(valkey_url, prefix, foresight=False)
    assert sweep() == {}


def test_a_sweep_while_redis_is_away_gives_memory_back_and_is_told_later(
    valkey_of_my_own, make, idle
):
    here = make(valkey_of_my_own.url, "away", foresight=False)
    load(here, "clip/a")
    valkey_of_my_own.stop()
    idle(601)
    assert list(sweep()) == ["clip/a"]
    assert held(here) == {"clip/a": "host"}
    valkey_of_my_own.start()
    with redis_client(here.settings) as store:
        after = 0
        kinds = []
        while "lowered" not in kinds:
            [(_, entries)] = store.xread({here.keys.events: after}, block=30_000)
            after = entries[-1][0]
            kinds += [unpack_record(Event, fields).kind for _, fields in entries]
        assert read_fleet(store, here.keys).workers[0].models == ("clip/a",)


def test_a_worker_whose_memory_stays_behind_ends_when_idle(make, valkey_url, prefix, monkeypatch):
    here = make(valkey_url, prefix, recycle_residue_gb=0.5)
    monkeypatch.setattr(state, "should_stop", None)
    monkeypatch.setattr(type(here.ledger), "residue_bytes", 10**9)
    with here.slots.lease(here.catalogue[VISION]):
        sweep()
        assert state.should_stop is None
    sweep()
    assert state.should_stop == EXIT_CODE


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "CUDA error: unspecified launch failure\nCompile with...",
            ["the device is lost: CUDA error: unspecified launch failure"],
        ),
        ("CUDA error: out of memory", []),
    ],
)
def test_an_idle_worker_whose_device_is_lost_ends_and_no_other(here, monkeypatch, said, told):
    def fail():
        raise RuntimeError(said)

    ends = []
    here.watchdog = SimpleNamespace(end=ends.append)
    monkeypatch.setattr(here.memory, "device", fail)
    with pytest.raises(RuntimeError):
        sweep()
    assert ends == told


def test_a_worker_that_finds_its_device_lost_as_it_brings_what_will_be_wanted_ends(
    here, much_used, monkeypatch
):
    def lost(model):
        raise RuntimeError("CUDA error: unspecified launch failure")

    much_used(b=500)
    ends = []
    here.watchdog = SimpleNamespace(end=ends.append)
    monkeypatch.setattr(FakeModel, "lift", lost)
    assert sweep() == {}
    assert ends == ["fake has lost its device: CUDA error: unspecified launch failure"]


def test_a_worker_that_was_not_told_to_never_ends_itself(here, monkeypatch):
    monkeypatch.setattr(type(here.ledger), "residue_bytes", 10**12)
    assert sweeping.reason_to_recycle(here) is None
