"""One item of a bulk job, and the line of the manifest that holds it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from api_client.wire.errors import ClipyardError, JobRefused

Vector = NDArray[np.float32]  # (dimension,), L2-normalised


class Item(NamedTuple):
    """What becomes one vector. There are millions, and a tuple is made in half the time.

    Attributes:
        id: stable: the same item has it in every job.
        ref: where it comes from, enough to fetch it again; see `sources.refs`.
        text: what is embedded, for items that are texts.
        meta: carried along into the sink; JSON values.
    """

    id: str
    ref: str
    text: str | None = None
    meta: Mapping[str, Any] = {}

    def line(self) -> bytes:
        """One line of JSON, the same for the same item. Texts one by one are quick to encode."""
        line = f'{{"id":{_encode(self.id)},"ref":{_encode(self.ref)}'
        if self.text is not None:
            line += f',"text":{_encode(self.text)}'
        if self.meta:
            line += f',"meta":{_encode(self.meta)}'
        return f"{line}}}\n".encode(errors="surrogatepass")

    def kept(self) -> "Item":
        """As every sink can keep it: see `storable`. The reference still opens what it opened.

        Raises:
            JobRefused: its metadata are nested deeper than Python follows.
        """
        if not self.meta and storable(self.id) is self.id:
            return self
        try:
            return self._replace(id=storable(self.id), meta=_plain(self.meta))
        except RecursionError:
            raise JobRefused(f"the metadata of {self.id!r:.100} are nested too deep") from None


def storable(text: str) -> str:
    """UTF-8 without null bytes; what is not is escaped, as in file names of another encoding."""
    if text.isascii() and "\0" not in text:
        return text
    try:
        escaped = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # half a character, of JSON that was cut
        escaped = text.encode(errors="backslashreplace").decode()
    return escaped.replace("\0", r"\x00")


def _plain(value: Any) -> Any:
    """Metadata as any database takes it for JSON: no NaN, no infinity, `storable` texts."""
    match value:
        case str():
            return storable(value)
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {_plain(name): _plain(below) for name, below in value.items()}
        case list() | tuple():
            return [_plain(below) for below in value]
    return value


def parse(lines: bytes) -> list[Item]:
    """Of whole lines; all at once, which is seven times as fast as one by one."""
    return [Item(**fields) for fields in json.loads(b"[" + b",".join(lines.splitlines()) + b"]")]


@dataclass(frozen=True)
class Chunk:
    """Items that are finished together. `number` counts from 0."""

    number: int
    items: Sequence[Item]


@dataclass(frozen=True)
class Shard:
    """A chunk with what became of it: one row or one error per item."""

    chunk: Chunk
    rows: Sequence[Vector | ClipyardError]

    def embedded(self) -> list[tuple[Item, Vector]]:
        """The items that have a vector."""
        return [
            (item, row)
            for item, row in zip(self.chunk.items, self.rows, strict=True)
            if not isinstance(row, ClipyardError)
        ]


@dataclass(frozen=True)
class Space:
    """The vector space that a job writes in.

    Attributes:
        job: whose sink it is.
    """

    model: str
    fingerprint: str
    dimension: int
    job: str


# `default`: dates and decimals of Parquet files and databases become text.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
