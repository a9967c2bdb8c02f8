"""What a family of models must do. The short way to one of your own is `simple.py`."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from numbers import Integral, Real
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from api_client.wire.messages import Kind

from ..catalogue import AtRest, Entry

Precision = Literal["float32", "bfloat16", "float16"]


class Tier(StrEnum):
    """Where a model's weights are. On a worker without an accelerator both are host memory."""

    HOST = "host"  # waiting, a moment away from use
    DEVICE = "device"  # ready


@dataclass(frozen=True)
class Placement:
    """Where and how a worker process runs its models.

    Attributes:
        device: `cpu`, `cuda:N` or `mps`.
        precision: of weights and forward pass.
        decode: how pictures are decoded; part of the fingerprint.
        models_dir: local checkpoints, `<architecture>/<tag>.safetensors`.
        cache_dir: prepared checkpoints.
        offline: never ask a model hub.
    """

    device: str = "cpu"
    precision: Precision = "float32"
    decode: Literal["fast", "exact"] = "exact"
    models_dir: Path | None = None
    cache_dir: Path | None = None
    offline: bool = False


@dataclass(frozen=True)
class Traits:
    """What a loaded model can do, and which vector space it answers in.

    Attributes:
        dimension: length of a vector.
        kinds: what it embeds.
        input_size: pixels along one edge of what `prepare_image` makes; None without images.
        max_batch: the most rows one `run` may get.
        brief: rows of one `run` where somebody may be waiting for the next, and of a small share.
        parallel: how many threads may be in `run` at once.
        fingerprint: equal exactly where vectors may be compared; covers weights, preprocessing,
            precision, dimension and normalisation.
    """

    dimension: int
    kinds: tuple[Kind, ...]
    fingerprint: str
    precision: str = "float32"
    input_size: int | None = None
    max_batch: int = 4096
    brief: int = 4096
    parallel: int = 1

    def __post_init__(self) -> None:
        for name in ("dimension", "max_batch", "brief", "parallel"):  # the batcher counts by them
            if not isinstance(told := getattr(self, name), Integral) or told < 1:
                raise ValueError(f"{name} is {told!r}; make it a whole number, 1 or more")


def fingerprint(space: object, entry: Entry) -> str:
    """A short name for whatever JSON tells vector spaces apart; it says if weights are rounded."""
    digest = hashlib.sha256(json.dumps(space, sort_keys=True).encode()).hexdigest()[:16]
    return f"{digest}+{entry.at_rest}" if entry.at_rest else digest


@dataclass(frozen=True)
class Footprint:
    """Bytes of a model's weights, by where they are."""

    device_bytes: int = 0
    host_bytes: int = 0


@dataclass(frozen=True)
class PreparedText:
    """One text, ready for `run`.

    Attributes:
        tokens: what the family's text tower takes for one row.
        truncated: whether the text was cut to the context length.
        length: what a pass takes longer with, in whatever unit; texts of like length run together.
    """

    tokens: NDArray[np.int64] | str
    truncated: bool = False
    length: int = 0

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError: which costs this text, and not the thread that would compare it with others.
        """
        if not (isinstance(self.truncated, bool | np.bool_) and isinstance(self.length, Real)):
            raise TypeError("truncated has to be a bool, and length a number")


Prepared = NDArray[np.uint8] | PreparedText  # an image is (height, width, 3), not normalised
Collated = Sequence[Prepared] | NDArray[np.uint8]  # images in one array: (rows, height, width, 3)


class Model(Protocol):
    """Weights in memory, in one tier.

    `prepare_*` and `collate` are called from many threads at once, `run` by `traits.parallel` of
    them and only while the model is on the device; `lift`, `lower` and `unload` by one, with nobody
    in `run` but calls that hang and were given up.
    """

    @property
    def traits(self) -> Traits: ...

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """One decoded picture to the pixels of one row, on the CPU."""
        ...

    def prepare_text(self, text: str) -> PreparedText:
        """One text to the tokens of one row, on the CPU."""
        ...

    def collate(self, kind: Kind, rows: Collated) -> Collated:
        """The rows in the form that a pass needs, made on the CPU while another pass may run.

        Where there was no time for it, `run` gets them as they were prepared.
        """
        ...

    def run(self, kind: Kind, batch: Collated) -> NDArray[np.float32]:
        """(rows, dimension), in the batch's order, before normalisation.

        Raises:
            MemoryError: the batch does not fit; the caller halves it.
        """
        ...

    def footprint(self) -> Footprint:
        """Bytes of the weights now."""
        ...

    def lift(self) -> None:
        """From host memory to the device.

        Raises:
            MemoryError: the device has no room; the model stays where it was.
        """
        ...

    def lower(self) -> None:
        """From the device to host memory."""
        ...

    def unload(self) -> None:
        """Give all memory back; the model is not used again."""
        ...


@contextmanager
def unloaded_if_mute(model: Model) -> Iterator[None]:
    """Around the first questions to a model: if it fails them, nobody will ever hold it."""
    try:
        yield
    except BaseException:
        with suppress(Exception):  # what it failed over first says more
            model.unload()
        raise


@dataclass(frozen=True)
class About:
    """What a family says of itself, in a class attribute `about`.

    Attributes:
        packages: distributions that it needs; a missing one is named in one line.
        auto_start: its `models` are brought onto the device when a worker starts.
        priority: the order in which families do so, the lowest first.
        at_rest: how its models can hold their weights in fewer bytes of host memory.
        options: which ones its entries may have; None leaves that to the family.
        patience_s: how long one call of a plug-in may take; then it counts as hanging.
    """

    description: str = ""
    version: str = ""
    author: str = ""
    tags: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    auto_start: bool = False
    priority: int = 100
    at_rest: tuple[AtRest, ...] = ()
    options: tuple[str, ...] | None = None
    patience_s: float = 120.0

    def __post_init__(self) -> None:
        for name in ("packages", "options"):
            if isinstance(told := getattr(self, name), str):  # which would be one per letter
                raise TypeError(f"{name} is {told!r}; make it a tuple, as ({told!r},)")
        for name in ("priority", "patience_s"):
            if not isinstance(told := getattr(self, name), int | float):
                raise TypeError(f"{name} is {told!r}; make it a number")


class Backend(Protocol):
    """Knows one family: turns a catalogue entry into a `Model`.

    It may have an attribute `about: About`, and `models: tuple[Entry, ...]`: entries that it
    brings along, which every worker then lists.
    """

    def describe(self, model_id: str) -> Entry | None:
        """An entry for an id that no catalogue lists, if the family can make one of it."""
        ...

    def check(self, entry: Entry) -> int:
        """Refuse cheaply what cannot be loaded; estimate the bytes of the weights.

        Raises:
            LoadFailed: the checkpoint is missing, unreadable, unsafe, or of another shape.
        """
        ...

    def load(self, entry: Entry) -> Model:
        """Bring the weights into host memory.

        Raises:
            LoadFailed: as `check`, found later.
            MemoryError: host memory does not suffice.
        """
        ...
