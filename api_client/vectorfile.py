"""Vectors with their metadata in one file: Parquet, JSON lines, or a bare .npy matrix."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .results import Item, matrix
from .wire.errors import BadRequest

ENDINGS = (".npy", ".parquet", ".jsonl")


def checked(path: Path) -> Path:
    """The path, if vectors can be written there; ask before the work, not after.

    Raises:
        BadRequest: the ending is none of ENDINGS, or it is a folder.
    """
    if path.suffix not in ENDINGS:
        raise BadRequest(f"cannot write vectors to {path}; use {', '.join(ENDINGS)}")
    if path.is_dir():
        raise BadRequest(f"cannot write vectors to {path}: it is a folder")
    return path


def write(path: Path, references: Sequence[str], items: Sequence[Item]) -> None:
    """Write one row per item: reference, vector, model, fingerprint, error code.

    `.npy` holds the vectors alone, so it refuses items that failed.

    Raises:
        ItemsFailed: see above.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    match path.suffix:
        case ".npy":
            np.save(path, matrix(items))
        case ".parquet":
            _parquet(path, references, items)
        case _:
            with path.open("w") as lines:
                for reference, item in zip(references, items, strict=True):
                    lines.write(json.dumps(_row(reference, item)) + "\n")


def _row(reference: str, item: Item) -> dict[str, object]:
    return {
        "reference": reference,
        "vector": None if item.vector is None else item.vector.tolist(),
        "model": item.model,
        "fingerprint": item.fingerprint,
        "error": item.error.code if item.error else None,
    }


def _parquet(path: Path, references: Sequence[str], items: Sequence[Item]) -> None:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise BadRequest(
            "writing Parquet needs pyarrow: pip install 'clipyard[sinks]', or write .jsonl"
        ) from None
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
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
