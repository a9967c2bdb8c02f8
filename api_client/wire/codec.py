"""Answers, vectors and status records to bytes and back.

The only code that knows byte order and frame layout. An answer is one Redis string:

    4 bytes   length of the header, unsigned little-endian
    header    JSON of `Embedded`, `Managed` or `Refused`, under one key that names which
    vectors   rows x dimension little-endian float32 or float16, row-major (Embedded only)
"""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from pydantic_core import from_json
from redis.typing import EncodableT, FieldT

from .errors import ClipyardError, first_line
from .messages import Embedded, Managed, Message, Refused

Vectors = NDArray[np.float32]  # (rows, dimension), L2-normalised

_LENGTH = struct.Struct("<I")
_KINDS: dict[str, type[Message]] = {"embedded": Embedded, "managed": Managed, "refused": Refused}
_DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2")}
_Record = TypeVar("_Record", bound=BaseModel)


def pack_answer(answer: Embedded | Managed | Refused, vectors: Vectors | None = None) -> bytes:
    """One frame; `vectors` has one row per item that did not fail, in the items' order."""
    kind = type(answer).__name__.lower()
    header = f'{{"{kind}":{answer.model_dump_json(exclude_defaults=True)}}}'.encode()
    body = b""
    if vectors is not None and isinstance(answer, Embedded):
        body = np.ascontiguousarray(vectors, dtype=_DTYPES[answer.dtype]).tobytes()
    return _LENGTH.pack(len(header)) + header + body


def unpack_answer(frame: bytes) -> tuple[Message, Vectors | None]:
    """The answer and, for `Embedded`, its float32 rows.

    Raises:
        ValueError: the frame is not one of ours, or was cut.
    """
    if len(frame) < _LENGTH.size:
        raise ValueError(f"an answer of {len(frame)} bytes is too short")
    (length,) = _LENGTH.unpack_from(frame)
    body_at = _LENGTH.size + length
    if body_at > len(frame):
        raise ValueError("an answer's header was cut")
    header = from_json(frame[_LENGTH.size : body_at])
    if not isinstance(header, dict) or len(header) != 1 or not header.keys() <= _KINDS.keys():
        raise ValueError(f"an answer's header names none of {', '.join(_KINDS)}")
    [(kind, fields)] = header.items()
    answer = _KINDS[kind].model_validate(fields, extra="ignore")  # a newer worker's may have more
    if not isinstance(answer, Embedded):
        return answer, None
    dtype = _DTYPES[answer.dtype]
    rows = answer.items - len(answer.failures)
    if not all(0 <= at < answer.items for at in answer.failures):
        raise ValueError(f"an answer of {answer.items} items has failures of others")
    if rows and answer.dimension < 1:  # then its length would not bound the rows
        raise ValueError(f"an answer's vectors are of {answer.dimension} dimensions")
    if len(frame) - body_at != rows * answer.dimension * dtype.itemsize:
        raise ValueError(f"an answer's body is not {rows} x {answer.dimension} of {answer.dtype}")
    flat = np.frombuffer(frame, dtype=dtype, offset=body_at)
    return answer, flat.reshape(rows, answer.dimension).astype(np.float32)


def pack_record(record: BaseModel) -> dict[FieldT, EncodableT]:
    """A status record as the fields of a Redis hash, each value JSON."""
    return {name: json.dumps(value) for name, value in record.model_dump(mode="json").items()}


def text(raw: bytes | str) -> str:
    """A name as Redis gives it back; its clients may or may not have decoded it."""
    # Letters that are none mean nobody, and a stranger's name must not hide everybody's.
    return raw.decode(errors="replace") if isinstance(raw, bytes) else raw


def unpack_record(kind: type[_Record], fields: Mapping[Any, bytes | str]) -> _Record:
    """The record again; fields of a newer version are dropped.

    Raises:
        ClipyardError: it is none of ours.
    """
    known = kind.model_fields
    with _ours(kind):
        return kind.model_validate(
            {
                name: from_json(value, allow_inf_nan=False)
                for name, value in ((text(n), v) for n, v in fields.items())
                if name in known
            },
            extra="ignore",
        )


def unpack_row(kind: type[_Record], row: bytes | str) -> _Record:
    """`unpack_record`, of one that stands in one field as JSON."""
    with _ours(kind):
        return kind.model_validate_json(row, extra="ignore")


@contextmanager
def _ours(kind: type[BaseModel]) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise none_of_ours(f"a {kind.__name__}", first_line(error)) from None


def none_of_ours(what: str, why: str) -> ClipyardError:
    return ClipyardError(
        f"what Redis holds as {what} is none ({why}); does a worker of another version, or "
        "another program, use the same CLIPYARD_KEY_PREFIX?"
    )
