"""Pictures of coloured shapes whose captions are known: data for a first run without a download.

Everything follows from the caption and the dice, so equal seeds give equal pictures.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

__all__ = [
    "AMOUNTS",
    "CAPTIONS",
    "COLOURS",
    "SCENES",
    "SHAPES",
    "SIZE_PX",
    "Scene",
    "article",
    "collection",
    "draw",
    "plural",
]

SIZE_PX = 192

AMOUNTS = ("a small", "a big", "two", "three")

COLOURS = {
    "red": (220, 30, 35),
    "orange": (245, 135, 20),
    "yellow": (250, 225, 40),
    "green": (35, 160, 60),
    "blue": (35, 75, 215),
    "purple": (135, 45, 175),
    "pink": (245, 125, 185),
    "black": (18, 18, 18),
}

_COLOUR_JITTER = 12  # in 8-bit steps a channel; neighbours in COLOURS are over 60 apart

_Outline = NDArray[np.float64]  # (points, 2), within the unit circle, y pointing down


def _on_circle(points: int, *, radii: tuple[float, ...] = (1.0,)) -> _Outline:
    """Points at equal angles from the top, at the radii in turn."""
    angle = np.arange(points) * 2 * math.pi / points
    radius = np.resize(np.array(radii), points)
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _heart() -> _Outline:
    t = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -13 * np.cos(t) + 5 * np.cos(2 * t) + 2 * np.cos(3 * t) + np.cos(4 * t)
    return np.stack([x, y - 2.5], axis=1) / 17


def _cross() -> _Outline:
    a, b = 0.27, 0.95  # half the width of an arm, and its reach
    arm = np.array([(-a, -a), (-a, -b), (a, -b)])
    quarter_turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
    return np.concatenate([arm @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])


# The outlines of each shape; every second one is a hole.
SHAPES: dict[str, tuple[_Outline, ...]] = {
    "circle": (_on_circle(48),),
    "square": (_on_circle(4) @ np.array([(1, 1), (-1, 1)]) * math.sqrt(0.5),),
    "triangle": (_on_circle(3),),
    "diamond": (_on_circle(4) * (0.62, 1.0),),
    "star": (_on_circle(10, radii=(1.0, 0.42)),),
    "heart": (_heart(),),
    "cross": (_cross(),),
    "ring": (_on_circle(48), _on_circle(48) * 0.55),
}

_TURN_DEGREES = 12  # either way; turned further, a square would be a diamond


@dataclass(frozen=True)
class Scene:
    """What one caption says; each field is a word of AMOUNTS, COLOURS or SHAPES."""

    amount: str
    colour: str
    shape: str

    @property
    def count(self) -> int:
        return {"two": 2, "three": 3}.get(self.amount, 1)

    @property
    def caption(self) -> str:
        noun = self.shape if self.count == 1 else plural(self.shape)
        return f"{self.amount} {self.colour} {noun}"


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def plural(shape: str) -> str:
    return f"{shape}es" if shape.endswith("s") else f"{shape}s"


SCENES: dict[str, Scene] = {
    scene.caption: scene
    for scene in (Scene(a, c, s) for a in AMOUNTS for c in COLOURS for s in SHAPES)
}

CAPTIONS: tuple[str, ...] = tuple(SCENES)


def collection(count: int, *, seed: int, size_px: int = SIZE_PX) -> list[tuple[str, Image.Image]]:
    """That many captions with a picture each; no caption comes twice before all came once."""
    dice = random.Random(seed)
    captions: list[str] = []
    while len(captions) < count:
        captions += dice.sample(CAPTIONS, len(CAPTIONS))
    return [(caption, draw(caption, dice, size_px=size_px)) for caption in captions[:count]]


def draw(caption: str, dice: random.Random, *, size_px: int = SIZE_PX) -> Image.Image:
    """An RGB picture, size_px square, of what a caption from CAPTIONS says; the rest is chance."""
    if caption not in SCENES:
        raise ValueError(f"no picture is known for {caption!r}; try one like {CAPTIONS[0]!r}")
    scene = SCENES[caption]
    colour = _jittered(COLOURS[scene.colour], dice)
    mask = _mask(scene, dice, size_px=size_px)[..., None]
    pixels = mask * colour + (1 - mask) * _background(colour, dice, size_px=size_px)
    noise = np.random.default_rng(dice.getrandbits(64)).normal(size=(size_px, size_px, 1))
    pixels += noise * dice.uniform(0, 8)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _jittered(colour: tuple[int, int, int], dice: random.Random) -> NDArray[np.float64]:
    return np.array([c + dice.uniform(-_COLOUR_JITTER, _COLOUR_JITTER) for c in colour])


def _mask(scene: Scene, dice: random.Random, *, size_px: int) -> NDArray[np.float64]:
    """How much of each pixel is covered, (size_px, size_px), 0 to 1."""
    radius = dice.uniform(*_RADII[scene.amount])
    canvas = Image.new("L", (2 * size_px, 2 * size_px))  # halved below, which smooths the edges
    pen = ImageDraw.Draw(canvas)
    for centre in _centres(scene.count, radius, dice):
        turn = math.radians(dice.uniform(-_TURN_DEGREES, _TURN_DEGREES))
        rotation = np.array([(math.cos(turn), math.sin(turn)), (-math.sin(turn), math.cos(turn))])
        for depth, outline in enumerate(SHAPES[scene.shape]):
            points = (outline @ rotation * radius + centre) * canvas.width
            pen.polygon([(x, y) for x, y in points], fill=0 if depth % 2 else 255)
    return np.asarray(canvas.reduce(2), dtype=np.float64) / 255


# Radius as a share of the picture's side, from and to.
_RADII = {
    "a small": (0.14, 0.19),
    "a big": (0.30, 0.42),
    "two": (0.15, 0.20),
    "three": (0.15, 0.19),
}


def _centres(count: int, radius: float, dice: random.Random) -> list[tuple[float, float]]:
    """Places at which shapes of that radius neither touch each other nor leave the picture."""

    def place() -> float:
        return dice.uniform(radius + 0.02, 0.98 - radius)

    return _first(
        lambda: [(place(), place()) for _ in range(count)],
        lambda centres: all(math.dist(p, q) > 2.1 * radius for p, q in combinations(centres, 2)),
    )


def _background(
    colour: NDArray[np.float64], dice: random.Random, *, size_px: int
) -> NDArray[np.float64]:
    """A pale or grey slope of light, (size_px, size_px, 3), from which the colour stands out."""

    def tint() -> NDArray[np.float64]:
        light = dice.uniform(185, 240)
        return np.array([light + dice.uniform(-12, 12) for _ in range(3)])

    base = _first(tint, lambda tint: float(np.abs(tint - colour).max()) > 90)
    x, y = np.meshgrid(*[np.linspace(-1, 1, size_px)] * 2)
    slope = dice.uniform(-15, 15) * x + dice.uniform(-15, 15) * y
    return base + slope[..., None]


T = TypeVar("T")


def _first(throw: Callable[[], T], is_good: Callable[[T], bool]) -> T:
    while not is_good(thrown := throw()):
        pass
    return thrown
