"""A family in one class: what it need not write is true all the same."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from api_client.wire.errors import BadCheckpoint, LoadFailed
from api_client.wire.messages import Kind
from worker.backends.base import About, Placement
from worker.backends.simple import SimpleBackend, SimpleModel
from worker.catalogue import Entry


class Colours(SimpleModel):
    about = About(version="1")
    dimension = 3
    input_size = 4

    def load(self) -> None:
        self.table = np.ones(3, np.uint8)

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return pixels.mean(axis=(1, 2), dtype=np.float32)


class Dimensionless(SimpleModel):
    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        raise AssertionError

    def load(self) -> None:
        self.table = Table()


class Spaceless(Dimensionless):
    dimension = 3

    def space(self) -> str:
        raise LoadFailed("who knows")


GONE: list[str] = []


class Table:
    def __del__(self) -> None:
        GONE.append("table")


def loaded(kind=Colours, placement=None, **entry):
    return SimpleBackend(kind, placement or Placement()).load(Entry("a/b", **entry))


def test_it_embeds_the_kinds_whose_method_was_written():
    assert Colours.kinds() == (Kind.IMAGE,)
    assert Dimensionless.kinds() == (Kind.TEXT,)
    assert SimpleModel.kinds() == ()


def test_a_checkpoint_with_another_sha256_than_the_entry_asks_for_is_refused(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"mine")
    own = hashlib.sha256(b"mine").hexdigest()
    loaded(checkpoint=file, sha256=own.upper())
    with pytest.raises(BadCheckpoint, match=r"weights does not have the SHA-256 that a/b asks for"):
        loaded(checkpoint=file, sha256="0" * 64)
    for checkpoint in (None, tmp_path):
        with pytest.raises(BadCheckpoint, match="a/b asks for a SHA-256: name a file"):
            loaded(checkpoint=checkpoint, sha256=own)
    with pytest.raises(LoadFailed, match=r"checkpoint .*gone: No such file or directory"):
        loaded(checkpoint=tmp_path / "gone", sha256=own)


def test_pictures_come_as_squares():
    model = loaded()
    prepared = model.prepare_image(Image.new("LA", (9, 2), 255))
    assert prepared.shape == (4, 4, 3)
    assert model.run(Kind.IMAGE, [prepared, prepared]).shape == (2, 3)


MEASURED = """
import numpy as np
from worker.backends.base import Placement
from worker.backends.simple import SimpleBackend, SimpleModel
from worker.catalogue import Entry

class Table(SimpleModel):
    dimension = 3
    def load(self):
        self.table = np.ones(50_000_000, np.uint8)
    def embed_texts(self, texts):
        raise AssertionError

print(SimpleBackend(Table, Placement()).load(Entry("a/b")).footprint().host_bytes)
"""


def test_bytes_are_measured():
    # In a process of its own: here, what other tests have freed would be used again unseen.
    root = Path(__file__).parents[3]
    argv = [sys.executable, "-c", MEASURED]
    said = subprocess.run(argv, cwd=root, capture_output=True, text=True, check=True).stdout
    assert 40e6 < int(said) < 80e6


def test_what_was_loaded_comes_back():
    model = loaded()
    model.lift()
    model.lower()
    model.unload()
    assert not hasattr(model, "table")
    assert model.traits.dimension == 3


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [(Dimensionless, "Dimensionless does not say its dimension"), (Spaceless, "who knows")],
)
def test_a_class_that_does_not_say_what_it_is_is_refused_and_gives_back_what_it_took(
    kind, sentence
):
    GONE.clear()
    with pytest.raises(LoadFailed, match=sentence) as raised:
        loaded(kind)
    assert GONE == ["table"]
    del raised  # which has held the model


def test_the_fingerprint_tells_what_changes_vectors(tmp_path):
    class Newer(Colours):
        about = About(version="2")

    def checkpoint(content):
        file = tmp_path / "weights"
        file.write_bytes(content)
        return loaded(checkpoint=file)

    models = [
        loaded(),
        loaded(Newer),
        loaded(options={"a": 1}),
        loaded(placement=replace(Placement(), precision="bfloat16")),
        checkpoint(b"1"),
        checkpoint(b"2"),
    ]
    assert len({model.traits.fingerprint for model in models}) == len(models)
    assert loaded().traits.fingerprint == models[0].traits.fingerprint


def test_a_checkpoint_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(LoadFailed, match=r"none: No such file"):
        loaded(checkpoint=tmp_path / "none")
