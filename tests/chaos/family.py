"""The families of the chaos runs: real ones, whose memory can be told to be too small.

An order is a file in CHAOS_ORDERS, named by the worker and the step. It holds the number of rows
that fit.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from api_client.wire.messages import Kind
from worker.backends.base import Collated, Model
from worker.backends.fake import Fake
from worker.backends.openclip import OpenClip
from worker.catalogue import Entry

LOAD, RUN = "load", "run"


class Faked(Fake):
    def load(self, entry: Entry) -> Any:
        refuse(LOAD, rows=1)
        return _Cramped(super().load(entry))


class Opened(OpenClip):
    def load(self, entry: Entry) -> Any:
        refuse(LOAD, rows=1)
        return _Cramped(super().load(entry))


class _Cramped:
    """A model whose forward pass may find no memory."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def run(self, kind: Kind, batch: Collated) -> NDArray[np.float32]:
        refuse(RUN, rows=len(batch))
        return self._model.run(kind, batch)


def refuse(step: str, *, rows: int) -> None:
    """
    Raises:
        MemoryError: so it was ordered, for as many rows.
    """
    try:
        fit = float(
            order(Path(os.environ["CHAOS_ORDERS"]), os.environ["CHAOS_NAME"], step).read_text()
        )
    except (FileNotFoundError, ValueError):
        return
    if rows > fit:
        raise MemoryError(f"{rows} rows, {fit:g} fit: the chaos wants it so")


def order(folder: Path, worker: str, step: str) -> Path:
    """Where the order for a worker's step lies."""
    return folder / f"{worker}.{step}"
