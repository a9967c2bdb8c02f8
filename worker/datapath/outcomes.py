"""What an item ends as: a row of length one, or an error that is fit to cross the wire."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from api_client.wire.errors import (
    BackendFailed,
    ClipyardError,
    DeviceLost,
    NonFiniteVector,
    first_line,
)

from ..backends.lost import is_beyond_repair

Vector = NDArray[np.float32]
Outcome = Vector | ClipyardError


@dataclass(frozen=True)
class Known:
    """A row that needs no forward pass: (dimension,), L2-normalised."""

    vector: Vector


def normalised(raw: object, shape: tuple[int, int], *, who: str) -> Sequence[Outcome]:
    """L2-normalised rows; NonFiniteVector in the place of one that has no direction.

    Args:
        who: answered so, for the sentences.

    Raises:
        BackendFailed: not one row of the model's dimension per item.
    """
    vectors = np.asarray(raw, dtype=np.float64)
    if vectors.shape != shape:
        raise BackendFailed(f"{who} answered {vectors.shape} where {shape} was due")
    norms = np.sqrt((vectors * vectors).sum(axis=1))
    usable = np.isfinite(norms) & (norms > 0)
    unit = (vectors / np.where(usable, norms, 1.0)[:, None]).astype(np.float32)
    return [
        row if good else NonFiniteVector(f"{who} answered with NaN, infinity or a zero vector")
        for row, good in zip(unit, usable, strict=True)
    ]


def failure(error: BaseException, what: str) -> ClipyardError:
    """What the caller is told of an error; the traceback is for the worker's log.

    Args:
        what: begins the sentence, e.g. `ViT-B-32/openai: its back end`.
    """
    if isinstance(error, ClipyardError):
        return _bare(error)
    if is_beyond_repair(error):
        return DeviceLost(f"{what} has lost its device: {first_line(error)}")
    return BackendFailed(f"{what} raised {type(error).__name__}")


def _bare(error: ClipyardError) -> ClipyardError:
    """Without the frames, which hold pictures and tensors."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)
