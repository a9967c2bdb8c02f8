"""Addresses as people write them, turned into the places of a job.

    /photos                     a folder of pictures, or a glob such as /photos/**/*.jpg
    list.csv  list.parquet      paths or URLs in a column; list.txt has one a line
    texts.jsonl                 texts in a column
    shard-{00000..00099}.tar    webdataset
    s3://bucket/photos          anything that fsspec opens
    qdrant:http://host#photos   a collection; so for lancedb:, pgvector: and parquet:

A kind may always be said before the address, as in `list:/data/photos`.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, urlsplit

from pydantic import ValidationError

from ..wire.errors import BadRequest, first_mistake
from ..wire.jobs import FOLDERS, Place

# The option that a `#name` at the end of an address means, by the kind of sink.
NAMED = {"qdrant": "collection", "lancedb": "table", "pgvector": "table"}
STORES = frozenset({*NAMED, "parquet"})  # sinks that can be a source
SOURCES = {".csv": "list", ".tsv": "list", ".txt": "list", ".parquet": "list", ".jsonl": "texts"}
SECRETS = {"password", "sslpassword"}  # parameters of PostgreSQL's addresses
_HOST = re.compile(r"([\w.-]+|\[[\da-fA-F:]+\]):\d+(/.*)?")
_KIND = re.compile(r"([a-z][a-z0-9_]*):(?!//)(.+)", re.DOTALL)


def source(address: str | Path | Place, options: Mapping[str, str] | None = None) -> Place:
    """Where a job reads from.

    Raises:
        BadRequest: the address has a password, or cannot be one.
    """
    if isinstance(address, Place):
        return _with(address, options)
    kind, where = _said(address)
    if kind in STORES:
        return held_by(_place(kind, where, {}), options)
    return _place(kind or _guessed_source(where), where, options or {})


def sink(address: str | Path | Place, options: Mapping[str, str] | None = None) -> Place:
    """Where a job writes to: a folder gets Parquet files unless a kind is said.

    Raises:
        BadRequest: the address has a password, or cannot be one.
    """
    if isinstance(address, Place):
        return _with(address, options)
    kind, where = _said(address)
    if not kind:
        scheme = _parts(where).scheme
        kinds = {"http": "qdrant", "https": "qdrant", "postgresql": "pgvector", "": "parquet"}
        if scheme not in kinds:
            raise BadRequest(
                f"say which kind of sink {scheme}:// is, as in lancedb:s3://bucket/photos; "
                f"built in are {', '.join(sorted({*STORES, 'npy'}))}"
            )
        kind = kinds[scheme]
    return _place(kind, where, options or {})


def held_by(store: Place, options: Mapping[str, str] | None = None) -> Place:
    """A sink as a source: what it holds is embedded anew."""
    given = {"store": store.kind, **store.options, **(options or {})}
    return Place(kind="collection", where=store.where, options=given)


def parted(sink: Place) -> tuple[str, str]:
    """The store in which a name can lead to a sink, and what the sink is called there, so far as
    its address says."""
    where = sink.where.rstrip("/")
    if option := NAMED.get(sink.kind):
        return where, sink.options.get(option, "")
    return os.path.split(os.path.normpath(where)) if sink.kind in FOLDERS else ("", "")


def _with(place: Place, options: Mapping[str, str] | None) -> Place:
    return place.model_copy(update={"options": {**place.options, **(options or {})}})


def _said(address: Any) -> tuple[str, str]:
    if not isinstance(address, str | Path):
        raise BadRequest(f"{address!r:.100} cannot be a place: pass a path or an address")
    found = _KIND.fullmatch(str(address))
    return (found[1], found[2]) if found else ("", str(address))


def _guessed_source(where: str) -> str:
    if "://" in where:
        return "fsspec"
    if ".tar" in Path(where).name:
        return "webdataset"
    return SOURCES.get(Path(where).suffix.lower(), "folder")


def _place(kind: str, where: str, options: Mapping[str, str]) -> Place:
    given = dict(options)
    if kind in NAMED and "#" in where:
        where, _, given[NAMED[kind]] = where.rpartition("#")
    if not where:
        raise BadRequest(f"a place of kind {kind} has an empty name; give an address or a folder")
    if kind == "qdrant" and _HOST.fullmatch(where):
        raise BadRequest(
            f"{where!r} is no address; a server is qdrant:http://{where} (or https), a folder of "
            f"that name qdrant:./{where}"
        )
    if "://" not in where:
        where = os.path.abspath(os.path.expanduser(where))
    elif _parts(where).password or SECRETS & {n for n, _ in parse_qsl(_parts(where).query)}:
        raise BadRequest(
            "an address with a password would be written down in Redis and beside the sink: "
            "give the workers PGPASSWORD, QDRANT_API_KEY or the like instead"
        )
    try:
        return Place(kind=kind, where=where, options=given)
    except ValidationError as error:
        raise BadRequest(f"{where!r} cannot be a place: {first_mistake(error)}") from None


def _parts(where: str) -> SplitResult:
    try:
        return urlsplit(where)
    except ValueError as error:
        raise BadRequest(f"{where!r} cannot be a place: {error}") from None
