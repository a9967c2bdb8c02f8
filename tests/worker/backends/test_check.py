"""The kit passes what ships, and finds each mistake that it is there to find."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from worker.backends import check as kit
from worker.backends import contract
from worker.backends.base import Footprint, Placement
from worker.backends.check import Subject, examine, main, pytest_generate_tests  # noqa: F401
from worker.backends.fake import Fake
from worker.backends.simple import SimpleBackend, SimpleModel
from worker.catalogue import BUILT_IN, Catalogue, Entry

ROOT = Path(__file__).parents[3]


def test_the_fake_keeps_the_contract(clipyard_check):
    clipyard_check(Subject(Fake(Placement()), Entry("fake/one", backend="fake"), Placement()))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    from worker.backends.openclip import OpenClip  # torch, which `elsewhere` does without

    placement = Placement(cache_dir=tmp_path_factory.mktemp("cache"), offline=True)
    return Subject(OpenClip(placement), Catalogue.read(BUILT_IN)["shapes/demo"], placement)


def test_open_clip_keeps_the_contract(clipyard_check, shapes):
    clipyard_check(shapes)


class Good(SimpleModel):
    """The bytes of a text, as numbers."""

    dimension = 16

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.ones((len(texts), 16), np.float32)
        for row, text in zip(rows, texts, strict=True):
            content = np.frombuffer(text.encode("utf-8", "surrogatepass")[:15], np.uint8)
            row[: len(content)] = content
        return rows


class Reversed(Good):
    def embed_texts(self, texts):
        return super().embed_texts(texts)[::-1]


class Neighbourly(Good):
    def embed_texts(self, texts):
        return super().embed_texts(texts) + 100 * np.eye(16, dtype=np.float32)[len(texts) % 16]


class Random(Good):
    def embed_texts(self, texts):
        return np.random.default_rng().standard_normal((len(texts), 16), np.float32)


class Nan(Good):
    def embed_texts(self, texts):
        rows = super().embed_texts(texts)
        rows[0] = np.nan
        return rows


class Narrow(Good):
    def embed_texts(self, texts):
        return super().embed_texts(texts)[:, :7]


class Modest(Good):
    def load(self):
        self.weights = np.ones(300_000_000, np.uint8)

    def footprint(self):
        return Footprint()


class Boastful(Good):
    def footprint(self):
        return Footprint(host_bytes=300_000_000)


LEAKED = []


class Leaky(Good):
    def load(self):
        LEAKED.append(np.ones(50_000_000, np.uint8))


class Untyped(Good):
    def load(self):
        if self.entry.options:
            raise KeyError("no_such_option")


class Fragile(Good):
    def prepare_text(self, text):
        if not text.strip():
            raise ZeroDivisionError
        return super().prepare_text(text)


class Forgetful(Good):
    """One buffer for all threads."""

    def prepare_text(self, text):
        Forgetful.buffer = getattr(Forgetful, "buffer", "")[-99:] + text
        return super().prepare_text(Forgetful.buffer)


def subject(kind):
    return Subject(SimpleBackend(kind, Placement()), Entry("mine/one"), Placement())


def examined(kind, check):
    getattr(contract, check)(subject(kind))


def test_a_class_of_one_method_passes():
    assert [finding for finding in examine(subject(Good)) if finding.trouble] == []


def test_one_whose_rows_depend_on_their_neighbours_and_that_takes_one_at_a_time_passes():
    class Lonely(Neighbourly):
        max_batch = 1

    examined(Lonely, "batch_independence")


def test_every_check_is_made_whatever_the_ones_before_found():
    found = {finding.check for finding in examine(subject(Narrow)) if finding.trouble}
    assert {"order", "batch_independence", "determinism", "normalisation"} <= found


@pytest.mark.parametrize(
    ("kind", "check", "sentence"),
    [
        (Reversed, "order", "in another order"),
        (Neighbourly, "batch_independence", "alone and together"),
        (Random, "determinism", "asked twice"),
        (Nan, "normalisation", "a good item failed"),
        (Narrow, "order", r"answered \(5, 7\) where \(5, 16\) was due"),
        (Untyped, "errors_typed", "no/option raised KeyError"),
        (Fragile, "one_bad_item", "instead of an ItemError"),
        (Forgetful, "threads", "come out otherwise"),
    ],
)
def test_a_mistake_is_found_and_named(kind, check, sentence):
    with pytest.raises(AssertionError, match=sentence):
        examined(kind, check)


@pytest.fixture(scope="module")
def elsewhere():
    """A process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        yield process


