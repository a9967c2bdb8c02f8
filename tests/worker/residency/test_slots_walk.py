"""Random walks over slots, ledger and sweeps, alone and with threads.

After every step, and in the middle of a load as well:

1. limits never exceeded: no more models, and no more of their bytes, on the device or at rest in
   host memory than the limits allow. Where a limit was lowered under leased or pinned models, what
   is over it only ever becomes less, and nothing idle is part of it;
2. leased never moved: a leased model is on the device, the one that was leased, and runs; a pinned
   one is not moved by anyone but an explicit unload;
3. no waiter forgotten: every request ends with a lease or a typed error, and leaves no gate, no
   line, no flight behind; a model is in memory once at most;
4. bytes come back: what is taken of either memory is what the models there weigh, and nothing is
   taken after the end;
5. a load that fails changes nothing for the others.
"""

import random
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Lock, Thread

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from api_client.wire.errors import BackendFailed, LoadFailed, ModelBusy, OutOfMemory
from api_client.wire.messages import Kind
from worker.backends.base import Placement, Tier
from worker.backends.fake import Fake, Pool
from worker.catalogue import Entry
from worker.residency.ledger import Ledger
from worker.residency.memory import Bytes, PressureGauge
from worker.residency.slots import Limits, Slots
from worker.residency.sweeps import Timeouts, View, sweep

SIZES = {"a": 100, "b": 100, "c": 200, "d": 300, "e": 450}
DEVICE_BYTES, HOST_BYTES = 1000, 2000
EXPECTED = (ModelBusy, OutOfMemory, LoadFailed, BackendFailed)

names = st.sampled_from(sorted(SIZES))
keep_alives = st.sampled_from([None, None, None, 0.0, 30.0, -1.0])
limits = st.builds(
    Limits,
    slots=st.integers(1, 4),
    device_bytes=st.sampled_from([None, 300, 600, 1000]),
    host_bytes=st.sampled_from([None, 0, 250, 1000]),
    wait_s=st.just(0.0),
    residency_s=st.sampled_from([0.0, 20.0]),
    pinned=st.sets(names, max_size=2).map(frozenset),
)


