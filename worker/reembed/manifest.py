"""The manifest of a job: every item in its order, cut into chunks, and proof against changes.

    part-00000.jsonl   a line per item; `PART_CHUNKS` chunks to a part
    index.bin          per chunk: where it begins in its part, its bytes, its digest
    manifest.json      items, chunks, the index's digest; written last, so it says: all is here

The manifest is a function of the source alone. Whoever takes over from a planner that died walks
the source again and writes the same bytes, so there is no state between the two to get wrong.
"""

import hashlib
import json
import struct
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import chain, count, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from api_client.wire.errors import JobRefused, StoreDown

from .files import lasting, store_errors, temporary_for
from .items import Chunk, Item, parse

PART_CHUNKS = 64
IDS_AT_ONCE = 2**20  # looked at together in the search for duplicates, 8 bytes each
DUPLICATES_TOLD = 3
SUSPECTS = 2**10  # equal hashes that are looked at again, of a list that may be twice in itself
WHOLE = "manifest.json"

_RECORD = struct.Struct("<QQ16s")


@dataclass(frozen=True)
class Manifest:
    """What manifest.json says."""

    items: int
    chunks: int
    chunk_size: int
    index: str  # sha256 of index.bin, in hex


def write(folder: Path, items: Iterable[Item], *, chunk_size: int) -> Iterator[int]:
    """Write a manifest; yields, after each part, how many items it has so far.

    Nobody reads it before it is whole: stopping between two parts costs only the time.

    Raises:
        JobRefused: there are no items, or two have one id.
        StoreDown: the folder is away or full.
    """
    chunks = _batched(items, chunk_size)
    index, total = bytearray(), 0
    ids = temporary_for(folder / "ids")  # another planner may be at it still
    with store_errors(folder), ExitStack() as files:
        folder.mkdir(parents=True, exist_ok=True)
        files.callback(ids.unlink, missing_ok=True)
        hashes = files.enter_context(ids.open("wb"))
        for number in count():
            if (first := next(chunks, None)) is None:
                break
            with lasting(_part(folder, number)) as out:
                for found in chain([first], islice(chunks, PART_CHUNKS - 1)):
                    body = b"".join([item.line() for item in found])
                    index += _RECORD.pack(out.tell(), len(body), _digest(body))
                    out.write(body)
                    hashes.write(np.array([hash(item.id) for item in found]).tobytes())
                    total += len(found)
            yield total
        hashes.flush()
        if not total:
            raise JobRefused("the source holds no items; is the path or the pattern right?")
        _refuse_duplicates(folder, ids, total)
    with lasting(folder / "index.bin") as out:
        out.write(index)
    manifest = Manifest(
        items=total,
        chunks=len(index) // _RECORD.size,
        chunk_size=chunk_size,
        index=hashlib.sha256(index).hexdigest(),
    )
    with lasting(folder / WHOLE) as out:
        out.write(json.dumps(asdict(manifest)).encode())


def is_whole(folder: Path) -> bool:
    """Whether a planner has finished here."""
    return (folder / WHOLE).exists()


def read(folder: Path) -> Manifest:
    """What a finished planner left.

    Raises:
        JobRefused: it is no manifest any more.
    """
    file = folder / WHOLE
    try:
        with _here(folder):
            return Manifest(**json.loads(file.read_bytes()))
    except (ValueError, TypeError, RecursionError):
        raise _changed(file) from None


def chunk(folder: Path, number: int, *, index: str) -> Chunk:
    """One chunk, without reading the others.

    Args:
        index: the digest of the index as it was when the job started.

    Raises:
        JobRefused: the manifest is not the one that the job started with.
    """
    record = _index(folder, index)[number * _RECORD.size : (number + 1) * _RECORD.size]
    begin, length, digest = _RECORD.unpack(record)
    part = _part(folder, number // PART_CHUNKS)
    with _here(folder), part.open("rb") as file:
        file.seek(begin)
        body = file.read(length)
    if _digest(body) != digest:
        raise _changed(part)
    return Chunk(number, parse(body))


@lru_cache(maxsize=8)
def _index(folder: Path, digest: str) -> bytes:
    with _here(folder):
        index = (folder / "index.bin").read_bytes()
    if hashlib.sha256(index).hexdigest() != digest:
        raise _changed(folder / "index.bin")
    return index


@contextmanager
def _here(folder: Path) -> Iterator[None]:
    """
    Raises:
        StoreDown: the manifest cannot be read at the moment, or was never in reach.
    """
    with store_errors(folder):
        try:
            yield
        except FileNotFoundError:
            raise StoreDown(
                f"{folder} is not here: bring it back if it was moved, or mount it; all workers of "
                "a job must share the folder of its papers, see CLIPYARD_JOBS_DIR"
            ) from None


def _changed(file: Path) -> JobRefused:
    return JobRefused(f"{file} was changed after the job started; submit it anew, under another id")


def _refuse_duplicates(folder: Path, ids: Path, total: int) -> None:
    """Sorts the ids' hashes a slice of their range at a time; equal ones are looked at again."""
    suspects: set[int] = set()
    again = 0
    passes = -(-total // IDS_AT_ONCE)
    for this in range(passes):
        mine = np.concatenate([block[block % passes == this] for block in _blocks(ids)])
        mine.sort()
        found = mine[1:][mine[1:] == mine[:-1]]
        again += len(found)
        suspects.update(found[: SUSPECTS - len(suspects)].tolist())
    if twice := list(islice(_twice(folder, suspects), DUPLICATES_TOLD)):
        raise JobRefused(
            f"{again} items have an id that another one has, e.g. {', '.join(twice)}; "
            "remove them, or name a column with unique ids"
        )


def _twice(folder: Path, suspects: Collection[int]) -> Iterator[str]:
    """The ids that are there already, of those whose hashes are suspects."""
    seen: set[str] = set()
    for part in sorted(folder.glob("part-*.jsonl")) if suspects else ():
        for item in parse(part.read_bytes()):
            if hash(item.id) in suspects:
                if item.id in seen:
                    yield repr(item.id)
                seen.add(item.id)


def _blocks(ids: Path) -> Iterator[NDArray[np.int64]]:
    with ids.open("rb") as file:  # mapped, all of it would count as this process's memory
        while len(block := np.fromfile(file, np.int64, IDS_AT_ONCE)):
            yield block


def _part(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.jsonl"


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).digest()[:16]


def _batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    walk = iter(items)
    while found := list(islice(walk, size)):
        yield found