@pytest.mark.parametrize(
    ("kind", "check", "sentence"),
    [
        (Modest, "bytes_reported", "reports 0 MiB"),
        (Boastful, "bytes_reported", "reports 286 MiB: others would be unloaded for nothing"),
        (Leaky, "memory_comes_back", "left .* MiB behind"),
    ],
)
def test_a_mistake_about_memory_is_found(elsewhere, kind, check, sentence):
    with pytest.raises(AssertionError, match=sentence):
        elsewhere.submit(examined, kind, check).result()


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLIPYARD_DEVICE", "cpu")
    monkeypatch.setenv("CLIPYARD_CACHE_DIR", str(tmp_path))

    def run(name):
        code = main([name])
        return code, capsys.readouterr()

    return run


def test_the_command_tells_check_by_check(command):
    code, said = command("fake")
    assert (code, said.out.count("passed")) == (0, 9)


class Broken(Good):
    def embed_texts(self, texts):
        return np.full(len(texts), self.no_such_weights)


class Demanding(Good):
    models = (Entry("mine/one"),)

    def __init__(self):
        """Of no entry and no placement."""


def test_an_error_that_nobody_typed_is_told_with_its_line():
    finding = next(examine(subject(Broken)))
    line = Broken.embed_texts.__code__.co_firstlineno + 1
    assert finding.trouble.endswith(f"no attribute 'no_such_weights' ({__file__}:{line})")


def test_a_family_that_cannot_even_be_asked_is_one_line(command, monkeypatch):
    monkeypatch.setitem(sys.modules, "demanding", SimpleNamespace(Mine=Demanding))
    monkeypatch.setenv("CLIPYARD_BACKENDS", '["mine=demanding:Mine"]')
    code, said = command("mine")
    assert code == 2
    told = "no model of mine can be loaded here: the model family mine: check of mine/one raised "
    assert said.err.startswith(told)
    assert re.search(r"\.py:\d+\)\n$", said.err)


OF_A_STRANGER = """
from worker.backends.base import Placement
from worker.backends.check import Subject
from worker.backends.fake import Fake
from worker.catalogue import Entry

def test_it_keeps_the_contract(clipyard_check):
    clipyard_check(Subject(Fake(Placement()), Entry("mine/one", backend="fake"), Placement()))
"""


def test_as_a_plug_in_of_pytest_it_runs_each_check(tmp_path):
    (tmp_path / "test_mine.py").write_text(OF_A_STRANGER)
    argv = [sys.executable, *("-m", "pytest", "-q", "-p", "worker.backends.check"), str(tmp_path)]
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    said = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert f"{len(contract.CHECKS)} passed" in said.stdout, said


def test_the_command_says_what_there_is(command):
    code, said = command("nonesuch")
    assert code == 2
    assert "no model 'nonesuch'" in said.err
    assert "the families are open_clip" in said.err
    assert "CLIPYARD_BACKENDS names others" in said.err


def test_the_command_says_what_it_tries_before_it_does(command, monkeypatch, capsys):
    def hang(subject):
        shown.append(capsys.readouterr().out)

    shown = []
    monkeypatch.setattr(kit, "CHECKS", (hang,))
    command("fake")
    assert shown[0].split()[-1] == "hang"