class Walk(RuleBasedStateMachine):
    """One thread; what happens during a load is done by the load itself, at its gate."""

    device = "cuda:0"

    def __init__(self):
        super().__init__()
        self.now = 0.0
        unified = self.device == "cpu"
        self.device_pool, self.host_pool = Pool(DEVICE_BYTES), Pool(HOST_BYTES)
        self.family = Fake(
            Placement(device=self.device),
            device=self.device_pool,
            host=self.host_pool,
            sleep=self.sleep,
        )
        self.probes = {
            "device": lambda: None if unified else Bytes(DEVICE_BYTES, self.device_pool.free),
            "host": lambda: Bytes(HOST_BYTES, self.host_pool.free),
        }
        self.unified = unified
        self.models = {}  # id -> the one in memory
        self.loading = set()
        self.trouble = {}  # (id, step) -> what happens to it once
        self.leases = []  # (id, model, stack)
        self.strangers = 0
        self.gauge = PressureGauge()

    def sleep(self, seconds):
        self.now += seconds

    @initialize(start=limits)
    def begin(self, start):
        self.ledger = Ledger(
            **self.probes, residue_bytes=0, clock=lambda: self.now, sleep=self.sleep
        )
        self.slots = Slots(
            check=self.family.check,
            load=self.load,
            limits=start,
            ledger=self.ledger,
            unified=self.unified,
            clock=lambda: self.now,
        )
        self.crowd = start.slots
        self.crowd_bytes = start.device_bytes
        self.pinned = {}

    # What the slots are given.

    def entry(self, name):
        size = SIZES[name]
        options = {
            "device_bytes": size,
            "host_bytes": size,
            "host_copy": name == "b",
            "before": lambda step: self.step(name, step),
        }
        return Entry(name, backend="fake", options=options)

    def load(self, entry):
        assert entry.id not in self.loading, "loaded twice at once"
        assert entry.id not in self.models, "in memory twice"
        self.loading.add(entry.id)
        try:
            model = self.models[entry.id] = self.family.load(entry)
        finally:
            self.loading.discard(entry.id)
        return model

    def step(self, name, step):
        trouble = self.trouble.pop((name, step), None)
        if step == "unload":
            del self.models[name]
        if trouble is not None:
            trouble()

    # What may happen.

    @rule(name=names, keep_alive_s=keep_alives)
    def lease(self, name, keep_alive_s):
        with self.asking(name), ExitStack() as stack:
            model = stack.enter_context(
                self.slots.lease(self.entry(name), keep_alive_s=keep_alive_s)
            )
            self.leases.append((name, model, stack.pop_all()))

    @precondition(lambda self: self.leases)
    @rule(dice=st.randoms(use_true_random=False))
    def give_back(self, dice):
        _, _, stack = self.leases.pop(dice.randrange(len(self.leases)))
        stack.close()

    @rule(name=names)
    def load_without_a_lease(self, name):
        with self.asking(name):
            self.slots.load(self.entry(name))

    @rule(name=names, to=st.sampled_from(Tier))
    def warm(self, name, to):
        before = {slot.model_id: slot.tier for slot in self.slots.view()}
        quiet = not self.trouble
        with self.asking(name):
            self.slots.warm(self.entry(name), to=to, reason="likely")
        after = {slot.model_id: slot.tier for slot in self.slots.view()}
        if quiet:
            assert all(after[other] is tier for other, tier in before.items() if other != name)

    @rule(name=names)
    def unload(self, name):
        leased = any(name == held for held, _, _ in self.leases)
        try:
            self.slots.unload(name, reason="walk", wait_s=0.0)
            self.pinned.pop(name, None)
        except ModelBusy:
            assert leased or name in self.loading

    @rule(seconds=st.sampled_from([1, 30, 100, 3000]))
    def time_passes_and_a_sweep_looks(self, seconds):
        self.now += seconds
        memories = {what: probe() for what, probe in self.probes.items()}
        view = View(
            self.slots.view(),
            self.now,
            unified=self.unified,
            own=dict.fromkeys(SIZES, Timeouts(vram_s=60, ram_s=120)),
            pressure=self.gauge.read(*memories.values()),
            pressure_timeout_s=10,
            **memories,
        )
        self.slots.apply(sweep(view))

    @rule(new=limits)
    def limits_change(self, new):
        self.slots.limits = new
        on_device = [slot for slot in self.slots.view() if slot.tier is Tier.DEVICE]
        self.crowd = max(new.slots, len(on_device))
        if new.device_bytes is None:
            self.crowd_bytes = None
        else:
            self.crowd_bytes = max(new.device_bytes, _device_bytes(on_device))
        self.pinned = {}

    @precondition(lambda self: not self.unified)
    @rule(share=st.sampled_from([0.1, 0.5, 1.0]))
    def a_stranger_takes_device_memory(self, share):
        size = int(self.device_pool.free * share)
        self.device_pool.take(size)
        self.strangers += size

    @rule()
    def the_stranger_goes(self):
        self.device_pool.give(self.strangers)
        self.strangers = 0

    @rule(
        name=names,
        step=st.sampled_from(["load", "lift", "lower"]),
        error=st.sampled_from([MemoryError, RuntimeError]),
    )
    def the_next_step_will_fail(self, name, step, error):
        def fail():
            raise error(f"{step} of {name}")

        self.trouble[name, step] = fail

    @precondition(lambda self: SIZES.keys() - self.models.keys())
    @rule(dice=st.randoms(use_true_random=False))
    def a_load_that_fails_changes_nothing_for_the_others(self, dice):
        self.trouble.clear()
        name = dice.choice(sorted(SIZES.keys() - self.models.keys()))
        self.the_next_step_will_fail(name, "load", RuntimeError)
        before = self.slots.view()
        with pytest.raises((BackendFailed, OutOfMemory)):
            self.slots.load(self.entry(name))
        self.trouble.clear()
        assert self.slots.view() == before

    @rule(name=names, other=names, keep_alive_s=keep_alives, what=st.integers(0, 5), new=limits)
    def something_will_happen_during_the_next_load(self, name, other, keep_alive_s, what, new):
        def happen():
            if what == 0 and other not in self.loading:  # its own thread would wait for itself
                self.lease(other, keep_alive_s)
            elif what == 1 and self.leases:
                self.leases.pop()[2].close()
            elif what == 2:
                self.unload(other)
            elif what == 3:
                self.time_passes_and_a_sweep_looks(100)
            elif what == 4:
                self.limits_change(new)
            self.nothing_is_wrong()

        if other != name:
            self.trouble[name, "load"] = happen

    @precondition(lambda self: self.leases)
    @rule()
    def leased_models_run(self):
        for name, model, _ in self.leases:
            assert model.run(Kind.TEXT, [model.prepare_text(name)]).shape == (1, 8)

    @contextmanager
    def asking(self, name):
        before = self.slots.view()
        try:
            yield
        except EXPECTED as error:
            busy = [slot for slot in (*before, *self.slots.view()) if slot.busy]
            if isinstance(error, ModelBusy):
                pinned = self.slots.limits.pinned
                assert busy or pinned or self.loading, "refused though nobody was in the way"

    # What always holds.

    @invariant()
    def nothing_is_wrong(self):
        view = self.slots.view()
        now = self.slots.limits
        on_device = [slot for slot in view if slot.tier is Tier.DEVICE]
        at_rest = [slot for slot in view if slot.tier is Tier.HOST]

        self.crowd = max(now.slots, min(self.crowd, len(on_device)))
        assert len(on_device) <= self.crowd
        if len(on_device) > now.slots:
            assert all(slot.busy or slot.pinned for slot in on_device)
        if now.device_bytes is not None:
            held = _device_bytes(on_device)
            self.crowd_bytes = max(now.device_bytes, min(self.crowd_bytes, held))
            assert held <= self.crowd_bytes
            if held > now.device_bytes:
                assert all(slot.busy or slot.pinned for slot in on_device)
        if now.host_bytes is not None and not self.unified:
            resting = sum(slot.footprint.host_bytes for slot in at_rest if not slot.busy)
            unpinned = [slot for slot in at_rest if not slot.busy and not slot.pinned]
            assert resting <= now.host_bytes or not unpinned

        for name, model, _ in self.leases:
            assert model is self.models[name]
            assert model.tier is Tier.DEVICE
        for slot in view:
            assert slot.leases == sum(name == slot.model_id for name, _, _ in self.leases)
            assert slot.model_id in self.models or slot.model_id in self.loading or slot.busy
            if slot.pinned and slot.tier is Tier.DEVICE:
                self.pinned[slot.model_id] = slot
        for name in self.pinned:
            assert self.models[name].tier is Tier.DEVICE, f"{name} is pinned"

        on_way = {slot.model_id for slot in view if slot.busy}
        assert {slot.model_id for slot in view} - on_way <= self.models.keys()
        if not self.loading:
            assert not self.slots._loads
            assert not self.slots._lifts
            assert all(not slot.gates and not slot.flight for slot in self.slots._slots)
            weights = [model.footprint() for model in self.models.values()]
            assert {model_id for model_id in self.models} == {slot.model_id for slot in view}
            assert self.device_pool.used - self.strangers == sum(w.device_bytes for w in weights)
            assert self.host_pool.used == sum(w.host_bytes for w in weights)
            assert {s.model_id: s.footprint for s in view} == {
                name: model.footprint() for name, model in self.models.items()
            }
        assert self.family.misuses == []

    def teardown(self):
        if not hasattr(self, "slots"):
            return
        self.trouble.clear()
        for _, _, stack in self.leases:
            stack.close()
        self.slots.close()
        assert self.slots.view() == ()
        assert self.device_pool.used == self.strangers
        assert self.host_pool.used == 0
        assert self.family.misuses == []


