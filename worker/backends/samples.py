"""A few pictures and texts to try a model with."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from api_client.wire.messages import Kind

from .base import Model, Prepared

__all__ = ["SAME", "TEXTS", "lowest_cosine", "pictures", "prepared", "samples"]

SAME = {"float32": 0.9999, "bfloat16": 0.995, "float16": 0.999}  # cosine, whatever the batch

TEXTS = ("a red circle", "two dogs asleep on a sofa", "naïve café 🚀", "invoice 2024-17", "a")


def pictures() -> list[Image.Image]:
    dice = np.random.default_rng(7)
    noise = Image.fromarray(dice.integers(0, 256, (96, 64, 3), np.uint8))
    gradient = Image.linear_gradient("L").convert("RGB")
    plain = [Image.new("RGB", (80, 60), colour) for colour in ("red", "white", "navy")]
    return [noise, gradient, *plain]


def samples(kind: Kind) -> list[Any]:
    return list(TEXTS) if kind is Kind.TEXT else pictures()


def lowest_cosine(rows: ArrayLike, others: ArrayLike) -> float:
    """Of each row to its other; nan where one is of zeros or none of numbers."""
    a, b = np.asarray(rows, np.float64), np.asarray(others, np.float64)
    with np.errstate(invalid="ignore"):
        cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return float(cosines.min())


def prepared(model: Model, kind: Kind, item: Any) -> Prepared:
    return model.prepare_text(item) if kind is Kind.TEXT else model.prepare_image(item)
