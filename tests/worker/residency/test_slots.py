from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from math import inf
from threading import Event
from time import monotonic, sleep

import pytest

from api_client.wire.errors import BackendFailed, DeviceLost, LoadFailed, ModelBusy, OutOfMemory
from api_client.wire.messages import Cause, EventKind
from worker.backends.base import Footprint, Placement, Tier
from worker.backends.fake import Fake, FakeModel, Pool
from worker.catalogue import Entry
from worker.residency.ledger import Ledger
from worker.residency.memory import Bytes
from worker.residency.residents import State
from worker.residency.slots import Limits, Slots
from worker.residency.sweeps import Move

SOON_S = 20  # a thread that has not come by then hangs
PATIENT_S = 3 * SOON_S  # for waits that something has to end, or the test fails


class Bench:
    """Slots over the fake family and simulated memories, with a clock moved by hand."""

    def __init__(self, *, device="cuda:0", total=1000, host_total=10_000, headroom=0.0, **limits):
        self.now = 0.0
        self.device, self.host = Pool(total), Pool(host_total)
        self.family = Fake(
            Placement(device=device), device=self.device, host=self.host, sleep=self.sleep
        )
        self.loads, self.events = [], []
        self.aside = self.stepped = self.parked = 0
        unified = device == "cpu"
        self.ledger = Ledger(
            device=lambda: None if unified else Bytes(total, self.device.free),
            host=lambda: Bytes(host_total, self.host.free),
            headroom=headroom,
            residue_bytes=0,
            clock=lambda: self.now,
            sleep=self.sleep,
        )
        self.slots = Slots(
            check=self.family.check,
            load=self.load,
            limits=Limits(**{"wait_s": 0.0, **limits}),
            ledger=self.ledger,
            unified=unified,
            clock=lambda: self.now,
            on_event=self.events.append,
            aside=self.step_aside,
            parked=self.park,
        )

    @contextmanager
    def step_aside(self):  # under the lock of the slots
        self.aside += 1
        self.stepped += 1
        try:
            yield
        finally:
            self.aside -= 1

    @contextmanager
    def park(self):
        self.parked += 1
        try:
            with self.step_aside():
                yield
        finally:
            self.parked -= 1

    def sleep(self, seconds):
        self.now += seconds

    def load(self, entry):
        self.loads.append(entry.id)
        return self.family.load(entry)

    def lease(self, name, *, keep_alive_s=None, patience_s=inf, **options):
        return self.slots.lease(
            entry(name, **options), keep_alive_s=keep_alive_s, patience_s=patience_s
        )

    def use(self, *names, **options):
        for name in names:
            with self.lease(name, **options):
                self.now += 1

    @property
    def tiers(self):
        return {slot.model_id: slot.tier for slot in self.slots.view()}

    def lower(self, name):
        return self.slots.apply([Move(name, Tier.HOST, "idle")])

    def told(self, *kinds):
        return [(event.kind, event.model) for event in self.events if event.kind in kinds]


def entry(name, *, size=100, **options):
    options = {"device_bytes": size, "host_bytes": size, **options}
    return Entry(name, backend="fake", options=options)


