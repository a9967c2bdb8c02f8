"""Where a job's vectors go. A sink is found by name: built in, or an entry point.

Read this, then `shards.py`, then write your own: a class with two methods, made from the `Place`
that the job names, the `Space` that it writes in and the `Doors` of the worker. Making one creates
what is not there, for that space from the start, and refuses what is of another, as it does options
that it does not know (see `options_of`); made without a space it is there to be read, whatever it
holds. One that can do more has methods more: see `Switchable`, `Settling` and
`Walkable`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol, runtime_checkable

from api_client.wire.errors import ItemError, JobRefused, SpaceMismatch
from api_client.wire.jobs import Place

from ..doors import Doors
from ..items import Shard, Space, Vector
from ..plugins import made

GROUP = "clipyard.sinks"

BUILT_IN = {
    "parquet": "worker.reembed.sinks.shards:Parquet",
    "npy": "worker.reembed.sinks.npy:ClipRetrieval",
    "qdrant": "worker.reembed.sinks.qdrant:Qdrant",
    "lancedb": "worker.reembed.sinks.lance:LanceDB",
    "pgvector": "worker.reembed.sinks.postgres:PgVector",
}


class Sink(Protocol):
    """Takes a chunk's vectors whole, and can say what it has. Safe to use from many threads."""

    def write(self, shard: Shard) -> Mapping[str, ItemError] | None:
        """Store a chunk. Storing it again leaves one copy, with the same bytes.

        Returns:
            Why an item cannot be stored, by its id, where that is the item's own fault.

        Raises:
            StoreDown: it is away or full; nothing is lost by another try.
        """
        ...

    def read(self, ids: Sequence[str], *, chunk: int | None = None) -> Mapping[str, Vector]:
        """The vectors it has, of those asked for.

        Args:
            chunk: where they were written, if that is known; else all of it is searched.
        """
        ...


@runtime_checkable
class Switchable(Protocol):
    """A sink that a name can lead to: an alias, a symbolic link, a view."""

    def target(self, alias: str) -> str | None:
        """What the name leads to now, in the store's own words; None if there is no such name.

        Raises:
            JobRefused: something that is no alias has that name.
        """
        ...

    def switch(self, alias: str) -> None:
        """Let the name lead here, in one step.

        Raises:
            JobRefused: as `target` does.
        """
        ...


@runtime_checkable
class Settling(Protocol):
    """A sink that is in a better state once it was left in peace."""

    def settle(self) -> None:
        """All chunks are there, and nothing is written just now by this job."""
        ...


@runtime_checkable
class Walkable(Protocol):
    """A sink whose rows can be a source."""

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Every row's id and its other fields but the vector; `ref` as it was written."""
        ...


def walked(where: str, row: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """A table's row as `Walkable.rows` gives it, also of a table that no job wrote: without bytes,
    as of the pictures themselves.

    Raises:
        JobRefused: it has no id.
    """
    fields = dict(row)
    if "id" not in fields:
        raise JobRefused(f"{where} has no column 'id'; it has {', '.join(sorted(fields))}")
    item_id, meta = str(fields.pop("id")), fields.pop("meta", None)
    with suppress(TypeError, ValueError):
        meta = json.loads(meta)
    rest = {
        name: value
        for name, value in fields.items()
        if name not in ("model", "fingerprint") and not isinstance(value, bytes)
    }
    more = meta if isinstance(meta, dict) else {"meta": meta} if meta else {}
    return item_id, more | rest  # `ref` is the column, whatever else an item's metadata calls so


def open_sink(place: Place, space: Space | None, doors: Doors) -> Sink:
    """The sink that a job names, ready for this space; without one a collection as it is, to be
    read or to be what a name leads to.

    Raises:
        JobRefused: there is no such kind or collection, none can have such a name or address, or
            the worker may not write there.
        SpaceMismatch: it holds vectors of another space.
        StoreDown: it does not answer.
    """
    sink: Sink = made(GROUP, BUILT_IN, place, space, doors)
    return sink


def refuse_another_space(
    what: str, told: Mapping[str, Any], *, dimension: int, wanted: Space
) -> None:
    """
    Args:
        told: model and fingerprint of what it holds, or else of what it was made for; of who
            writes first where nobody has said.

    Raises:
        SpaceMismatch: the two cannot share a store.
    """
    model = told.get("model", "an unknown model")
    fingerprint = told.get("fingerprint", wanted.fingerprint)
    if (fingerprint, dimension) != (wanted.fingerprint, wanted.dimension):
        raise SpaceMismatch(
            f"{what} holds vectors of {model} ({dimension} long, {fingerprint}), "
            f"and the job writes those of {wanted.model} ({wanted.dimension} long, "
            f"{wanted.fingerprint}): name another sink, or migrate with `clipyard reembed migrate`"
        )