class UnifiedWalk(Walk):
    """The same on a worker without an accelerator: one tier, and only the count is limited."""

    device = "cpu"


def _device_bytes(view):
    return sum(slot.footprint.device_bytes for slot in view)


walk = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
TestWalk = Walk.TestCase
TestWalk.settings = walk
TestUnifiedWalk = UnifiedWalk.TestCase
TestUnifiedWalk.settings = walk


SECONDS = 2.0  # that the threads walk at most
THREADS = 6
PATIENCE_S = 30  # a thread that is still going then hangs


class Crowd:
    """Real threads over the same slots; each forward pass alone, as the batcher does it."""

    def __init__(self, device):
        self.device_pool, self.host_pool = Pool(DEVICE_BYTES), Pool(HOST_BYTES)
        self.family = Fake(Placement(device=device), device=self.device_pool, host=self.host_pool)
        unified = device == "cpu"
        ledger = Ledger(
            device=lambda: None if unified else Bytes(DEVICE_BYTES, self.device_pool.free),
            host=lambda: Bytes(HOST_BYTES, self.host_pool.free),
            sleep=lambda seconds: None,
        )
        self.slots = Slots(
            check=self.family.check,
            load=self.family.load,
            limits=Limits(slots=2, host_bytes=500, wait_s=0.05),
            ledger=ledger,
            unified=unified,
        )
        self.unified = unified
        self.one_at_a_time = {name: Lock() for name in SIZES}
        self.until = time.monotonic() + SECONDS
        self.served = 0
        self.broken = []

    def entry(self, name, dice):
        def before(step):
            if step in ("load", "lift") and dice.random() < 0.05:
                raise dice.choice([MemoryError, RuntimeError, LoadFailed])("bad luck")

        size = SIZES[name]
        options = {"device_bytes": size, "host_bytes": size, "before": before, "load_s": 0.001}
        return Entry(name, backend="fake", options=options)

    def walk(self, seed):
        dice = random.Random(seed)
        try:
            while time.monotonic() < self.until:
                self.take_a_step(dice)
        except BaseException as error:
            self.broken.append(error)

    def take_a_step(self, dice):
        name = dice.choice(sorted(SIZES))
        entry = self.entry(name, dice)
        try:
            match dice.randrange(10):
                case 0:
                    self.slots.unload(name, reason="walk", wait_s=0.01)
                case 1:
                    now = Bytes(100, dice.randrange(30))
                    view = View(self.slots.view(), time.monotonic() + 100, device=now, host=now)
                    self.slots.apply(sweep(replace(view, unified=self.unified)))
                case 2:
                    pinned = frozenset({name} if dice.random() < 0.1 else ())
                    now = replace(self.slots.limits, slots=dice.randint(2, 3), pinned=pinned)
                    self.slots.limits = now
                case 3:
                    self.slots.warm(entry, to=dice.choice(list(Tier)), reason="walk")
                case _:
                    keep_alive_s = dice.choice([None, None, 0.0])
                    with self.slots.lease(entry, keep_alive_s=keep_alive_s) as model:
                        with self.one_at_a_time[name]:
                            model.run(Kind.TEXT, [model.prepare_text("text")])
                        self.served += 1
        except EXPECTED:
            pass
        self.look()

    def look(self):
        view = self.slots.view()
        seated = [slot for slot in view if slot.tier is Tier.DEVICE]
        assert len(seated) <= 3
        assert all(slot.tier is Tier.DEVICE for slot in view if slot.leases)
        assert self.device_pool.used <= DEVICE_BYTES


@pytest.mark.parametrize("device", ["cuda:0", "cpu"])
def test_the_same_with_threads(device):
    crowd = Crowd(device)
    threads = [Thread(target=crowd.walk, args=(seed,), daemon=True) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"
    assert crowd.broken == []
    assert crowd.family.misuses == []
    assert crowd.served > THREADS
    assert not any(slot.leases or slot.busy for slot in crowd.slots.view())
    crowd.slots.close()
    assert crowd.slots.view() == ()
    assert (crowd.device_pool.used, crowd.host_pool.used) == (0, 0)
