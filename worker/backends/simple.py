"""The short way to a family: one class that loads one model and embeds pictures, texts or both."""

import gc
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar, cast

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from api_client.wire.errors import BackendFailed, BadCheckpoint, LoadFailed
from api_client.wire.messages import Kind

from ..catalogue import Entry
from .base import (
    About,
    Collated,
    Footprint,
    Model,
    Placement,
    PreparedText,
    Traits,
    fingerprint,
    unloaded_if_mute,
)
from .content import sha256

__all__ = ["SimpleBackend", "SimpleModel"]


class SimpleModel:
    """Write `load`, set `dimension`, and write `embed_images`, `embed_texts` or both.

    The rest has defaults that are true for a model that stays where `load` put it. Override what
    you can do better; the meaning of each is in `base.Model`.

    Attributes:
        about, models: see `base.Backend`. The entries need neither backend nor kinds.
        dimension: length of a vector; `load` may set it.
        input_size: pixels along one edge of the pictures that `embed_images` gets.
        max_batch: the most rows that one call may get.
    """

    about: ClassVar[About] = About()
    models: ClassVar[tuple[Entry, ...]] = ()
    dimension: int = 0
    input_size: int = 224
    max_batch: int = 4096

    def __init__(self, entry: Entry, placement: Placement) -> None:
        self.entry = entry
        self.placement = placement
        self.grown_bytes = 0  # of this process while `load` ran

    @classmethod
    def describe(cls, model_id: str) -> Entry | None:
        """An entry for an id `family/...` that no catalogue lists."""
        return None

    @classmethod
    def kinds(cls) -> tuple[Kind, ...]:
        """What it embeds: the kinds whose method was written."""
        images = cls.embed_images is not SimpleModel.embed_images
        texts = cls.embed_texts is not SimpleModel.embed_texts
        return tuple(kind for kind, can in ((Kind.IMAGE, images), (Kind.TEXT, texts)) if can)

    def check(self) -> int:
        """Refuse cheaply what cannot be loaded; estimate the bytes of the weights."""
        return self.entry.memory_bytes

    def load(self) -> None:
        """Bring into memory what `self.entry` names."""

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(rows, input_size, input_size, 3) to (rows, dimension). The caller normalises."""
        raise NotImplementedError

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts, as `prepare_text` left them, to (rows, dimension). The caller normalises."""
        raise NotImplementedError

    def space(self) -> str:
        """What tells vectors apart that may not be compared; goes into the fingerprint.

        Here: the class, its version, the entry and the content of its checkpoint.
        """
        entry, file = self.entry, self.entry.checkpoint
        content = _content(file) if file is not None else ""
        options = json.dumps(dict(entry.options), sort_keys=True, default=str)
        own = (type(self).__qualname__, self.about.version)
        return "\n".join((*own, entry.architecture, entry.tag, content, options))

    @cached_property
    def traits(self) -> Traits:
        sees = Kind.IMAGE in self.kinds()
        space = [self.space(), self.dimension, self.input_size if sees else 0, "l2"]
        if sees:
            space.append(self.placement.decode)
        space.append(self.placement.precision)
        return Traits(
            dimension=self.dimension,
            kinds=self.kinds(),
            fingerprint=fingerprint(space, self.entry),
            precision=self.placement.precision,
            input_size=self.input_size if sees else None,
            max_batch=self.max_batch,
        )

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """Squashed to the square that `embed_images` takes."""
        size = (self.input_size, self.input_size)
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.BICUBIC))

    def prepare_text(self, text: str) -> PreparedText:
        """The text as it is."""
        return PreparedText(text, length=len(text))

    def collate(self, kind: Kind, rows: Collated) -> Collated:
        """Pictures in one array, texts as they are."""
        if kind is Kind.TEXT or isinstance(rows, np.ndarray):
            return rows
        return self.stacked(cast(Sequence[NDArray[np.uint8]], rows))

    def stacked(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """(rows, input_size, input_size, 3)"""
        return np.stack(pictures)

    def run(self, kind: Kind, batch: Collated) -> NDArray[np.float32]:
        rows = self.collate(kind, batch)
        if kind is Kind.IMAGE:
            return self.embed_images(cast(NDArray[np.uint8], rows))
        texts = cast(Sequence[PreparedText], rows)
        return self.embed_texts([cast(str, text.tokens) for text in texts])

    def footprint(self) -> Footprint:
        """What this process grew by while `load` ran: right to some megabytes, if it ran alone.

        Pages mapped from files do not count: the system takes and gives them as it likes.
        """
        return Footprint(host_bytes=self.grown_bytes)

    def lift(self) -> None:
        """It lives where `load` put it."""

    def lower(self) -> None:
        """It lives where `load` put it."""

    def unload(self) -> None:
        """Let go of whatever `load` left in attributes."""
        with suppress(Exception):  # they may be what it is let go for
            _ = self.traits  # who still holds the model may ask for them
        for name in vars(self).keys() - {"entry", "placement", "grown_bytes", "traits"}:
            delattr(self, name)


class SimpleBackend:
    """The family of one `SimpleModel` class."""

    def __init__(self, kind: type[SimpleModel], placement: Placement) -> None:
        """
        Raises:
            BackendFailed: a package that it declares is not installed.
        """
        require(kind.about.packages)
        self._kind = kind
        self._placement = placement
        self.about = kind.about
        self.models = kind.models

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return self._kind.kinds()

    def describe(self, model_id: str) -> Entry | None:
        return self._kind.describe(model_id)

    def check(self, entry: Entry) -> int:
        return self._kind(entry, self._placement).check()

    def load(self, entry: Entry) -> Model:
        _require_content(entry)
        model = self._kind(entry, self._placement)
        process = psutil.Process()
        gc.collect()  # what others left would go meanwhile, and hide what comes
        before = _own_bytes(process)
        model.load()
        model.grown_bytes = max(0, _own_bytes(process) - before)
        with unloaded_if_mute(model):
            if not model.dimension:
                raise LoadFailed(f"{self._kind.__qualname__} does not say its dimension")
            _ = model.traits  # now, while the checkpoint is what was loaded
        return model


def require(packages: Sequence[str]) -> None:
    """
    Raises:
        BackendFailed: one of these distributions is not installed.
    """
    for package in packages:
        try:
            version(package)
        except PackageNotFoundError:
            sentence = f"it needs {package}, which is not installed: pip install {package}"
            raise BackendFailed(sentence) from None


def _require_content(entry: Entry) -> None:
    """
    Raises:
        BadCheckpoint: the entry gives a SHA-256 that its checkpoint does not have.
    """
    if not entry.sha256:
        return
    file = entry.checkpoint
    if file is None or file.is_dir():
        raise BadCheckpoint(
            f"{entry.id} asks for a SHA-256: name a file that has it as `checkpoint`, or leave "
            "sha256 out"
        )
    if _content(file) != entry.sha256.lower():
        raise BadCheckpoint(f"{file} does not have the SHA-256 that {entry.id} asks for")


def _content(checkpoint: Path) -> str:
    """Its SHA-256, in hex.

    Raises:
        LoadFailed: it cannot be read.
    """
    try:
        return sha256(checkpoint)
    except OSError as error:
        raise LoadFailed(f"checkpoint {checkpoint}: {error.strerror}") from None


def _own_bytes(process: psutil.Process) -> int:
    """Resident memory that belongs to no file."""
    memory = process.memory_info()
    return int(memory.rss - getattr(memory, "shared", 0))  # Linux tells what is shared
