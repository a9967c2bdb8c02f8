"""What `shapes/demo` learns from: drawn pictures, each with a text that is true of it."""

import random
from collections.abc import Callable, Iterator
from itertools import chain
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from api_client.quickstart import shapes

__all__ = ["FIELDS", "Example", "batches", "phrase"]

FIELDS: tuple[tuple[str, ...], ...] = (shapes.AMOUNTS, tuple(shapes.COLOURS), tuple(shapes.SHAPES))

Preprocess = Callable[[Image.Image], Tensor]
Tokenize = Callable[[list[str]], Tensor]


class Example(NamedTuple):
    """One picture and one text, or a batch of them along a first axis.

    `facts` and `allowed` have one element per word of FIELDS, 0 or 1: what the scene is, a word of
    each field, and what the text leaves possible.
    """

    pixels: Tensor  # (3, 64, 64)
    tokens: Tensor  # (context_length,)
    facts: Tensor
    allowed: Tensor

    def is_true(self) -> Tensor:
        """Of a batch: which text (column) is true of which picture (row), (n, n)."""
        return self.facts @ self.allowed.T == len(FIELDS)


def batches(
    preprocess: Preprocess,
    tokenize: Tokenize,
    *,
    seed: int,
    count: int,
    size: int,
    processes: int = 1,
) -> Iterator[Example]:
    """`count` batches of fresh examples, the same for every number of drawing processes."""
    drawn = _Drawn(preprocess, tokenize, seed=seed, count=count * size)
    yield from DataLoader(drawn, size, num_workers=processes)


class _Drawn(Dataset[Example]):
    def __init__(
        self, preprocess: Preprocess, tokenize: Tokenize, *, seed: int, count: int
    ) -> None:
        self._preprocess = preprocess
        self._tokenize = tokenize
        self._seed = seed
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Example:
        dice = random.Random(f"{self._seed}/{index}")
        caption = dice.choice(shapes.CAPTIONS)
        scene = shapes.SCENES[caption]
        # Small drawings train as well as large ones, and take a third of the time.
        picture = shapes.draw(caption, dice, size_px=dice.choice((80, 112, 144)))
        text, allowed = phrase(scene, dice)
        return Example(
            pixels=self._preprocess(picture),
            tokens=self._tokenize([text])[0],
            facts=_marked({scene.amount, scene.colour, scene.shape}),
            allowed=_marked(allowed),
        )


def _marked(words: set[str]) -> Tensor:
    return torch.tensor([word in words for word in chain(*FIELDS)], dtype=torch.float32)


SYNONYMS = {
    "a small": ("small", "small", "little", "tiny"),
    "a big": ("big", "big", "large", "huge"),
    "two": ("two",),
    "three": ("three",),
}


def phrase(scene: shapes.Scene, dice: random.Random) -> tuple[str, set[str]]:
    """A text that is true of the scene, as people type it, and the words of FIELDS it allows.

    Size or number, colour, shape, article and lead-in may be missing: "green triangle" allows small
    and big ones, "three stars" allows every colour.
    """
    is_one = scene.count == 1
    says_amount, says_colour = dice.random() < 0.6, dice.random() < 0.9
    says_shape = not says_colour or dice.random() < 0.9
    noun = scene.shape if says_shape else "shape"
    words = [
        *([dice.choice(SYNONYMS[scene.amount])] if says_amount else []),
        *([scene.colour] if says_colour else []),
        noun if is_one else shapes.plural(noun),
    ]
    if is_one:
        words = [*dice.choice(((shapes.article(words[0]),), ("the",), ())), *words]
    lead_in = dice.choice(("", "", "", "a photo of ", "a picture of "))
    singular, plural = set(shapes.AMOUNTS[:2]), set(shapes.AMOUNTS[2:])
    allowed = (
        ({scene.amount} if says_amount else singular if is_one else plural)
        | ({scene.colour} if says_colour else set(shapes.COLOURS))
        | ({scene.shape} if says_shape else set(shapes.SHAPES))
    )
    return lead_in + " ".join(words), allowed
