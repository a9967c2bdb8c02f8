"""A plug-in that hangs: its own requests fail with its name, the others go on."""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from api_client.wire.errors import BackendFailed, LoadFailed
from api_client.wire.messages import Kind, Priority
from worker.backends.base import About, Placement
from worker.backends.guard import Guard, GuardedModel
from worker.backends.registry import Families
from worker.backends.simple import SimpleModel
from worker.catalogue import Entry
from worker.datapath.batcher import Batcher
from worker.residency.ledger import Ledger
from worker.residency.slots import Limits, Slots

PATIENCE_S = 0.05
ENOUGH_S = 2.0  # for the steps that do not hang, on a busy machine


@pytest.fixture
def gate():
    opened = threading.Event()
    yield opened
    opened.set()


def test_a_call_that_hangs_is_given_up_and_named(gate):
    guard = Guard("slow", PATIENCE_S)
    with pytest.raises(BackendFailed, match=r"family slow hangs: load took over 0\.05 s"):
        guard.call("load", gate.wait)
    assert guard.trouble == "the model family slow hangs in load"
    with pytest.raises(BackendFailed, match="slow hangs in load"):
        guard.call("run", lambda: 1)


def test_once_the_call_has_come_back_the_family_serves_again(gate):
    guard, hanging = Guard("slow", PATIENCE_S), []

    def wait():
        hanging.append(threading.current_thread())
        gate.wait()

    with pytest.raises(BackendFailed):
        guard.call("load", wait)
    gate.set()
    hanging[0].join()
    guard._patience_s = ENOUGH_S
    assert guard.trouble == ""
    assert guard.call("run", lambda: 1) == 1


def test_what_a_call_raises_is_raised_and_an_exit_ends_nobody():
    guard = Guard("bad", 5.0)

    def fail(error):
        raise error

    with pytest.raises(LoadFailed, match="no such file"):
        guard.call("load", lambda: fail(LoadFailed("no such file")))
    with pytest.raises(BackendFailed, match=r"family bad: run raised SystemExit\(3\)"):
        guard.call("run", lambda: fail(SystemExit(3)))


class Lengths(SimpleModel):
    dimension = 2

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([(1, len(text)) for text in texts], np.float32)


def test_a_model_is_unloaded_whatever_else_hangs_in_its_family(gate):
    gone = threading.Event()

    class Noted(Lengths):
        def unload(self):
            gone.set()

    guard = Guard("slow", ENOUGH_S)
    model = GuardedModel(Noted(entry("slow"), Placement()), guard)
    guard._patience_s = PATIENCE_S
    with pytest.raises(BackendFailed):
        guard.call("run", gate.wait)
    guard._patience_s = ENOUGH_S
    model.unload()
    assert gone.is_set()


def test_what_a_model_finds_out_as_it_is_lifted_counts():
    class Wary(Lengths):
        def lift(self):
            self.traits = replace(self.traits, max_batch=1)

    model = GuardedModel(Wary(entry("wary"), Placement()), Guard("wary", ENOUGH_S))
    model.lift()
    assert model.traits.max_batch == 1


def test_a_model_that_is_not_told_apart_is_unloaded():
    gone = []

    class Odd:
        def unload(self):
            gone.append(self)

    odd = Odd()
    with pytest.raises(AttributeError, match="traits"):
        GuardedModel(odd, Guard("odd", ENOUGH_S))
    assert gone == [odd]


def entry(name):
    return Entry(f"{name}/one", backend=name, kinds=(Kind.TEXT,))


@pytest.fixture
def families(gate):
    class HangsInRun(Lengths):
        about = About(patience_s=ENOUGH_S)

        def embed_texts(self, texts):
            gate.wait()
            return super().embed_texts(texts)

    class HangsInLoad(Lengths):
        about = About(patience_s=ENOUGH_S / 2)

        def load(self):
            gate.wait()

    families = Families(Placement())
    for name, kind in (("runs", HangsInRun), ("loads", HangsInLoad), ("good", Lengths)):
        families.register(name, kind)
    return families


def test_one_runner_serves_the_others_after_a_plug_in_that_hangs(families):
    batcher = Batcher(batch_size=4, decode_threads=1)

    def embed(name):
        model = families.load(entry(name))
        return batcher.embed(
            model,
            Kind.TEXT,
            ["a"],
            model.prepare_text,
            model_id=f"{name}/one",
            priority=Priority.BULK,
        ).vectors

    (outcome,) = embed("runs")
    assert isinstance(outcome, BackendFailed)
    assert "the model family runs hangs" in str(outcome)
    assert batcher.pulse().failing == ("runs/one",)
    assert isinstance(embed("good")[0], np.ndarray)
    assert batcher.pulse().last_forward_ok
    assert families.trouble() == "the model family runs hangs in run"
    batcher.close()


def test_one_slot_serves_the_others_after_a_plug_in_that_hangs(families):
    slots = Slots(
        check=families.check,
        load=families.load,
        limits=Limits(slots=1),
        ledger=Ledger(),
        unified=True,
    )
    with pytest.raises(BackendFailed, match="family loads hangs"), slots.lease(entry("loads")):
        pass
    with slots.lease(entry("good")) as model:
        assert model.traits.dimension == 2
    assert [slot.model_id for slot in slots.view()] == ["good/one"]
    assert families.trouble() == "the model family loads hangs in load of loads/one"
    slots.close()
