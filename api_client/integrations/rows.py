"""Vectors as these libraries take them, which have no place for what else there is to tell."""

import warnings
from collections.abc import Sequence

from ..results import Item, matrix

__all__ = ["rows"]

CUT = (
    "a text was longer than the model reads and was cut: split texts into shorter ones; "
    "Client.embed_texts_detailed tells which are cut"
)


def rows(items: Sequence[Item]) -> list[list[float]]:
    """One list per item; warns where a text was cut.

    Raises:
        ItemsFailed: at least one item has no vector.
    """
    if any(item.truncated for item in items):
        warnings.warn(CUT, stacklevel=2)
    return matrix(items).tolist() if items else []
