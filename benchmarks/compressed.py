"""Weights that rest as int8: what that saves, what a lift costs, what becomes of the vectors.

A model may rest so where every vector keeps a cosine of 0.999 to what it was. The trained
`shapes/demo` decides; seeded weights of the true ViT-B-32 show bytes and times, and flatter the
cosine. On a CPU, a second copy in host memory stands for the device: a plain lift is then a copy
of the weights, and a packed one restores them, both without a bus in between.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from api_client.quickstart import shapes
from api_client.wire.messages import Kind
from worker.backends.base import Placement, Prepared
from worker.backends.clip_model import ClipModel
from worker.backends.openclip import OpenClip
from worker.backends.placement import best_precision
from worker.backends.residence import Tiers, bytes_of, return_freed
from worker.backends.torch_model import FAITHFUL
from worker.catalogue import BUILT_IN, Catalogue, Entry

from . import fixtures
from .report import Options, Report

PICTURES, PICTURES_SEED = 96, 1_000_003
ROWS = 32
SMALLER = {"cpu": 3.5, "cuda": 1.8}  # of four bytes a weight, and of two


@dataclass(frozen=True)
class Vectors:
    """(rows, dimension) each, of length one."""

    images: NDArray[np.float32]
    texts: NDArray[np.float32]

    def cosine(self, others: "Vectors") -> float:
        """The lowest of any picture or text."""
        ours, theirs = (np.concatenate([v.images, v.texts]) for v in (self, others))
        return float((ours * theirs).sum(1).min())

    def nearest(self) -> NDArray[np.intp]:
        """The text that fits each picture best."""
        nearest: NDArray[np.intp] = (self.images @ self.texts.T).argmax(1)
        return nearest


def run(options: Options) -> Report:
    begun = time.monotonic()
    demo = Catalogue.read(BUILT_IN)["shapes/demo"]
    drawn = [picture for _, picture in shapes.collection(PICTURES, seed=PICTURES_SEED)]
    seeded = Entry(fixtures.MODEL_ID, architecture="ViT-B-32", tag="seeded")
    photos = [Image.open(file).convert("RGB") for file in fixtures.photos(640, 480)]
    ratios: dict[str, float] = {}
    goals: dict[str, float] = {}
    figures: dict[str, float] = {}
    for entry, pictures in ((demo, drawn), (seeded, photos)):
        found = dict(_measured(entry, pictures, options))
        for name in ("cosine", "smaller", "same nearest text"):
            ratios[f"{entry.id}: {name}"] = found.pop(name)
        figures |= {f"{entry.id}: {name}": value for name, value in found.items()}
        goals[f"{entry.id}: cosine"] = FAITHFUL
    del ratios[f"{seeded.id}: same nearest text"]  # untrained, it has no opinion
    goals[f"{seeded.id}: smaller"] = SMALLER[torch.device(options.device).type]
    return Report("compressed", time.monotonic() - begun, ratios, goals, figures)


def _measured(
    entry: Entry, pictures: Sequence[Image.Image], options: Options
) -> Iterator[tuple[str, float]]:
    device, rounds = torch.device(options.device), 3 if options.quick else 9
    placement = Placement(
        device=options.device,
        # A CPU's bfloat16 would hide what packing does.
        precision="float32" if device.type == "cpu" else best_precision(options.device),
        models_dir=fixtures.models_dir(),
        cache_dir=fixtures.folder() / "cache",
        offline=True,
    )
    model = OpenClip(placement).load(entry)
    weights = [tensor.clone() for tensor in model.module.parameters()]
    tiers = Tiers(model.module, device)
    tiers.lift()
    before = _embedded(model, pictures)
    plain_ms = []
    for _ in range(rounds):
        return_freed(device)  # as `lower` does: every lift asks the system for memory anew
        plain_ms.append(_ms(lambda: [tensor.to(device, copy=True) for tensor in weights]))
    yield "plain lift ms", median(plain_ms)
    yield "pack ms, once", _ms(tiers.pack)
    after = _embedded(model, pictures)
    yield "cosine", before.cosine(after)
    yield "1 - cosine", 1 - before.cosine(after)
    yield "same nearest text", float((before.nearest() == after.nearest()).mean())
    lower_ms, lift_ms = [], []
    for _ in range(rounds):
        lower_ms.append(_ms(tiers.lower))
        rests = tiers.footprint().host_bytes
        lift_ms.append(_ms(tiers.lift))
    yield "packed lift ms", median(lift_ms)
    yield "packed lower ms", median(lower_ms)
    yield "MB on the device", bytes_of(model.module) / 1e6
    yield "MB at rest", rests / 1e6
    yield "smaller", bytes_of(model.module) / rests
    assert np.array_equal(_embedded(model, pictures).images, after.images), "a lift changed vectors"


def _embedded(model: ClipModel, pictures: Sequence[Image.Image]) -> Vectors:
    images = [model.prepare_image(picture) for picture in pictures]
    texts = [model.prepare_text(caption) for caption in shapes.CAPTIONS]

    def unit(kind: Kind, items: Sequence[Prepared]) -> NDArray[np.float32]:
        starts = range(0, len(items), ROWS)
        rows = np.concatenate([model.run(kind, items[at : at + ROWS]) for at in starts])
        vectors: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return vectors

    return Vectors(unit(Kind.IMAGE, images), unit(Kind.TEXT, texts))


def _ms(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begun)
