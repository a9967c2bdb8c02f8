"""Through the official client, against a server that speaks the published API."""

import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

import numpy as np
import psutil
import pytest

from api_client.wire.errors import (
    BackendAway,
    BackendFailed,
    NoAnswer,
    SpaceMismatch,
    WeightsUnavailable,
)
from api_client.wire.messages import Kind
from tests.worker.backends.ollama_double import ollama_double
from worker.backends.base import Footprint, Placement, Tier
from worker.backends.check import Subject, pytest_generate_tests  # noqa: F401
from worker.backends.ollama import HELD_S, Ollama
from worker.backends.registry import Families
from worker.backends.simple import SimpleBackend
from worker.catalogue import BUILT_IN, Catalogue
from worker.residency.ledger import Ledger
from worker.residency.memory import Memory
from worker.residency.slots import Limits, Slots
from worker.residency.sweeps import Move

DIMENSIONS = {"mxbai-embed-large": 1024, "bge-m3": 1024, "nomic-embed-text": 768}
MXBAI = "mxbai-embed-large:latest"


@pytest.fixture
def server():
    with ollama_double() as double:
        yield double


@pytest.fixture
def family():
    return SimpleBackend(Ollama, Placement())


def entry(server, name="mxbai-embed-large", **options):
    options = {"host": server.url, "timeout_s": 5, **options}
    return replace(Catalogue.read(BUILT_IN)[name], options=options)


def texts(model, *content):
    return model.run(Kind.TEXT, [model.prepare_text(text) for text in content])


@pytest.mark.parametrize(("name", "dimension"), DIMENSIONS.items())
def test_the_models_that_are_listed_are_text_models_of_the_promised_dimension(
    server, family, name, dimension
):
    listed = Catalogue.read(BUILT_IN)[name]
    assert (listed.id, listed.kinds, listed.dimension) == (
        f"ollama/{name}",
        (Kind.TEXT,),
        dimension,
    )
    model = family.load(entry(server, name))
    model.lift()
    assert texts(model, "a", "b").shape == (2, dimension)
    model.unload()


def test_it_keeps_the_contract(clipyard_check, server, family):
    clipyard_check(Subject(family, entry(server), Placement()))


def test_load_and_unload_are_real_calls(server, family):
    assert family.check(entry(server)) == 1_024_000
    model = family.load(entry(server))
    assert server.loaded == {}
    model.lift()
    assert server.loaded == {MXBAI: HELD_S}
    assert model.footprint() == Footprint(device_bytes=1_024_000)
    model.lower()
    assert server.loaded == {}
    assert model.footprint() == Footprint()
    model.lift()
    model.unload()
    assert server.loaded == {}


def test_neither_a_check_nor_a_load_that_fails_leaves_a_connection_open(
    server, family, monkeypatch
):
    monkeypatch.setattr(BaseHTTPRequestHandler, "protocol_version", "HTTP/1.1")  # as Ollama's
    family.check(entry(server))
    del server.pulled[MXBAI]
    for step in (family.check, family.load):
        with pytest.raises(WeightsUnavailable):
            step(entry(server))
    held = [one.raddr for one in psutil.Process().net_connections("tcp") if one.raddr]
    assert urlsplit(server.url).port not in [port for _, port in held]


def test_the_memory_is_what_ollama_says(server, family):
    server.in_vram = False
    model = family.load(entry(server))
    model.lift()
    assert model.footprint() == Footprint(host_bytes=1_024_000)
    model.unload()


def test_a_model_that_ollama_let_go_comes_back_by_itself(server, family):
    model = family.load(entry(server, held_s=90))
    model.lift()
    server.loaded.clear()
    assert texts(model, "a").shape == (1, 1024)
    assert server.loaded == {MXBAI: 90}
    model.unload()


