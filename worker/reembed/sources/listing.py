"""Lists: a path or URL a line, or a table with a column of them; and tables and lines of texts."""

import csv
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from api_client.wire.errors import JobRefused, StoreDown
from api_client.wire.jobs import Place
from api_client.wire.messages import MAX_BATCH_CHARS

from ..doors import Doors
from ..items import Item
from ..plugins import options_of
from ..tables import is_of_bytes, reading_parquet, rows_of
from . import Content, refs

Reader = Callable[[Path], Iterator[Mapping[str, Any]]]

ROWS = 4096  # of a Parquet file, in memory at once


class Listing:
    """References, one a row: `.csv`, `.tsv`, `.jsonl` or `.parquet`, anything else a line each.

    Options: `column` holds paths or URLs (`path`), `id` the ids (the reference itself). The other
    columns become metadata, but for those of bytes. Relative paths count from the list's folder.
    """

    def __init__(self, place: Place, doors: Doors) -> None:
        options = options_of(place, column="path", id="")
        self._doors = doors
        self._file = doors.reading(place.where)
        self._column, self._id = options["column"], options["id"]

    def walk(self) -> Iterator[Item]:
        folder = str(self._file.parent)
        for number, row in _rows(self._file, self._column, self._id):
            ref = _name(self._file, number, row, self._column)
            meta = {n: v for n, v in row.items() if n not in (self._column, self._id)}
            item_id = _name(self._file, number, row, self._id) if self._id else ref
            if not ref.startswith("/") and "://" not in ref:
                ref = os.path.join(folder, ref)
            yield Item(item_id, ref, meta=meta)

    def fetch(self, item: Item) -> Content:
        return refs.content(item.ref, self._doors)


class Texts:
    """Texts, one a row: `.jsonl`, `.csv`, `.tsv` or `.parquet`, anything else a line each.

    Options: `column` holds the texts (`text`), `id` the ids (the file's name and the row's
    number). The other columns become metadata.
    """

    def __init__(self, place: Place, doors: Doors) -> None:
        options = options_of(place, column="text", id="")
        self._file = doors.reading(place.where)
        self._column, self._id = options["column"], options["id"]

    def walk(self) -> Iterator[Item]:
        for number, row in _rows(self._file, self._column, self._id):
            text = _cell(self._file, number, row, self._column)
            meta = {n: v for n, v in row.items() if n not in (self._column, self._id)}
            ref = refs.text(self._file, number)
            item_id = _name(self._file, number, row, self._id) if self._id else ref
            yield Item(id=item_id, ref=ref, text="" if text is None else str(text), meta=meta)

    def fetch(self, item: Item) -> str:
        return item.text or ""


def _rows(file: Path, column: str, id: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Rows with their numbers, from 1."""
    if not file.is_file():
        raise JobRefused(f"there is no file {str(file)!r} on this worker")
    read: Mapping[str, Reader] = {
        ".parquet": partial(_parquet, needed=(column, id)),
        ".jsonl": _jsonl,
        ".csv": partial(_csv, delimiter=","),
        ".tsv": partial(_csv, delimiter="\t"),
    }
    reader: Reader = read.get(file.suffix.lower(), partial(_lines, column=column))
    number = 0
    try:
        for number, row in enumerate(reader(file), start=1):
            yield number, row
    except (ValueError, RecursionError, csv.Error, pa.ArrowException, PermissionError) as error:
        beyond = f" beyond row {number}" if number else ""
        kind = file.suffix or "a list"
        raise JobRefused(f"{file} cannot be read as {kind}{beyond}: {error}") from None
    except OSError as error:
        raise StoreDown(f"{file}: {error.strerror}") from error


def _parquet(file: Path, *, needed: Collection[str]) -> Iterator[Mapping[str, Any]]:
    """Of the other columns not those of bytes, as of the pictures themselves: no metadata."""
    with reading_parquet():
        table = parquet.ParquetFile(file)
        columns = [
            f.name for f in table.schema_arrow if f.name in needed or not is_of_bytes(f.type)
        ]
        for batch in table.iter_batches(ROWS, columns=columns):
            yield from rows_of(batch)


def _jsonl(file: Path) -> Iterator[Mapping[str, Any]]:
    with file.open("rb") as lines:
        for line in filter(bytes.strip, lines):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:  # which counts from the line's own beginning
                raise ValueError(f"{error.msg}, at character {error.pos + 1} of a line") from None
            if not isinstance(row, dict):
                raise ValueError("a line is no JSON object")
            yield row


def _csv(file: Path, *, delimiter: str) -> Iterator[Mapping[str, Any]]:
    csv.field_size_limit(MAX_BATCH_CHARS)  # of the process; its own is less than a long text has
    with file.open(newline="", encoding="utf-8-sig") as lines:
        rows = csv.DictReader(lines, delimiter=delimiter, strict=True)
        for row in rows:
            if None in row:  # the rest of a URL with a comma, as a rule
                many = f"line {rows.line_num} has more columns than the first one"
                raise ValueError(f"{many}; quote what holds a {delimiter!r}")
            yield row


def _lines(file: Path, *, column: str) -> Iterator[Mapping[str, Any]]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for line in lines:
            if "\0" in line:
                raise ValueError("it is compressed, or no text of UTF-8")
            if text := line.rstrip("\n"):
                yield {column: text}


def _cell(file: Path, number: int, row: Mapping[str, Any], column: str) -> Any:
    if column not in row:
        names = ", ".join(map(str, row))
        raise JobRefused(
            f"{file}, row {number} has no {column!r}; its columns are {names}: name another by an "
            "option of the source, as in `--from column=NAME`"
        )
    value = row[column]
    if isinstance(value, bytes | dict | list):  # what `str` makes of it nobody means
        raise JobRefused(
            f"{file}, row {number} has {type(value).__name__} in its column {column!r}; name one "
            "of paths, URLs or texts"
        )
    return value


def _name(file: Path, number: int, row: Mapping[str, Any], column: str) -> str:
    value = _cell(file, number, row, column)
    if value is None:
        raise JobRefused(f"{file}, row {number} has nothing in its column {column!r}")
    return str(value)
