"""A folder of Parquet files, one a chunk."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from api_client.wire.errors import ClipyardError, JobRefused
from api_client.wire.jobs import Place

from ..doors import Doors
from ..files import lay, replacing, store_errors
from ..items import Shard, Space, Vector, storable
from ..links import lead, leads_to, named
from ..plugins import options_of
from ..tables import reading_parquet
from . import refuse_another_space

SPACE = "_space.json"  # readers of Parquet folders leave names with an underscore alone
PARTS = "part-*.parquet"
NUMBERED = "metadata/metadata_*.parquet"  # of clip-retrieval's layout, see `npy.py`


class Parquet:
    """Rows of id, reference, vector or error, model, fingerprint and metadata, a row an item.

    The same chunk gives the same bytes, whoever writes it. A file's name holds the job's id, so
    several jobs of one space may share the folder.
    """

    def __init__(self, place: Place, space: Space | None, doors: Doors) -> None:
        options_of(place)
        self.folder, self._doors = doors.writing(place.where), doors
        self._space = space = claimed(self.folder, space, others=NUMBERED)
        self._schema = pa.schema(
            [
                ("id", pa.string()),
                ("ref", pa.string()),
                ("vector", pa.list_(pa.float32(), space.dimension)),
                ("model", pa.string()),
                ("fingerprint", pa.string()),
                ("error", pa.string()),
                ("meta", pa.string()),
            ]
        )

    def write(self, shard: Shard) -> None:
        items, rows = shard.chunk.items, shard.rows
        columns = [
            [item.id for item in items],
            [storable(item.ref) for item in items],
            self._vectors(rows),
            [self._space.model] * len(items),
            [self._space.fingerprint] * len(items),
            [row.code if isinstance(row, ClipyardError) else None for row in rows],
            [json.dumps(item.meta) if item.meta else None for item in items],
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, self._schema, strict=True)]
        table = pa.Table.from_arrays(arrays, schema=self._schema)
        with replacing(self._file(shard.chunk.number)) as out:
            parquet.write_table(table, out, compression="zstd")

    def _vectors(self, rows: Sequence[Vector | ClipyardError]) -> pa.FixedSizeListArray:
        size = self._space.dimension
        failed = [isinstance(row, ClipyardError) for row in rows]
        empty = np.zeros(size, np.float32)
        flat = np.concatenate([empty if isinstance(r, ClipyardError) else r for r in rows])
        return pa.FixedSizeListArray.from_arrays(
            pa.array(flat), list_size=size, mask=pa.array(failed)
        )

    def read(self, ids: Sequence[str], *, chunk: int | None = None) -> Mapping[str, Vector]:
        wanted = pa.array(ids, pa.string())
        found: dict[str, Vector] = {}
        with store_errors(self.folder):
            for file in self._parts() if chunk is None else [self._file(chunk)]:
                found |= _held(file, wanted, self._schema)
        return found

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        with store_errors(self.folder):
            for file in self._parts():
                try:
                    with reading_parquet():
                        table = parquet.read_table(file, columns=["id", "ref", "meta"])
                except pa.ArrowInvalid as error:
                    raise JobRefused(f"{file} is broken: {error}") from None
                for row in table.to_pylist():
                    yield row["id"], json.loads(row["meta"] or "{}") | {"ref": row["ref"]}

    def target(self, alias: str) -> str | None:
        return leads_to(named(self.folder.parent, alias, self._doors))

    def switch(self, alias: str) -> None:
        lead(named(self.folder.parent, alias, self._doors), self.folder)

    def _parts(self) -> list[Path]:
        """Of all jobs; people may have put more beside them."""
        return sorted(self.folder.glob(PARTS))

    def _file(self, chunk: int) -> Path:
        return self.folder / f"part-{self._space.job}-{chunk:08d}.parquet"


def _held(file: Path, wanted: pa.Array, schema: pa.Schema) -> dict[str, Vector]:
    """The vectors of a file by id; none if it is not there, cut short by a power cut, or of
    somebody who gave it such a name."""
    try:
        with reading_parquet():
            table = parquet.read_table(file, columns=["id", "vector", "error"], schema=schema)
    except (FileNotFoundError, pa.ArrowException):
        return {}
    is_wanted = compute.is_in(table["id"], value_set=wanted)
    is_whole = compute.and_(table["error"].is_null(), table["vector"].is_valid())
    held = table.filter(compute.and_(is_wanted, is_whole))
    return dict(zip(held["id"].to_pylist(), matrix(held["vector"]), strict=True))


def claimed(folder: Path, space: Space | None, *, others: str, alone: str = "") -> Space:
    """Make a folder one of this space; without one, gives the space that it is of.

    Args:
        others: a glob of what a sink of the other layout writes into such a folder.
        alone: why the folder cannot be shared with another job, if it cannot.

    Raises:
        SpaceMismatch: it is one of another space.
        JobRefused: it holds something else, or belongs to another job alone.
    """
    if any(folder.glob(others)):
        raise JobRefused(
            f"{folder} holds vectors in another layout ({others}): name another folder"
        )
    file = folder / SPACE
    if space is None:
        if not file.exists():
            raise JobRefused(f"{folder} is no folder that a job wrote: it has no {SPACE}")
        return _space_of(file)
    with store_errors(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise JobRefused(
                f"{folder} is a file, or below one: name a folder for the sink"
            ) from None
        if not file.exists():
            if any(not entry.name.startswith((".", "_")) for entry in folder.iterdir()):
                raise JobRefused(
                    f"{folder} holds files of somebody else: name an empty folder for the sink"
                )
            lay(file, json.dumps(asdict(space)).encode())
    held = _space_of(file)
    refuse_another_space(str(folder), vars(held), dimension=held.dimension, wanted=space)
    if alone and held.job != space.job:
        raise JobRefused(
            f"{folder} is job {held.job}'s, and {alone}: name another folder, or remove it if "
            "nothing came of that job"
        )
    return space


def _space_of(file: Path) -> Space:
    try:
        with store_errors(file.parent):
            return Space(**json.loads(file.read_bytes()))
    except (ValueError, TypeError, RecursionError):
        raise JobRefused(f"{file} says no vector space any more: name another folder") from None


def matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """(rows, dimension) of a column of fixed-size lists without nulls."""
    size = column.type.list_size
    parts = [part.flatten().to_numpy(zero_copy_only=False) for part in column.chunks]
    return np.concatenate([np.empty(0, np.float32), *parts]).astype(np.float32).reshape(-1, size)