def test_the_sweeps_drive_keep_alive(server, family):
    memory = Memory("cpu")
    slots = Slots(
        check=family.check,
        load=family.load,
        limits=Limits(),
        ledger=Ledger(device=memory.device, host=memory.host),
        unified=True,
    )
    with slots.lease(entry(server)) as model:
        assert texts(model, "a").shape == (1, 1024)
    assert MXBAI in server.loaded
    slots.apply([Move("ollama/mxbai-embed-large", None, "idle in VRAM for 600 s")])
    assert server.loaded == {}
    slots.close()


def test_a_model_that_was_not_pulled_says_how_to(server, family):
    del server.pulled[MXBAI]
    for step in (family.check, family.load):
        with pytest.raises(WeightsUnavailable, match="run `ollama pull mxbai-embed-large` there"):
            step(entry(server))


def test_a_model_that_was_removed_meanwhile_is_unavailable(server, family):
    model = family.load(entry(server))
    del server.pulled[MXBAI]
    with pytest.raises(WeightsUnavailable, match="not found, try pulling it first"):
        texts(model, "a")
    model.unload()


def test_an_answer_of_weights_that_were_pulled_meanwhile_is_refused(server, family):
    class Pull(threading.Event):
        def wait(self, timeout=None):
            server.weights = 2
            return True

    model = family.load(entry(server))
    model.lift()
    server.gate = Pull()
    with pytest.raises(SpaceMismatch, match="run `clipyard unload ollama/mxbai-embed-large`"):
        texts(model, "a")
    model.unload()


def test_a_lift_after_a_pull_is_refused_and_the_next_request_loads_the_new_weights(server, family):
    slots = Slots(
        check=family.check, load=family.load, limits=Limits(), ledger=Ledger(), unified=False
    )
    with slots.lease(entry(server)) as model:
        before = model.traits.fingerprint
    slots.apply([Move("ollama/mxbai-embed-large", Tier.HOST, "idle in VRAM for 600 s")])
    server.weights = 2
    with pytest.raises(SpaceMismatch, match="was pulled anew"), slots.lease(entry(server)):
        pass
    with slots.lease(entry(server)) as model:
        assert texts(model, "a").shape == (1, 1024)
        assert model.traits.fingerprint != before
    slots.close()


def test_ollama_away_is_one_sentence(family):
    with ollama_double() as double:
        here = entry(double)
        model = family.load(here)
    for step in (lambda: family.check(here), lambda: family.load(here), lambda: texts(model, "a")):
        with pytest.raises(BackendAway, match=r"Ollama at http://127.* is away: start it"):
            step()
    model.unload()


def test_a_slow_answer_is_no_answer(server, family):
    model = family.load(entry(server, timeout_s=1.0))
    server.gate.clear()
    with pytest.raises(NoAnswer, match=r"did not answer within 1 s"):
        texts(model, "a")
    server.gate.set()
    model.unload()


@pytest.mark.parametrize(
    ("status", "sentence", "error"),
    [
        (500, "model requires more system memory (9 GiB) than is available (1 GiB)", MemoryError),
        (400, "the input length exceeds the context length", BackendFailed),
        (502, "bad gateway", BackendAway),
        (503, "server busy, please try again", BackendAway),
        (0, "is away: start it", BackendAway),
    ],
)
def test_what_ollama_refuses_is_typed(server, family, status, sentence, error):
    model = family.load(entry(server))
    server.fail_with = status, sentence
    with pytest.raises(error, match=sentence[:20]):
        texts(model, "a")
    model.unload()


def test_any_model_of_ollamas_has_an_id():
    described = Families(Placement()).describe("ollama/all-minilm:33m")
    assert described is not None
    assert (described.backend, described.architecture) == ("ollama", "all-minilm:33m")


def test_what_another_machine_holds_is_not_counted_here(server, family, monkeypatch):
    monkeypatch.setattr("worker.backends.ollama.LOCAL", set())
    model = family.load(entry(server))
    model.lift()
    assert model.footprint() == Footprint()
    assert np.isfinite(texts(model, "a")).all()
    model.unload()
