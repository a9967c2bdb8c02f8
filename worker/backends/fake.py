"""A back end for tests and demonstrations: no weights, no GPU, real behaviour and real mistakes.

It is strict: using a model that is not on the device, that has gone, or that another thread is
moving raises AssertionError, and is noted in `Fake.misuses` for those who would swallow that. So
the walks over the slots find their bugs.
"""

import hashlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from api_client.wire.errors import BackendFailed, LoadFailed
from api_client.wire.messages import Kind

from ..catalogue import Entry
from .base import Collated, Footprint, Placement, Prepared, PreparedText, Tier, Traits

__all__ = ["Fake", "FakeModel", "Options", "Pool"]

COLOURS = 3  # the first components of an image's vector are its mean red, green and blue


@dataclass(frozen=True)
class Options:
    """What `Entry.options` may say.

    Attributes:
        dimension: length of a vector.
        input_size: pixels along one edge.
        context_chars: longer texts are truncated.
        device_bytes, host_bytes: of the weights while there; without an accelerator only the
            latter counts.
        host_copy: whether it keeps its host memory while it is on the device.
        residue_bytes: of the device's, what an unload forgets to give back.
        load_s, lift_s, run_s: how long each step sleeps.
        row_s: how much longer `run` sleeps for each row.
        fail_load: the sentence of LoadFailed; empty loads.
        out_of_memory_above: rows of the largest batch that fits.
        fail_on: `run` breaks on a text that contains it, or an image whose first pixel is that
            `#rrggbb`.
        nan_on: likewise, but the row becomes NaN.
        die_on, hang_on, lose_on: likewise, but the process is killed, the thread never comes back,
            or the device is lost for good.
        before: called with `load`, `lift`, `lower`, `unload` or `run` before that step; it may
            raise what that step may raise, or wait.
    """

    dimension: int = 8
    input_size: int = 32
    context_chars: int = 400
    device_bytes: int = 0
    host_bytes: int = 0
    host_copy: bool = False
    residue_bytes: int = 0
    load_s: float = 0.0
    lift_s: float = 0.0
    run_s: float = 0.0
    row_s: float = 0.0
    fail_load: str = ""
    out_of_memory_above: int = 4096
    fail_on: str = ""
    nan_on: str = ""
    die_on: str = ""
    hang_on: str = ""
    lose_on: str = ""
    before: Callable[[str], None] = lambda step: None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Options":
        try:
            return cls(**options)
        except TypeError as error:
            raise LoadFailed(f"the fake family has no such option: {error}") from None


class Pool:
    """A simulated memory of so many bytes, shared by the models that live in it."""

    def __init__(self, total: int = 2**63) -> None:
        self.total = total
        self.used = 0
        self._lock = Lock()

    @property
    def free(self) -> int:
        return self.total - self.used

    def take(self, size: int) -> None:
        """
        Raises:
            MemoryError: so much is not free; nothing was taken.
        """
        with self._lock:
            if size > self.free:
                raise MemoryError(f"{size} bytes asked, {self.free} free")
            self.used += size

    def give(self, size: int) -> None:
        with self._lock:
            assert size <= self.used, "more memory came back than was taken"
            self.used -= size