@contextmanager
def threads():
    """Those that wait for a gate must be let go before the block ends."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


def until(slots, predicate):
    """Wait for the slots to come into a state, as somebody who waits for a place does."""
    end = monotonic() + SOON_S
    with slots._changed:
        while not predicate():
            assert monotonic() < end, "that never came"
            slots._changed.wait(0.005)


class Gate:
    """Stops a model before one step until it is opened."""

    def __init__(self, step):
        self._step = step
        self.reached, self.open = Event(), Event()

    def __call__(self, step):
        if step == self._step:
            self.reached.set()
            assert self.open.wait(SOON_S)

    @contextmanager
    def holding(self, call, *args, **options):
        """What another thread calls waits here while the block lasts, and then comes to its end."""
        with ThreadPoolExecutor(1) as pool:
            called = pool.submit(call, *args, **options)
            try:
                assert self.reached.wait(SOON_S)
                yield called
            finally:
                self.open.set()
            called.result(SOON_S)


def test_a_lease_is_a_model_that_runs():
    bench = Bench()
    with bench.lease("a") as model:
        assert model.tier is Tier.DEVICE
    assert bench.tiers == {"a": Tier.DEVICE}


def test_the_least_recently_used_goes_down_to_host_memory():
    bench = Bench(slots=2)
    bench.use("a", "b", "a", "c")
    assert bench.tiers == {"b": Tier.HOST, "a": Tier.DEVICE, "c": Tier.DEVICE}
    assert bench.loads == ["a", "b", "c"]


def test_a_model_in_host_memory_is_lifted_not_loaded():
    bench = Bench(slots=1)
    bench.use("a", "b", "a")
    assert bench.tiers == {"b": Tier.HOST, "a": Tier.DEVICE}
    assert bench.loads == ["a", "b"]


def test_without_room_in_host_memory_the_victim_is_gone():
    bench = Bench(slots=1, host_bytes=0)
    bench.use("a", "b")
    assert bench.tiers == {"b": Tier.DEVICE}
    [evicted] = [event for event in bench.events if event.kind == EventKind.EVICTED]
    assert (evicted.model, evicted.reason) == ("a", "made room for b")


def test_older_models_make_room_in_host_memory():
    bench = Bench(slots=1, host_bytes=150)
    bench.use("a", "b", "c")
    assert bench.tiers == {"b": Tier.HOST, "c": Tier.DEVICE}


def test_host_memory_is_not_emptied_for_a_model_that_does_not_fit_anyway():
    bench = Bench(slots=1, host_bytes=150)
    bench.use("a")
    bench.use("big", size=200)
    bench.use("c")
    assert bench.tiers == {"a": Tier.HOST, "c": Tier.DEVICE}


def test_a_copy_left_in_host_memory_counts_once():
    bench = Bench(slots=1, host_bytes=100)
    bench.use("a", host_copy=True)
    bench.use("b")
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE}
    bench.use("a", host_copy=True)
    assert bench.tiers == {"a": Tier.DEVICE}


def test_a_model_whose_weight_cannot_be_told_is_not_kept():
    bench = Bench()
    bench.use("a")
    load = bench.family.load
    bench.family.load = lambda entry: _Weightless(load(entry))
    with pytest.raises(BackendFailed, match="no scales"):
        bench.use("b")
    assert bench.tiers == {"a": Tier.DEVICE}


class _Weightless:
    def __init__(self, model):
        self._model = model

    def footprint(self):
        raise RuntimeError("no scales")


def test_a_limit_of_bytes_counts_as_well_as_the_number():
    bench = Bench(slots=5, device_bytes=250)
    bench.use("a", "b", "c")
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE, "c": Tier.DEVICE}


def test_a_limit_of_bytes_may_be_used_up():
    bench = Bench(slots=5, device_bytes=200)
    bench.use("a", "b")
    assert bench.tiers == {"a": Tier.DEVICE, "b": Tier.DEVICE}
    bench.use("big", size=200)
    assert bench.tiers["big"] is Tier.DEVICE


def test_a_model_larger_than_the_limit_is_refused_before_it_is_loaded():
    bench = Bench(device_bytes=250)
    with pytest.raises(OutOfMemory, match="the limit is 250"):
        bench.use("a", size=300)
    assert bench.loads == []
    assert bench.told(EventKind.OUT_OF_MEMORY) == [(EventKind.OUT_OF_MEMORY, "a")]


def test_a_limit_that_falls_below_a_model_while_it_loads_refuses_it_at_once():
    bench = Bench(wait_s=PATIENT_S)

    def meanwhile(step):
        if step == "load":
            bench.slots.limits = replace(bench.slots.limits, device_bytes=50)

    with threads() as pool, pytest.raises(OutOfMemory, match="the limit is 50"):
        pool.submit(bench.use, "a", before=meanwhile).result(SOON_S)


def test_what_was_measured_of_a_model_counts_more_than_what_is_said_of_it():
    bench = Bench(host_total=500)
    bench.ledger.saw("a", Footprint(host_bytes=900))
    with pytest.raises(OutOfMemory, match="takes 900 bytes"):
        bench.use("a")
    bench.ledger.saw("b", Footprint(device_bytes=300))
    bench.slots.limits = replace(bench.slots.limits, device_bytes=250)
    with pytest.raises(OutOfMemory, match="b takes 300 bytes"):
        bench.use("b")
    assert bench.loads == []


def test_the_bytes_of_a_lift_are_reserved_while_it_lasts():
    bench, held, seen = Bench(), [], {}

    @contextmanager
    def reserve(size):
        held.append(size)
        yield
        held.clear()

    bench.ledger.reserve = reserve
    bench.use("a", before=lambda step: seen.update({step: list(held)}))
    assert (seen, held) == ({"load": [], "lift": [100]}, [])


def test_the_memory_itself_is_asked_before_a_lift():
    bench = Bench(slots=5, total=250)
    bench.use("a", "b", "c")
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE, "c": Tier.DEVICE}


def test_headroom_is_kept_when_others_are_resident_and_only_then():
    bench = Bench(slots=5, total=250, headroom=0.5)
    bench.use("a", "b")
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE}
    bench.use("alone", size=250)
    assert bench.tiers["alone"] is Tier.DEVICE


def test_a_leased_model_stays():
    bench = Bench(slots=1)
    with bench.lease("a"):
        assert bench.slots.apply([Move("a", None, "test"), Move("a", Tier.HOST, "test")]) == []
        with pytest.raises(ModelBusy, match="no place, with 1 slots; leased are a"):
            bench.use("b")
    assert bench.tiers == {"a": Tier.DEVICE, "b": Tier.HOST}


def test_a_lease_ends_with_whatever_its_block_raises():
    bench = Bench()
    with pytest.raises(ZeroDivisionError), bench.lease("a"):
        raise ZeroDivisionError
    assert [slot.leases for slot in bench.slots.view()] == [0]


def test_a_model_counts_as_used_until_its_lease_ends():
    bench = Bench(slots=2)
    with bench.lease("a"):
        bench.use("b")
    assert [slot.used_at for slot in bench.slots.view() if slot.model_id == "a"] == [bench.now]
    bench.use("c")
    assert bench.tiers == {"b": Tier.HOST, "a": Tier.DEVICE, "c": Tier.DEVICE}


def test_the_one_that_found_no_place_is_not_loaded_again():
    bench = Bench(slots=1)
    with bench.lease("a"), pytest.raises(ModelBusy):
        bench.use("b")
    bench.use("b")
    assert bench.loads == ["a", "b"]


def test_a_model_that_does_not_say_what_it_takes_gives_it_back(monkeypatch):
    def mute(model):
        raise ValueError("no idea")

    bench = Bench()
    monkeypatch.setattr(FakeModel, "footprint", mute)
    with pytest.raises(BackendFailed, match="no idea"):
        bench.use("a")
    assert bench.host.used == 0


def test_a_failed_load_evicts_nobody():
    bench = Bench(slots=1, host_bytes=100)
    bench.use("a", "b")
    with pytest.raises(LoadFailed, match="no weights"):
        bench.use("c", fail_load="no weights")
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE}
    assert bench.events[-1].reason == "no weights"
    bench.use("d")  # nor does it keep its place in the line


def test_a_model_needs_as_much_of_the_device_as_was_measured_there():
    bench = Bench(slots=5, device_bytes=350)
    bench.use("a", device_bytes=300)
    bench.lower("a")
    bench.use("b")
    bench.use("a", device_bytes=300)
    assert bench.tiers == {"b": Tier.HOST, "a": Tier.DEVICE}
    lowered = [event.reason for event in bench.events if event.kind == EventKind.LOWERED]
    assert lowered == ["idle", "made room for a"]


def test_a_back_end_that_misbehaves_is_named():
    def misbehave(step):
        raise ZeroDivisionError("oops")

    bench = Bench()
    with pytest.raises(BackendFailed, match="fake failed with a: ZeroDivisionError"):
        bench.use("a", before=misbehave)
    assert bench.tiers == {}


def test_a_device_that_is_lost_during_a_lift_is_named():
    def lose(step):
        if step == "lift":
            raise RuntimeError("CUDA error: device-side assert triggered")

    with pytest.raises(DeviceLost, match="fake has lost its device: CUDA error"):
        Bench().use("a", before=lose)


def test_a_model_that_breaks_while_it_is_lifted_is_gone():
    def misbehave(step):
        if step == "lift":
            raise ZeroDivisionError("oops")

    bench = Bench()
    with pytest.raises(BackendFailed, match="oops"):
        bench.use("a", before=misbehave)
    assert bench.tiers == {}
    assert bench.host.used == 0
    assert bench.told(EventKind.UNLOADED) == [(EventKind.UNLOADED, "a")]


def test_a_model_that_cannot_be_lowered_is_gone():
    def misbehave(step):
        if step == "lower":
            raise MemoryError("host memory is full")

    bench = Bench(slots=1)
    bench.use("a", before=misbehave)
    bench.use("b")
    assert bench.tiers == {"b": Tier.DEVICE}
    told = "could not be lowered: MemoryError('host memory is full')"
    assert told in bench.events[-2].reason


def test_a_model_that_fails_to_say_why_it_cannot_be_lowered_is_gone_too():
    class Unspeakable(Exception):
        def __str__(self):
            raise AttributeError("what it would tell of is not there")

    def misbehave(step):
        if step == "lower":
            raise Unspeakable

    bench = Bench(slots=1)
    bench.use("a", before=misbehave)
    bench.use("b")
    assert bench.tiers == {"b": Tier.DEVICE}


def test_a_model_goes_where_nobody_can_tell_how_much_host_memory_is_free(monkeypatch):
    def no_files_left(size):
        raise OSError("too many open files")

    bench = Bench()
    bench.use("a")
    with monkeypatch.context() as patch:
        patch.setattr(bench.ledger, "host_shortfall", no_files_left)
        bench.lower("a")
    assert bench.events[-1].kind is EventKind.UNLOADED
    bench.use("a")
    assert bench.tiers == {"a": Tier.DEVICE}


def test_a_model_whose_unload_breaks_is_gone_all_the_same():
    def misbehave(step):
        if step == "unload":
            raise ZeroDivisionError("oops")

    bench = Bench()
    bench.use("a", before=misbehave)
    assert bench.slots.unload("a", reason="test", wait_s=0)
    assert bench.tiers == {}


def test_idle_models_make_way_when_a_lift_runs_out_of_memory():
    stranger = []

    def takes_memory_first(step):
        if step == "lift" and not stranger:
            stranger.append(step)
            raise MemoryError("a stranger was faster")

    bench = Bench(slots=3)
    bench.use("a", "b")
    bench.use("c", before=takes_memory_first)
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.HOST, "c": Tier.DEVICE}
    assert bench.told(EventKind.OUT_OF_MEMORY) == [(EventKind.OUT_OF_MEMORY, "c")]


def test_a_lift_without_memory_even_then_is_an_error_and_the_model_waits_in_host_memory():
    bench = Bench(slots=1, total=250)
    with pytest.raises(OutOfMemory, match="250 free"):
        bench.use("a", size=300)
    assert bench.tiers == {"a": Tier.HOST}
    bench.use("b")  # its seat is free again
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE}


def test_older_models_make_room_when_host_memory_itself_is_short():
    bench = Bench(slots=1, host_total=250)
    bench.use("a", "b", "c")
    assert bench.tiers == {"b": Tier.HOST, "c": Tier.DEVICE}


def test_idle_models_in_host_memory_make_way_for_a_load():
    bench = Bench(slots=1, host_total=250)
    bench.use("a", "b")
    bench.use("big", size=200)
    assert bench.tiers == {"big": Tier.DEVICE}
    assert bench.loads == ["a", "b", "big"]


def test_a_load_that_host_memory_cannot_hold_is_not_tried():
    bench = Bench(host_total=250)
    with pytest.raises(OutOfMemory, match="50 too many"):
        bench.use("a", size=300)
    assert bench.loads == []


def test_keep_alive_zero_goes_when_idle():
    bench = Bench()
    with bench.lease("a", keep_alive_s=0):
        with bench.lease("a"):
            pass
        assert bench.tiers == {"a": Tier.DEVICE}
    assert bench.tiers == {}
    assert bench.told(EventKind.UNLOADED) == [(EventKind.UNLOADED, "a")]


def test_the_last_keep_alive_that_was_given_holds():
    bench = Bench()
    bench.use("a", keep_alive_s=-1)
    bench.use("a")
    assert [slot.keep_alive_s for slot in bench.slots.view()] == [-1]


def test_a_pinned_model_is_not_pushed_out():
    bench = Bench(slots=1, pinned=frozenset({"a"}))
    bench.use("a", keep_alive_s=0)
    with pytest.raises(ModelBusy, match="leased are none; pinned are a"):
        bench.use("b")
    assert bench.tiers["a"] is Tier.DEVICE
    assert bench.slots.unload("a", reason="test", wait_s=0)
    assert "a" not in bench.tiers


def test_a_model_lifted_a_moment_ago_leaves_only_for_those_who_cannot_wait():
    bench = Bench(slots=1, wait_s=30, residency_s=60)
    bench.use("a")
    with threads() as pool:
        b = pool.submit(bench.use, "b")
        until(bench.slots, lambda: "b" in bench.loads and bench.slots._lifts)
        assert bench.tiers == {"a": Tier.DEVICE, "b": Tier.HOST}
        bench.now += 31
        bench.slots.limits = bench.slots.limits  # wakes those who wait, to look at the clock
        b.result(SOON_S)
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE}


class MovesOn(Bench):
    """Its clock moves when somebody has waited."""

    @contextmanager
    def step_aside(self):
        with super().step_aside():
            yield
        self.now += 1


def test_who_waits_looks_again_when_another_has_stayed_for_long_enough():
    bench = MovesOn(slots=2, wait_s=PATIENT_S, residency_s=PATIENT_S + 0.05)
    bench.now = 1000.0
    bench.slots.load(entry("a"))
    bench.now += PATIENT_S
    bench.slots.load(entry("b"))
    with threads() as pool:
        pool.submit(bench.use, "c").result(SOON_S)
    assert bench.stepped
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE, "c": Tier.DEVICE}


def test_the_time_of_a_load_comes_on_top_of_the_wait_for_a_place():
    bench = Bench(slots=1, wait_s=PATIENT_S)
    with threads() as pool:
        with bench.lease("a"):
            b = pool.submit(bench.use, "b", load_s=2 * PATIENT_S)
            until(bench.slots, lambda: b.done() or any(slot.gates for slot in bench.slots._slots))
        b.result(SOON_S)


def test_load_says_whether_something_changed():
    bench = Bench()
    assert bench.slots.load(entry("a"))
    assert not bench.slots.load(entry("a"))
    assert [slot.leases for slot in bench.slots.view()] == [0]


def test_a_load_may_say_how_long_its_model_stays_once_idle():
    bench = Bench()
    for said in (30, None):
        bench.slots.load(entry("a"), keep_alive_s=said)
        assert [slot.keep_alive_s for slot in bench.slots.view()] == [30]


def test_a_model_goes_down_at_once_where_a_limit_has_fallen_while_it_was_loaded():
    bench = Bench(slots=2)

    def meanwhile(step):
        if step == "lift":
            bench.slots.limits = replace(bench.slots.limits, slots=1)

    with bench.lease("a"):
        bench.slots.load(entry("b", before=meanwhile))
        assert bench.tiers == {"a": Tier.DEVICE, "b": Tier.HOST}


def test_unload_says_whether_there_was_something():
    bench = Bench()
    bench.use("a")
    assert bench.slots.unload("a", reason="asked", asked_by="me", wait_s=0)
    assert not bench.slots.unload("a", reason="asked", wait_s=0)
    last = bench.events[-1]
    assert (last.reason, last.asked_by, last.bytes) == ("asked", "me", 100)


def test_an_unload_of_a_leased_model_waits_for_a_bound():
    bench = Bench()
    with bench.lease("a"), pytest.raises(ModelBusy, match="still in use"):
        bench.slots.unload("a", reason="asked", wait_s=0)
    assert bench.tiers == {"a": Tier.DEVICE}
    bench.use("a")


def test_an_unload_drains_and_who_comes_meanwhile_loads_anew():
    bench = Bench(wait_s=PATIENT_S)
    with threads() as pool:
        with bench.lease("a"):
            gone = pool.submit(bench.slots.unload, "a", reason="asked", wait_s=SOON_S)
            until(bench.slots, lambda: any(slot.gates for slot in bench.slots._slots))
            late = pool.submit(bench.use, "a")
            assert not late.done()
        assert gone.result(SOON_S)
        late.result(SOON_S)
    assert bench.loads == ["a", "a"]


def test_who_comes_during_an_unload_loads_anew():
    bench, gate = Bench(wait_s=PATIENT_S), Gate("unload")
    bench.use("a", before=gate)
    with threads() as pool, gate.holding(bench.slots.unload, "a", reason="asked", wait_s=0) as gone:
        late = pool.submit(bench.use, "a")
        until(bench.slots, lambda: bench.slots._changed._waiters)
    assert gone.result(SOON_S)
    late.result(SOON_S)
    assert bench.loads == ["a", "a"]


def test_a_lease_goes_on_as_soon_as_an_unload_gives_up():
    bench = Bench(wait_s=PATIENT_S)
    with threads() as pool, bench.lease("a"):
        gone = pool.submit(bench.slots.unload, "a", reason="asked", wait_s=0.05)
        until(bench.slots, lambda: any(slot.gates for slot in bench.slots._slots))
        late = pool.submit(bench.use, "a")
        until(bench.slots, lambda: len(bench.slots._changed._waiters) == 2)
        bench.now += 1  # too late for the one, not for the other
        with pytest.raises(ModelBusy):
            gone.result(SOON_S)
        late.result(SOON_S)


def test_nobody_else_is_pushed_out_while_one_is_leaving():
    bench, gate = Bench(slots=2, wait_s=PATIENT_S), Gate("lower")
    bench.use("a", before=gate)
    bench.use("b")
    with threads() as pool, gate.holding(bench.lower, "a"):
        c = pool.submit(bench.use, "c")
        until(bench.slots, lambda: bench.slots._lifts)
    c.result(SOON_S)
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE, "c": Tier.DEVICE}


def test_a_place_is_free_when_its_model_has_gone_and_not_before():
    bench, gate = Bench(slots=1, wait_s=PATIENT_S), Gate("lower")
    bench.use("a", before=gate)
    with threads() as pool, gate.holding(bench.lower, "a"):
        b = pool.submit(bench.use, "b")
        until(bench.slots, lambda: bench.slots._lifts and bench.slots._changed._waiters)
    b.result(SOON_S)
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE}


def test_a_model_on_its_way_out_for_another_has_no_leases():
    bench, gate = Bench(slots=1), Gate("lower")
    bench.use("a", before=gate)
    with threads() as pool:
        b = pool.submit(bench.use, "b")
        assert gate.reached.wait(SOON_S)
        with pytest.raises(ModelBusy):
            bench.use("a")
        gate.open.set()
        b.result(SOON_S)
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE}


def test_host_memory_is_promised_from_the_beginning_of_a_move():
    bench, gate = Bench(host_bytes=150, pinned=frozenset({"a"})), Gate("lower")
    bench.use("a", before=gate)
    bench.use("b")
    with threads() as pool, gate.holding(bench.lower, "a"):
        also = pool.submit(bench.lower, "b")
        until(bench.slots, lambda: bench.slots._slots.get("b").state == "leaving")
    also.result(SOON_S)
    assert bench.tiers == {"a": Tier.HOST}
    assert bench.told(EventKind.LOWERED) == [(EventKind.LOWERED, "a")]


def test_one_model_moves_at_a_time_so_that_its_bytes_can_be_seen():
    bench, gate, lifted = Bench(slots=3, wait_s=PATIENT_S), Gate("lower"), Event()
    bench.use("a", before=gate)
    with threads() as pool, gate.holding(bench.lower, "a"):
        b = pool.submit(bench.use, "b", before=lambda step: step != "lift" or lifted.set())
        until(bench.slots, lambda: any(slot.state == "lifting" for slot in bench.slots._slots))
        assert not lifted.wait(0.05)
    b.result(SOON_S)
    assert lifted.is_set()


def test_a_place_is_taken_from_the_beginning_of_a_lift():
    bench, gate = Bench(slots=1, total=150, wait_s=PATIENT_S), Gate("lift")
    with threads() as pool, gate.holding(warm, bench, "a", Tier.DEVICE, before=gate) as likely:
        b = pool.submit(bench.use, "b")
        until(bench.slots, lambda: bench.slots._lifts and bench.slots._changed._waiters)
    assert likely.result(SOON_S)
    b.result(SOON_S)
    assert bench.told(EventKind.OUT_OF_MEMORY) == []


def test_a_busy_victim_gets_no_new_leases_until_it_has_gone():
    bench = Bench(slots=1, wait_s=PATIENT_S)
    with threads() as pool:
        with bench.lease("a"):
            b = pool.submit(bench.use, "b")
            until(bench.slots, lambda: any(slot.gates for slot in bench.slots._slots))
            again = pool.submit(bench.use, "a")
            assert bench.parked == 0  # who brings what others wait for is not sent back
        b.result(SOON_S)
        again.result(SOON_S)
    lifted = [event.model for event in bench.events if event.kind is EventKind.LIFTED]
    assert lifted == ["a", "b", "a"]


def test_what_does_not_fit_into_host_memory_together_is_loaded_one_after_the_other():
    bench, gate = Bench(host_total=250, wait_s=PATIENT_S), Gate("load")
    with threads() as pool, gate.holding(bench.use, "a", size=150, before=gate):
        b = pool.submit(bench.use, "b", size=150)
        until(bench.slots, lambda: bench.slots._changed._waiters or len(bench.loads) == 2)
        meanwhile = list(bench.loads)
    b.result(SOON_S)
    assert meanwhile == ["a"]
    assert bench.told(EventKind.OUT_OF_MEMORY) == []


@pytest.mark.parametrize("step", ["load", "lower"])
def test_a_load_waits_for_what_comes_into_host_memory_where_that_is_short_for_both(step):
    bench, gate = Bench(host_total=250, wait_s=PATIENT_S), Gate(step)
    a = entry("a", size=150, before=gate)
    with threads() as pool:
        if step == "load":
            coming = pool.submit(bench.slots.warm, a, to=Tier.HOST, reason="likely")
        else:
            bench.slots.load(a)
            coming = pool.submit(bench.lower, "a")
        assert gate.reached.wait(SOON_S)
        b = pool.submit(bench.use, "b", size=150)
        until(bench.slots, lambda: bench.slots._changed._waiters or len(bench.loads) == 2)
        meanwhile = list(bench.loads)
        gate.open.set()
        assert coming.result(SOON_S)
        b.result(SOON_S)
    assert meanwhile == ["a"]
    assert bench.told(EventKind.EVICTED) == [(EventKind.EVICTED, "a")]


def test_a_warm_up_takes_nothing_that_is_promised_to_what_is_being_lowered():
    bench, gate = Bench(host_total=250), Gate("lower")
    bench.use("a", size=150, before=gate)
    with gate.holding(bench.lower, "a"):
        warmed = bench.slots.warm(entry("b", size=150), to=Tier.HOST, reason="likely")
    assert not warmed
    assert bench.tiers == {"a": Tier.HOST}


def test_no_load_begins_between_the_look_at_host_memory_and_the_promise_of_it(monkeypatch):
    bench, meanwhile = Bench(), []
    bench.use("a")
    look = bench.ledger.host_shortfall
    with threads() as pool:

        def looked(size):
            monkeypatch.undo()
            short = look(size)
            with suppress(TimeoutError):  # in which it would begin
                pool.submit(bench.use, "b").result(0.1)
            meanwhile.extend(bench.loads)
            return short

        monkeypatch.setattr(bench.ledger, "host_shortfall", looked)
        bench.lower("a")
    assert meanwhile == ["a"]


def test_what_does_not_fit_into_host_memory_together_is_lowered_one_after_the_other():
    bench, gate = Bench(host_total=250), Gate("lower")
    with threads() as pool:
        bench.use("a", size=150, before=gate)
        bench.use("b", size=150)
        a = pool.submit(bench.lower, "a")
        assert gate.reached.wait(SOON_S)
        b = pool.submit(bench.lower, "b")
        until(bench.slots, lambda: bench.slots._slots.get("b").state is State.LEAVING)
        gate.open.set()
        a.result(SOON_S)
        b.result(SOON_S)
    assert bench.tiers == {"b": Tier.HOST}


@pytest.mark.parametrize("bring", ["use", "warm"])
def test_what_is_lowered_leaves_host_memory_to_a_load_under_way(bring):
    bench = Bench(host_total=150, slots=2)
    bench.use("a")

    def meanwhile(step):
        if step == "load":
            bench.lower("a")

    if bring == "use":
        bench.use("b", before=meanwhile)
    else:
        bench.slots.warm(entry("b", before=meanwhile), to=Tier.HOST, reason="likely")
    assert bench.told(EventKind.OUT_OF_MEMORY) == []
    assert list(bench.tiers) == ["b"]


def test_of_several_busy_models_one_alone_gets_no_new_leases():
    bench = Bench(slots=2, wait_s=PATIENT_S)
    with threads() as pool, bench.lease("b"):
        with bench.lease("a"):
            with bench.lease("b"), bench.lease("a"):
                c = pool.submit(bench.use, "c")
                until(bench.slots, lambda: any(slot.gates for slot in bench.slots._slots))
                waits = bench.stepped
            until(bench.slots, lambda: bench.stepped > waits)  # a is the older one now
            gated = [slot.id for slot in bench.slots._slots if slot.gates]
        c.result(SOON_S)
    assert gated == ["b"]


def test_where_two_have_to_go_the_second_gets_no_new_leases_once_the_first_has_gone():
    bench = Bench(total=250, wait_s=PATIENT_S)
    with threads() as pool, bench.lease("b"):
        with bench.lease("a", keep_alive_s=0):
            bench.use("b")
            big = pool.submit(bench.use, "big", size=200)
            until(bench.slots, lambda: any(slot.gates for slot in bench.slots._slots))
        until(bench.slots, lambda: bench.slots._slots.get("b").gates)
    big.result(SOON_S)


def test_one_load_serves_everyone_who_waits_for_it():
    bench, gate = Bench(slots=1), Gate("load")
    with threads() as pool:
        waiting = [pool.submit(bench.use, "a", before=gate) for _ in range(4)]
        until(bench.slots, lambda: _joined(bench, "a") == 4)
        gate.open.set()
        for each in waiting:
            each.result(SOON_S)
    assert bench.loads == ["a"]
    assert [slot.leases for slot in bench.slots.view()] == [0]


@pytest.mark.parametrize(("ready", "aside"), [(["b"], 2), ([], 0)])
def test_those_who_wait_step_aside_while_there_is_a_model_to_work_with(ready, aside):
    bench, gate = Bench(slots=2), Gate("load")
    bench.use(*ready)
    with threads() as pool:
        waiting = [pool.submit(bench.use, "a", before=gate) for _ in range(3)]
        until(bench.slots, lambda: _joined(bench, "a") == 3)
        assert bench.aside == bench.parked == aside  # one brings it
        gate.open.set()
        for each in waiting:
            each.result(SOON_S)
    assert bench.aside == 0


def test_those_who_wait_for_a_model_are_not_woken_by_leases_of_another():
    bench, gate = Bench(slots=2), Gate("load")
    bench.use("b")
    with threads() as pool:
        waiting = [pool.submit(bench.use, "a", before=gate) for _ in range(3)]
        until(bench.slots, lambda: _joined(bench, "a") == 3)
        for _ in range(20):
            bench.use("b")
            sleep(0.005)  # for whoever is woken
        gate.open.set()
        for each in waiting:
            each.result(SOON_S)
    assert bench.stepped == 2  # one brings it


def test_those_who_wait_step_aside_as_soon_as_another_model_is_ready():
    bench, gate = Bench(slots=2), Gate("load")
    with threads() as pool:
        waiting = [pool.submit(bench.use, "a", before=gate) for _ in range(3)]
        until(bench.slots, lambda: _joined(bench, "a") == 3)
        assert bench.aside == 0
        bench.use("b")
        until(bench.slots, lambda: bench.aside == 2)
        gate.open.set()
        for each in waiting:
            each.result(SOON_S)


def test_who_cannot_wait_for_a_model_leaves_no_lease_behind_when_it_comes(monkeypatch):
    bench, gate = Bench(slots=2), Gate("load")
    bench.use("b")

    def no_thread():
        raise RuntimeError("can't start new thread")

    with gate.holding(bench.use, "a", before=gate):
        monkeypatch.setattr(bench.slots._room, "_parked", no_thread)
        with pytest.raises(RuntimeError):
            bench.use("a")
    assert {slot.model_id: slot.leases for slot in bench.slots.view()} == {"a": 0, "b": 0}


def test_only_the_first_model_is_brought_while_there_is_none_to_work_with():
    bench, first, second = Bench(), Gate("load"), Gate("load")
    assert not bench.slots.brings_its_first
    with threads() as pool:
        use = pool.submit(bench.use, "a", before=first)
        assert first.reached.wait(SOON_S)
        assert bench.slots.brings_its_first
        first.open.set()
        use.result(SOON_S)
        use = pool.submit(bench.use, "b", before=second)
        assert second.reached.wait(SOON_S)
        assert not bench.slots.brings_its_first
        second.open.set()
        use.result(SOON_S)


def test_those_who_shared_a_load_do_not_wait_for_the_first_to_finish():
    bench, gate, done = Bench(), Gate("load"), Event()

    def use_for_long():
        with bench.lease("a", before=gate):
            assert done.wait(SOON_S)

    with threads() as pool:
        first = pool.submit(use_for_long)
        assert gate.reached.wait(SOON_S)
        second = pool.submit(bench.use, "a")
        until(bench.slots, lambda: _joined(bench, "a") == 2)
        gate.open.set()
        second.result(SOON_S)
        done.set()
        first.result(SOON_S)


def test_who_has_no_time_for_a_load_that_others_began_leaves_it_to_them():
    bench, gate = Bench(), Gate("load")
    refused = pytest.raises(ModelBusy, match="still on its way")
    with gate.holding(bench.use, "a", before=gate), refused:
        bench.use("a", patience_s=0.0)
    assert [slot.leases for slot in bench.slots.view()] == [0]


def test_who_has_no_time_to_wait_for_a_place_does_not():
    bench = Bench(slots=1, wait_s=PATIENT_S)
    with bench.lease("a"), pytest.raises(ModelBusy, match="no place"):
        bench.use("b", patience_s=0.0)
    assert bench.tiers["a"] is Tier.DEVICE


def test_whoever_can_wait_longer_than_the_first_one_goes_on_waiting():
    bench = Bench(slots=1, wait_s=PATIENT_S)
    with threads() as pool:
        with bench.lease("a"):
            first = pool.submit(bench.use, "b", patience_s=0.05)
            until(bench.slots, lambda: any(slot.gates for slot in bench.slots._slots))
            second = pool.submit(bench.use, "b")
            until(bench.slots, lambda: _joined(bench, "b") == 2)
            bench.now += 1
            with pytest.raises(ModelBusy, match="no place"):
                first.result(SOON_S)
        second.result(SOON_S)
    assert bench.loads == ["a", "b"]


def test_one_error_serves_everyone_who_waits_for_it():
    bench, gate = Bench(), Gate("load")
    with threads() as pool:
        waiting = [
            pool.submit(bench.use, "a", before=gate, fail_load="no weights") for _ in range(4)
        ]
        until(bench.slots, lambda: _joined(bench, "a") == 4)
        gate.open.set()
        for each in waiting:
            with pytest.raises(LoadFailed, match="no weights"):
                each.result(SOON_S)
    assert bench.loads == ["a"]


@pytest.mark.parametrize("step", ["load", "lift"])
def test_a_hit_waits_neither_for_a_load_nor_for_a_move_of_another_model(step):
    bench, gate = Bench(slots=2), Gate(step)
    bench.use("a")
    with gate.holding(bench.use, "b", before=gate):
        bench.use("a")


def test_a_lift_does_not_wait_for_the_load_of_another_model():
    bench, gate = Bench(slots=1), Gate("load")
    bench.use("a", "b")
    with gate.holding(bench.use, "c", before=gate):
        bench.use("a")


def test_the_victim_can_be_used_while_the_newcomer_loads():
    bench, gate = Bench(slots=1, wait_s=PATIENT_S), Gate("load")
    bench.use("a")
    with gate.holding(bench.use, "b", before=gate):
        bench.use("a", "a")
    assert bench.loads == ["a", "b"]


def test_an_unload_waits_for_the_load_that_is_under_way():
    bench, gate = Bench(), Gate("load")
    with threads() as pool:
        a = pool.submit(bench.use, "a", before=gate)
        assert gate.reached.wait(SOON_S)
        gone = pool.submit(bench.slots.unload, "a", reason="asked", wait_s=SOON_S)
        gate.open.set()
        a.result(SOON_S)
        assert gone.result(SOON_S)
    assert bench.tiers == {}


def test_an_unload_of_a_model_whose_load_fails_finds_nothing_to_do():
    bench, gate = Bench(), Gate("load")
    with threads() as pool:
        a = pool.submit(bench.use, "a", before=gate, fail_load="no weights")
        assert gate.reached.wait(SOON_S)
        gone = pool.submit(bench.slots.unload, "a", reason="asked", wait_s=PATIENT_S)
        until(bench.slots, lambda: any(slot.gates for slot in bench.slots._slots))
        gate.open.set()
        assert gone.result(SOON_S) is False
        with pytest.raises(LoadFailed):
            a.result(SOON_S)


def test_waiting_ends_at_its_bound():
    bench = Bench(slots=1, wait_s=PATIENT_S)
    with bench.lease("a"), threads() as pool:
        b = pool.submit(bench.use, "b")
        until(bench.slots, lambda: any(slot.gates for slot in bench.slots._slots))
        bench.now += PATIENT_S
        bench.slots.limits = bench.slots.limits
        with pytest.raises(ModelBusy):
            b.result(SOON_S)
        bench.use("a")  # the gate is open again


def test_no_more_models_load_at_once_than_there_are_slots():
    bench, gate = Bench(slots=1, wait_s=PATIENT_S), Gate("load")
    with threads() as pool:
        a = pool.submit(bench.use, "a", before=gate)
        assert gate.reached.wait(SOON_S)
        b = pool.submit(bench.use, "b")
        until(bench.slots, lambda: len(bench.slots._loads) == 2)
        assert bench.loads == ["a"]
        gate.open.set()
        a.result(SOON_S)
        b.result(SOON_S)


def test_a_lower_limit_takes_what_is_idle_at_once_and_the_rest_after_its_lease():
    bench = Bench(slots=3)
    bench.use("a", "b")
    with bench.lease("c"), bench.lease("b"):
        bench.slots.limits = replace(bench.slots.limits, slots=1)
        assert bench.tiers == {"a": Tier.HOST, "c": Tier.DEVICE, "b": Tier.DEVICE}
        with pytest.raises(ModelBusy, match="has to leave"):
            bench.use("c")
        bench.use("b")
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.HOST, "c": Tier.DEVICE}


def test_of_what_is_over_a_lower_limit_the_same_one_gets_no_new_leases_until_it_has_gone():
    bench = Bench(slots=2)
    with bench.lease("b"):
        with bench.lease("a"):
            with bench.lease("a"), bench.lease("b"):
                bench.slots.limits = replace(bench.slots.limits, slots=1)
                with pytest.raises(ModelBusy, match="has to leave"):
                    bench.use("a")
            with pytest.raises(ModelBusy, match="has to leave"):
                bench.use("a")  # though b is the older one now
            bench.use("b")
        assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE}
        bench.use("b")


def test_a_lower_limit_of_host_memory_takes_the_oldest():
    bench = Bench(slots=1)
    bench.use("a", "b", "c")
    bench.slots.limits = replace(bench.slots.limits, host_bytes=100)
    assert bench.tiers == {"b": Tier.HOST, "c": Tier.DEVICE}


def test_a_lower_limit_of_bytes_takes_what_is_idle_at_once():
    bench = Bench(slots=3)
    bench.use("a", "b")
    bench.slots.limits = replace(bench.slots.limits, device_bytes=100)
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE}


def test_no_limit_takes_a_pinned_model_that_rests_in_host_memory():
    bench = Bench(slots=1)
    bench.use("a", "b", "c")
    bench.slots.limits = replace(bench.slots.limits, host_bytes=0, pinned=frozenset({"a"}))
    assert bench.tiers == {"a": Tier.HOST, "c": Tier.DEVICE}


def test_a_sweep_moves_down():
    bench = Bench()
    bench.use("a", "b", "c")
    down = [
        Move("b", Tier.HOST, "idle"),
        Move("c", None, "idle"),
        Move("c", None, "twice"),
        Move("b", Tier.HOST, "twice"),
    ]
    assert bench.slots.apply(down, asked_by="sweep") == down[:2]
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.HOST}
    assert [event.asked_by for event in bench.events[-2:]] == ["sweep", "sweep"]


def test_each_move_tells_its_cause():
    bench = Bench(slots=1)
    with bench.slots.lease(entry("a"), asked_by=Cause.START):
        pass
    with bench.slots.lease(entry("b"), asked_by="sweep"):  # as anybody may call himself
        pass
    bench.slots.apply([Move("a", None, "idle")], asked_by=Cause.SWEEP)
    bench.slots.limits = replace(bench.slots.limits, slots=0)
    bench.slots.close()
    assert [(event.model, event.kind.value, event.cause) for event in bench.events] == [
        ("a", "loaded", "start"),
        ("a", "lifted", "start"),
        ("b", "loaded", "request"),
        ("a", "lowered", "room"),
        ("b", "lifted", "request"),
        ("a", "unloaded", "sweep"),
        ("b", "lowered", "limits"),
        ("b", "unloaded", "stop"),
    ]


def test_a_sweep_leaves_what_was_used_since_it_looked():
    bench = Bench()
    bench.use("a")
    [seen] = bench.slots.view()
    bench.use("a")
    assert bench.slots.apply([Move("a", None, "idle", used_at=seen.used_at)]) == []


def warm(bench, name, to, **options):
    return bench.slots.warm(entry(name, **options), to=to, reason="likely")


def test_a_model_can_be_warmed_up_before_anyone_asks():
    bench = Bench()
    assert warm(bench, "a", Tier.HOST)
    assert warm(bench, "b", Tier.DEVICE)
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE}
    assert [(event.kind, event.reason) for event in bench.events] == [
        (EventKind.LOADED, "likely"),
        (EventKind.LOADED, "likely"),
        (EventKind.LIFTED, "likely"),
    ]
    assert not warm(bench, "a", Tier.DEVICE)


@pytest.mark.parametrize(
    "limits", [{"slots": 2}, {"device_bytes": 250}, {"slots": 9, "total": 250}]
)
def test_nobody_leaves_the_device_for_a_model_that_is_warmed_up(limits):
    bench = Bench(**limits)
    bench.use("a", "b")
    before = bench.tiers
    assert not warm(bench, "c", Tier.DEVICE)
    assert bench.tiers == before


def test_nothing_is_loaded_for_a_place_on_the_device_that_is_taken():
    bench = Bench(slots=1)
    bench.use("a")
    assert not warm(bench, "b", Tier.DEVICE)
    assert bench.loads == ["a"]


def test_where_nothing_rests_in_host_memory_a_model_can_be_warmed_up_on_the_device():
    bench = Bench(host_bytes=0)
    assert not warm(bench, "a", Tier.HOST)
    assert warm(bench, "a", Tier.DEVICE)
    assert bench.tiers == {"a": Tier.DEVICE}


def test_nobody_leaves_host_memory_for_a_model_that_is_warmed_up():
    bench = Bench(slots=1, host_bytes=150)
    bench.use("a", "b")
    assert not warm(bench, "c", Tier.HOST)
    assert bench.tiers == {"a": Tier.HOST, "b": Tier.DEVICE}


def test_nobody_leaves_host_memory_for_the_copy_of_a_model_that_is_warmed_up():
    bench = Bench(slots=1, host_bytes=150)
    assert warm(bench, "a", Tier.HOST)
    assert not warm(bench, "b", Tier.DEVICE, host_copy=True)
    assert bench.tiers == {"a": Tier.HOST}


def test_a_model_that_cannot_be_warmed_up_leaves_nothing_behind(caplog):
    bench = Bench()
    bench.device.take(950)
    with pytest.raises(OutOfMemory):
        warm(bench, "a", Tier.DEVICE)
    with pytest.raises(LoadFailed):
        warm(bench, "b", Tier.HOST, fail_load="no weights")
    assert "did not unload" not in caplog.text  # where nothing was loaded
    assert bench.tiers == {}
    assert bench.host.used == 0


def test_who_asks_for_a_model_that_is_being_warmed_up_gets_it():
    bench, gate = Bench(), Gate("load")
    with threads() as pool, gate.holding(warm, bench, "a", Tier.HOST, before=gate) as likely:
        asked = pool.submit(bench.use, "a")
        until(bench.slots, lambda: _joined(bench, "a") == 1)
    assert likely.result(SOON_S)
    asked.result(SOON_S)
    assert bench.tiers == {"a": Tier.DEVICE}
    assert bench.loads == ["a"]


def test_whoever_waits_for_a_place_goes_before_a_model_that_is_warmed_up():
    bench, gate = Bench(slots=3, device_bytes=250, wait_s=PATIENT_S), Gate("load")
    with threads() as pool, bench.lease("c"):
        with gate.holding(warm, bench, "a", Tier.DEVICE, before=gate) as likely:
            big = pool.submit(bench.use, "big", size=200)
            until(bench.slots, lambda: bench.slots._lifts)
        assert not likely.result(SOON_S)
        assert not warm(bench, "b", Tier.HOST)
        assert not big.done()


@pytest.mark.parametrize(("step", "at_rest"), [("load", []), ("lift", ["a"])])
def test_nothing_is_warmed_up_while_somebody_waits_for_a_model(step, at_rest):
    bench, gate = Bench(slots=3), Gate(step)
    for name in at_rest:
        warm(bench, name, Tier.HOST, before=gate)
    with gate.holding(bench.use, "a", before=gate):
        assert not warm(bench, "b", Tier.HOST)


def test_without_an_accelerator_there_is_one_tier():
    bench = Bench(device="cpu", slots=2)
    bench.use("a", "b", "c")
    assert bench.tiers == {"b": Tier.DEVICE, "c": Tier.DEVICE}
    assert bench.host.used == 200
    assert bench.lower("b") == []


def test_without_an_accelerator_no_limit_of_its_bytes_counts():
    bench = Bench(device="cpu", slots=2, device_bytes=50)
    bench.use("a", "b")
    assert bench.tiers == {"a": Tier.DEVICE, "b": Tier.DEVICE}


def test_without_an_accelerator_what_finds_no_place_does_not_stay():
    bench = Bench(device="cpu", slots=1)
    with bench.lease("a"), pytest.raises(ModelBusy):
        bench.use("b")
    assert bench.tiers == {"a": Tier.DEVICE}
    assert bench.host.used == 100


def test_what_stayed_behind_after_an_unload_is_said():
    bench = Bench()
    bench.use("a", residue_bytes=30)
    bench.slots.unload("a", reason="asked", wait_s=0)
    assert bench.events[-1].reason == "asked; 30 bytes did not come back"
    assert bench.events[-1].seconds >= 5
    assert bench.ledger.residue_bytes == 30


def test_what_stays_behind_when_a_model_is_lowered_is_waited_for_and_said():
    bench = Bench(slots=1)
    bench.use("a", residue_bytes=30)
    bench.use("b")
    lowered = next(event for event in bench.events if event.kind == EventKind.LOWERED)
    assert lowered.reason == "made room for b; 30 bytes did not come back"
    assert (lowered.bytes, lowered.seconds >= 5) == (100, True)


def test_events_tell_how_much_was_moved_and_how_long_that_took():
    bench = Bench(slots=1, host_bytes=0)
    bench.now = 1000.0
    bench.use("a", load_s=3, lift_s=2)
    bench.use("b")
    told = [(event.kind, event.bytes, event.seconds) for event in bench.events]
    assert told[:3] == [
        (EventKind.LOADED, 100, 3),
        (EventKind.LIFTED, 100, 2),
        (EventKind.LOADED, 100, 0),
    ]
    assert told[3] == (EventKind.EVICTED, 100, 0)
    [b] = bench.slots.view()
    assert (b.loaded_at, b.load_s) == (1006, 0)


def test_the_view_names_the_next_to_go():
    bench = Bench(pinned=frozenset({"a"}))
    bench.use("a", "b")
    assert [slot.model_id for slot in bench.slots.view() if slot.next_out] == ["b"]


def test_the_next_to_go_is_idle_if_any_is():
    bench = Bench(slots=2)
    with bench.lease("a"):
        bench.use("b")
        assert [slot.model_id for slot in bench.slots.view() if slot.next_out] == ["b"]
        with bench.lease("b"):
            assert [slot.model_id for slot in bench.slots.view() if slot.next_out] == ["a"]


def test_after_close_there_are_no_leases_and_no_models():
    bench = Bench()
    bench.use("a", "b", "c")
    bench.slots.close()
    assert bench.tiers == {}
    assert (bench.device.used, bench.host.used) == (0, 0)
    with pytest.raises(ModelBusy, match="stopping"):
        bench.use("a")
    assert not warm(bench, "a", Tier.HOST)


def test_close_waits_for_those_in_use_as_long_as_for_a_place():
    bench = Bench(wait_s=PATIENT_S)
    with threads() as pool:
        with bench.lease("a") as model:
            closing = pool.submit(bench.slots.close)
            until(bench.slots, lambda: bench.slots._slots.get("a").gates or closing.done())
            assert model.tier is Tier.DEVICE
        closing.result(SOON_S)
    assert bench.tiers == {}


def test_close_leaves_what_is_leased_past_the_bound():
    bench = Bench()
    with bench.lease("a") as model:
        bench.slots.close()
        assert model.tier is Tier.DEVICE


def _joined(bench, name):
    slot = bench.slots._slots.get(name)
    return slot.flight.joined if slot and slot.flight else 0
