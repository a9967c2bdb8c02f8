"""Vectors with their metadata in one file: Parquet, JSON lines, or a bare .npy matrix."""

import errno
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np

from .results import Item, matrix
from .wire.errors import BadRequest

ENDINGS = (".npy", ".parquet", ".jsonl")


def check(path: Path) -> None:
    """Whether vectors can be written there: asked before the work, not after.

    Makes the folders above it, and leaves what is there as it is.

    Raises:
        BadRequest: the ending is none of ENDINGS, what writes it is not installed, or the file
            cannot be opened.
    """
    if path.suffix not in ENDINGS:
        raise BadRequest(f"cannot write vectors to {path}; use {', '.join(ENDINGS)}")
    if path.suffix == ".parquet" and not find_spec("pyarrow"):
        raise BadRequest(
            "writing Parquet needs pyarrow: pip install -e '.[sinks]' in the checkout, "
            "or write .jsonl"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for file in _places(path):
            is_new = not file.exists()
            file.open("ab").close()
            if is_new:
                file.unlink()
    except OSError as error:
        raise BadRequest(f"cannot write vectors to {path}: {error.strerror}") from None


def write(path: Path, references: Sequence[str], items: Sequence[Item]) -> Path:
    """Write one row per item: reference, vector, model, fingerprint, error code.

    `.npy` holds the vectors alone. If an item failed, all is written as JSON lines beside it.

    Args:
        path: has passed `check`.

    Returns:
        The file that was written.

    Raises:
        OSError: it cannot be written whole, as on a full disk; then what was there still is.
    """
    if path.suffix == ".npy" and any(item.error for item in items):
        path = path.with_name(f"{path.name}.jsonl")
    with _whole(path) as out:
        match path.suffix:
            case ".npy":
                whole = io.BytesIO()  # NumPy writes a file past Python, deaf to a full disk
                np.save(whole, matrix(items) if items else np.empty((0, 0), np.float32))
                out.write(whole.getbuffer())
            case ".parquet":
                _parquet(out, references, items)
            case _:
                for reference, item in zip(references, items, strict=True):
                    out.write(json.dumps(_row(reference, item)).encode() + b"\n")
    return path


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes its place once it is written: half of one would be read as a whole."""
    try:
        file, part = _places(path)
        try:
            with part.open("wb") as out:
                yield out
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        why = error.strerror or error
        raise OSError(f"cannot write vectors to {path}: {why}") from error


def _places(path: Path) -> tuple[Path, Path]:
    """The file that a path names, on whatever disk a link leads to, and where it is written.

    Raises:
        OSError: what is there is none. A pipe would wait for a reader; a device be replaced.
    """
    file = Path(os.path.realpath(path))
    if file.exists() and not file.is_file():
        raise OSError(errno.EINVAL, "what is there is no file")
    return file, file.with_name(f"{file.name}.part")


def _row(reference: str, item: Item) -> dict[str, object]:
    return {
        "reference": reference,
        "vector": None if item.vector is None else item.vector.tolist(),
        "model": item.model,
        "fingerprint": item.fingerprint,
        "error": item.error.code if item.error else None,
    }


def _parquet(out: IO[bytes], references: Sequence[str], items: Sequence[Item]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    dimension = next((len(i.vector) for i in items if i.vector is not None), 1)
    schema = pa.schema(
        [
            ("reference", pa.string()),
            ("vector", pa.list_(pa.float32(), dimension)),
            ("model", pa.string()),
            ("fingerprint", pa.string()),
            ("error", pa.string()),
        ]
    )
    rows = [_row(reference, item) for reference, item in zip(references, items, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), out)
