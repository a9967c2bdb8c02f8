"""A few pictures and texts to try a model with."""

from typing import Any

import numpy as np
from PIL import Image

from api_client.wire.messages import Kind

from .base import Model, Prepared

__all__ = ["TEXTS", "pictures", "prepared", "samples"]

TEXTS = ("a red circle", "two dogs asleep on a sofa", "naïve café 🚀", "invoice 2024-17", "a")


def pictures() -> list[Image.Image]:
    dice = np.random.default_rng(7)
    noise = Image.fromarray(dice.integers(0, 256, (96, 64, 3), np.uint8))
    gradient = Image.linear_gradient("L").convert("RGB")
    plain = [Image.new("RGB", (80, 60), colour) for colour in ("red", "white", "navy")]
    return [noise, gradient, *plain]


def samples(kind: Kind) -> list[Any]:
    return list(TEXTS) if kind is Kind.TEXT else pictures()


def prepared(model: Model, kind: Kind, item: Any) -> Prepared:
    return model.prepare_text(item) if kind is Kind.TEXT else model.prepare_image(item)
