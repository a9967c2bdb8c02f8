"""Vectors as clip-retrieval lays them out, so that its index builder reads them."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import parquet

from api_client.wire.errors import JobRefused
from api_client.wire.jobs import Place

from ..doors import Doors
from ..files import left_of, meant_in, replacing, store_errors
from ..items import Shard, Space, Vector, storable
from ..links import lead, leads_to, named
from ..plugins import options_of
from ..tables import reading_parquet
from .shards import NUMBERED, PARTS, claimed

TOWERS = {"image": "img_emb", "text": "text_emb"}
OF = b"sha256 of the vectors"  # in the metadata of a file of rows
DIGITS = 8  # the index builder takes the files in the order of their names


class ClipRetrieval:
    """`img_emb/img_emb_N.npy`, float16 as clip-retrieval has it, `metadata/metadata_N.parquet`.

    Row i of the one is row i of the other; items without a vector are in neither. With the option
    `tower` = `text` the first is `text_emb/text_emb_N.npy`.
    """

    def __init__(self, place: Place, space: Space | None, doors: Doors) -> None:
        tower = options_of(place, tower="image")["tower"]
        if tower not in TOWERS:
            raise JobRefused(f"no tower {tower!r} ({place.where}); there are {', '.join(TOWERS)}")
        self._tower = TOWERS[tower]
        self.folder, self._doors = doors.writing(place.where), doors
        self._space = claimed(
            self.folder, space, others=PARTS, alone="file numbers of two jobs would collide"
        )

    def write(self, shard: Shard) -> None:
        pairs = shard.embedded()
        if not pairs:
            return
        number = shard.chunk.number
        meta = pa.table(
            {
                "id": [item.id for item, _ in pairs],
                "image_path": [storable(item.ref) for item, _ in pairs],
                "caption": [_caption(item.text, item.meta) for item, _ in pairs],
                "metadata": [json.dumps(item.meta) for item, _ in pairs],
                "model": [self._space.model] * len(pairs),
                "fingerprint": [self._space.fingerprint] * len(pairs),
            }
        )
        with store_errors(self.folder):
            for file in (self._metadata(number), self._vectors(number)):
                file.parent.mkdir(exist_ok=True)
        whole = io.BytesIO()  # NumPy writes a file past Python, deaf to a full disk
        np.save(whole, np.stack([row for _, row in pairs]).astype(np.float16))
        meta = meta.replace_schema_metadata({OF: _digest(whole.getbuffer())})
        # Both are written before one has its name: rows and vectors of two writes fit no more. The
        # vectors come to be there last: whoever sees them finds the rest.
        with replacing(self._vectors(number)) as vectors, replacing(self._metadata(number)) as out:
            parquet.write_table(meta, out, compression="zstd")
            vectors.write(whole.getbuffer())
            vectors.flush()

    def read(self, ids: Sequence[str], *, chunk: int | None = None) -> Mapping[str, Vector]:
        wanted = set(ids)
        found: dict[str, Vector] = {}
        with store_errors(self.folder):
            for number in self._numbers() if chunk is None else [chunk]:
                found |= {id: row for id, row in self._rows(number) if id in wanted}
        return found

    def settle(self) -> None:
        """Vectors that a writer left who was killed between the two names get theirs: a job counts
        them, and tidies up at its end."""
        with store_errors(self.folder):
            for meant in sorted(meant_in(self.folder / self._tower)):
                number = meant.stem.rpartition("_")[2]
                whole = self._whole(int(number)) if number.isdecimal() else None
                if whole and whole[0] != meant:
                    os.replace(whole[0], meant)

    def _rows(self, number: int) -> list[tuple[str, Vector]]:
        if (whole := self._whole(number)) is None:
            return []
        _, names, found = whole
        return list(zip(names, found.astype(np.float32), strict=True))

    def _whole(self, number: int) -> tuple[Path, list[str], NDArray[np.float16]] | None:
        """The file that has a chunk's vectors, their ids, and they."""
        try:
            with reading_parquet():
                table = parquet.read_table(self._metadata(number), columns=["id"])
        except (FileNotFoundError, pa.ArrowInvalid):
            return None
        names, digest = table["id"].to_pylist(), (table.schema.metadata or {}).get(OF)
        for file in _candidates(self._vectors(number)):
            with suppress(FileNotFoundError, ValueError, EOFError):
                body = file.read_bytes()
                found = np.load(io.BytesIO(body))
                is_theirs = digest in (None, _digest(body))  # earlier files name none
                if is_theirs and found.shape == (len(names), self._space.dimension):
                    return file, names, found
        return None

    def _numbers(self) -> list[int]:
        found = (file.stem.rpartition("_")[2] for file in self.folder.glob(NUMBERED))
        return sorted(int(number) for number in found if number.isdecimal())

    def target(self, alias: str) -> str | None:
        return leads_to(named(self.folder.parent, alias, self._doors))

    def switch(self, alias: str) -> None:
        lead(named(self.folder.parent, alias, self._doors), self.folder)

    def _vectors(self, number: int) -> Path:
        return self.folder / self._tower / f"{self._tower}_{number:0{DIGITS}d}.npy"

    def _metadata(self, number: int) -> Path:
        return self.folder / "metadata" / f"metadata_{number:0{DIGITS}d}.parquet"


def _candidates(vectors: Path) -> Iterator[Path]:
    """Whoever was killed between the two names has left the vectors of these rows under another."""
    yield vectors
    yield from left_of(vectors)  # lists the whole folder


def _digest(body: bytes | memoryview) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _caption(text: str | None, meta: Mapping[str, object]) -> str:
    return storable(text if text is not None else str(meta.get("caption", "")))