class Fake:
    """Loads models of no weight.

    Args:
        placement: without an accelerator (`cpu`) weights stay in `host` all the time.
        device, host: the memories that the models take from.
        sleep: called with the seconds that a step takes.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        device: Pool | None = None,
        host: Pool | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.device = device or Pool()
        self.host = host or Pool()
        self.precision = placement.precision
        self.unified = placement.device == "cpu"
        self.sleep = sleep
        self.misuses: list[str] = []

    def describe(self, model_id: str) -> Entry | None:
        return None

    def check(self, entry: Entry) -> int:
        options = Options.of(entry.options)
        return entry.memory_bytes or (options.host_bytes if self.unified else options.device_bytes)

    def load(self, entry: Entry) -> "FakeModel":
        options = Options.of(entry.options)
        options.before("load")
        self.sleep(options.load_s)
        if options.fail_load:
            raise LoadFailed(options.fail_load)
        self.host.take(options.host_bytes)
        return FakeModel(entry, options, self)


class FakeModel:
    """Answers with vectors made of the content alone, whatever else is in the batch."""

    def __init__(self, entry: Entry, options: Options, family: Fake) -> None:
        self.id = entry.id
        self.tier = Tier.HOST
        self.unloaded = False
        self.traits = Traits(
            dimension=options.dimension,
            kinds=entry.kinds,
            fingerprint=f"fake:{entry.id}:{options.dimension}:{family.precision}",
            precision=family.precision,
            input_size=options.input_size if entry.is_vision else None,
        )
        self._options = options
        self._family = family
        self._doing = Lock()

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        self._must(not self.unloaded, "prepares an image after it was unloaded")
        edge = self._options.input_size
        return np.asarray(image.convert("RGB").resize((edge, edge), Image.Resampling.BOX))

    def prepare_text(self, text: str) -> PreparedText:
        self._must(not self.unloaded, "prepares a text after it was unloaded")
        context = self._options.context_chars
        return PreparedText(text[:context], truncated=len(text) > context)

    def collate(self, kind: Kind, rows: Collated) -> Collated:
        self._must(not self.unloaded, "collates after it was unloaded")
        return rows

    def run(self, kind: Kind, batch: Collated) -> NDArray[np.float32]:
        options = self._options
        with self._alone("run"):
            self._must(self.tier is Tier.DEVICE, "runs while it is not on the device")
            self._family.sleep(options.run_s + options.row_s * len(batch))
            if len(batch) > options.out_of_memory_above:
                raise MemoryError(f"{len(batch)} rows, {options.out_of_memory_above} fit")
            _strike(options, batch)
            if any(_marked(item, options.fail_on) for item in batch):
                raise BackendFailed(f"{self.id} was told to fail on {options.fail_on!r}")
            rows = [_vector(item, kind, options) for item in batch]
            return np.stack(rows) if rows else np.empty((0, options.dimension), np.float32)

    def footprint(self) -> Footprint:
        if self.unloaded:
            return Footprint()
        on_device = self.tier is Tier.DEVICE and not self._family.unified
        return Footprint(
            device_bytes=self._options.device_bytes if on_device else 0,
            host_bytes=self._options.host_bytes if self._holds_host() else 0,
        )

    def lift(self) -> None:
        with self._alone("lift"):
            self._must(self.tier is Tier.HOST, "is lifted twice")
            self._family.sleep(self._options.lift_s)
            if not self._family.unified:
                self._family.device.take(self._options.device_bytes)
            self.tier = Tier.DEVICE
            if not self._holds_host():
                self._family.host.give(self._options.host_bytes)

    def lower(self) -> None:
        with self._alone("lower"):
            self._must(self.tier is Tier.DEVICE, "is lowered twice")
            if not self._holds_host():
                self._family.host.take(self._options.host_bytes)
            if not self._family.unified:
                self._leave_device()
            self.tier = Tier.HOST

    def unload(self) -> None:
        with self._alone("unload"):
            if self.tier is Tier.DEVICE and not self._family.unified:
                self._leave_device()
            if self._holds_host():
                self._family.host.give(self._options.host_bytes)
            self.unloaded = True

    def _holds_host(self) -> bool:
        return self.tier is Tier.HOST or self._family.unified or self._options.host_copy

    def _leave_device(self) -> None:
        self._family.device.give(self._options.device_bytes - self._options.residue_bytes)

    @contextmanager
    def _alone(self, step: str) -> Iterator[None]:
        """One step at a time, and none after the end."""
        self._must(self._doing.acquire(blocking=False), f"has to {step} during another step")
        try:
            self._must(not self.unloaded, f"has to {step} after it was unloaded")
            self._options.before(step)
            yield
        finally:
            self._doing.release()

    def _must(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._family.misuses.append(f"{self.id} {otherwise}")
            raise AssertionError(self._family.misuses[-1])


def _strike(options: Options, batch: Collated) -> None:
    """What a back end can do to its process."""
    if any(_marked(item, options.die_on) for item in batch):
        os.kill(os.getpid(), signal.SIGKILL)
    if any(_marked(item, options.hang_on) for item in batch):
        Event().wait()
    if any(_marked(item, options.lose_on) for item in batch):
        raise RuntimeError("CUDA error: device-side assert triggered")


def _marked(item: Prepared, marker: str) -> bool:
    if not marker:
        return False
    if isinstance(item, PreparedText):
        return marker in str(item.tokens)
    return bytes(item[0, 0]).hex() == marker.removeprefix("#")


def _vector(item: Prepared, kind: Kind, options: Options) -> NDArray[np.float32]:
    """(dimension,): noise seeded by the content, after the mean colours of an image."""
    if _marked(item, options.nan_on):
        return np.full(options.dimension, np.nan, np.float32)
    is_text = isinstance(item, PreparedText)
    assert is_text == (kind is Kind.TEXT), f"{kind} asked, the other kind given"
    content = str(item.tokens).encode() if isinstance(item, PreparedText) else item.tobytes()
    seed = int.from_bytes(hashlib.sha256(content).digest()[:8], "little")
    vector = np.random.default_rng(seed).standard_normal(options.dimension, np.float32)
    if not isinstance(item, PreparedText):
        colours = item.mean(axis=(0, 1), dtype=np.float32) / 255
        vector[:COLOURS] = colours[: options.dimension]
    return vector
