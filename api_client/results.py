"""What a caller gets back: rows in the order of the items, whatever happened to each."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from .wire.codec import Vectors
from .wire.errors import ClipyardError, ItemError, SpaceMismatch
from .wire.messages import Embedded, ModelStatus


@dataclass(frozen=True, eq=False)  # NumPy's == has no single answer, and no hash
class Item:
    """One picture or text; equal to itself only: compare `vector` with NumPy.

    Attributes:
        vector: float32 (dimension,), L2-normalised; None if it failed.
        error: why it failed; None if it did not.
        truncated: whether a text was cut to the model's context length.
        model, fingerprint: which model answered, and in which vector space.
        device, precision: what computed it.
        chosen: why this model, where `auto` was asked for.
    """

    vector: Vectors | None
    error: ClipyardError | None
    truncated: bool
    model: str
    fingerprint: str
    device: str = ""
    precision: str = ""
    chosen: str = ""


class Loaded(ModelStatus):
    """A model in the memory of one worker."""

    worker: str


@dataclass(frozen=True)
class MemoryUse:
    """What a model takes, over all workers that hold it."""

    device_bytes: int
    host_bytes: int


class ItemsFailed(ItemError):
    """Some items have no vector; the others do.

    Attributes:
        items: all of them, in order.
    """

    code = "items_failed"

    def __init__(self, items: Sequence[Item]) -> None:
        failed = [(i, item.error) for i, item in enumerate(items) if item.error]
        position, error = failed[0]
        super().__init__(
            f"{len(failed)} of {len(items)} items failed, the first at {position}: {error} "
            "(the detailed calls answer item by item)"
        )
        self.items = tuple(items)

    def __reduce__(self) -> tuple[type[Self], tuple[tuple[Item, ...]]]:
        """Made anew of its items, not of its sentence as other errors are: pools pickle errors."""
        return type(self), (self.items,)


def items_of(answer: Embedded, rows: Vectors) -> list[Item]:
    """One Item per item that was asked for."""
    row = (one.copy() for one in rows)  # who keeps one keeps no others with it
    cut = set(answer.truncated)
    return [
        Item(
            vector=None if (failure := answer.failures.get(i)) else next(row),
            error=failure.error() if failure else None,
            truncated=i in cut,
            model=answer.model,
            fingerprint=answer.fingerprint,
            device=answer.device,
            precision=answer.precision,
            chosen=answer.chosen,
        )
        for i in range(answer.items)
    ]


def same_space(seen: str | None, fingerprint: str) -> str:
    """The one fingerprint of a call's answers.

    Raises:
        SpaceMismatch: two answers of one call come from different spaces.
    """
    if seen is not None and seen != fingerprint:
        raise SpaceMismatch(
            f"workers answered in two vector spaces ({seen} and {fingerprint}); "
            "give every worker the same version, CLIPYARD_PRECISION and CLIPYARD_DECODE, "
            "or name one model"
        )
    return fingerprint


def comparable(items: Sequence[Item]) -> Vectors:
    """`matrix`, of items of one space, whatever calls they come from.

    Raises:
        ItemsFailed: an item has no vector. SpaceMismatch: two are of different spaces.
    """
    vectors = matrix(items)
    space: str | None = None
    for item in items:
        space = same_space(space, item.fingerprint)
    return vectors


def matrix(items: Sequence[Item]) -> Vectors:
    """(n, dimension) float32.

    Raises:
        ItemsFailed: at least one item has no vector.
    """
    vectors = [item.vector for item in items if item.vector is not None]
    if len(vectors) != len(items):
        raise ItemsFailed(items)
    return np.array(vectors)


def similarity(a: Vectors, b: Vectors) -> Any:
    """Cosine of every row of `a` with every row of `b`.

    Args:
        a: (dimension,) or (n, dimension). b: likewise, m rows.

    Returns:
        float32 of shape (n, m), without the axes that were not given; of two vectors a float64,
        which is a `float`, too: an array of no axes can be neither rounded nor written as JSON.

    Raises:
        SpaceMismatch: the dimensions differ.
    """
    first, second = (np.atleast_2d(np.asarray(given, np.float32)) for given in (a, b))
    if first.shape[1] != second.shape[1]:
        raise SpaceMismatch(
            f"vectors of {first.shape[1]} and {second.shape[1]} dimensions cannot be compared"
        )
    cosine = _unit(first) @ _unit(second).T
    axes = tuple(axis for axis, given in enumerate((a, b)) if np.ndim(given) == 1)
    found = cosine.squeeze(axes)
    return found if found.ndim else np.float64(found)


def _unit(rows: Vectors) -> Vectors:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)
