"""A LanceDB table: a folder, or a store by its URL."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import lancedb
import pyarrow as pa
from lancedb.index import BTree

from api_client.wire.errors import JobRefused, StoreDown, first_line
from api_client.wire.jobs import Place

from ..doors import Doors
from ..items import Shard, Space, Vector, storable
from ..links import lead, leads_to, named
from ..plugins import options_of
from ..tables import is_of_bytes, rows_of
from . import refuse_another_space, walked
from .shards import matrix

log = logging.getLogger(__name__)

# Two upserts at once that insert the same id would both go through otherwise, and leave it twice.
KEY = {"lance-schema:unenforced-primary-key": "true"}
# Each write makes a file and a version that lists all files: uncompacted, a hundred thousand chunks
# would be ever slower, and their versions larger than their vectors.
COMPACTED_EVERY = 256  # chunks
# Of what LanceDB remembers of a table's versions, of which every chunk leaves 60 kB or more that
# nobody looks at again, and of its index, the id and 13 bytes a row: where it does not fit, each
# chunk that a check looks up reads most of it anew. Its own bounds are 1 and 6 GiB a connection. No
# two tables share it: it goes by paths, and of a table that was made anew two upserts at once would
# leave an id twice.
VERSIONS_BYTES = 2**25
INDEX_BYTES = 2**28
PLACE_IN_SOURCE = re.compile(r",? ?\S+\.rs:\d+:\d+")  # of LanceDB, in what it says of an error


class LanceDB:
    """A row an item, upserted by its id. Options: `table`. Columns of others keep what they hold.

    A folder's name for searchers is a symbolic link beside the table, `<alias>.lance`.
    """

    def __init__(self, place: Place, space: Space | None, doors: Doors) -> None:
        self._name = options_of(place, table="clipyard")["table"]
        self._is_folder = "://" not in place.where
        self._where = (
            str(doors.writing(place.where)) if self._is_folder else doors.reaching(place.where)
        )
        self._space, self._doors = space, doors
        self._lock = RLock()
        with self._asking():
            self._table = self._prepare()

    def _prepare(self) -> Any:
        # Every look at the table is one at its newest version: other workers write to it, too.
        newest = timedelta(0)
        session = lancedb.Session(
            index_cache_size_bytes=INDEX_BYTES, metadata_cache_size_bytes=VERSIONS_BYTES
        )
        store = lancedb.connect(self._where, read_consistency_interval=newest, session=session)
        if self._space is None:
            try:
                return store.open_table(self._name)
            except ValueError:
                raise JobRefused(f"there is no table {self._name} in {self._where}") from None
        self._schema = pa.schema(
            [
                pa.field("id", pa.string(), nullable=False, metadata=KEY),
                ("ref", pa.string()),
                ("vector", pa.list_(pa.float32(), self._space.dimension)),
                ("model", pa.string()),
                ("fingerprint", pa.string()),
                ("meta", pa.string()),
            ],
            metadata={"model": self._space.model, "fingerprint": self._space.fingerprint},
        )
        try:
            table = store.open_table(self._name)
        except ValueError:
            table = store.create_table(self._name, schema=self._schema, exist_ok=True)
        is_ours = set(table.schema.names) >= set(self._schema.names)
        if not (is_ours and pa.types.is_fixed_size_list(table.schema.field("vector").type)):
            raise JobRefused(f"the table {self._name} in {self._where} is not one of a job's")
        first = table.search().select(["model", "fingerprint"]).limit(1).to_list()
        made_for = {n.decode(): v.decode() for n, v in (table.schema.metadata or {}).items()}
        refuse_another_space(
            f"{self._where}, table {self._name}",
            first[0] if first else made_for,
            dimension=table.schema.field("vector").type.list_size,
            wanted=self._space,
        )
        return table

    def write(self, shard: Shard) -> None:
        assert self._space is not None
        pairs = shard.embedded()
        if not pairs:
            return
        columns = {
            "id": [item.id for item, _ in pairs],
            "ref": [storable(item.ref) for item, _ in pairs],
            "vector": [row for _, row in pairs],
            "model": [self._space.model] * len(pairs),
            "fingerprint": [self._space.fingerprint] * len(pairs),
            "meta": [json.dumps(item.meta) for item, _ in pairs],
        }
        with self._asking():
            rows = pa.table(columns, schema=self._schema)
            # By the index, two upserts at once that insert the same id would both go through.
            upsert = self._table.merge_insert("id").use_index(False)
            try:
                upsert.when_matched_update_all().when_not_matched_insert_all().execute(rows)
            except ValueError as error:  # of a column of others that wants a value, as a rule
                told = f"table {self._name} in {self._where}: {_told(error)}"
                raise JobRefused(f"LanceDB, {told}") from error
            if shard.chunk.number % COMPACTED_EVERY == 0:
                self._compact()

    def settle(self) -> None:
        """Where several workers write rows anew, each compaction meanwhile may be overtaken."""
        with self._asking():
            self._compact()

    def _compact(self) -> None:
        """The rows are there, so who is overtaken leaves it to the next one: a try that fails has
        written most of the table once more, which stays for seven days."""
        try:
            self._table.optimize()
        except (OSError, RuntimeError) as error:
            log.info("LanceDB at %s is not compacted now: %s", self._where, _told(error))

    def read(self, ids: Sequence[str], *, chunk: int | None = None) -> Mapping[str, Vector]:
        quoted = ", ".join("'" + item_id.replace("'", "''") + "'" for item_id in ids)
        with self._asking():
            schema = self._table.schema
            for column in ("id", "vector"):
                if column not in schema.names:
                    raise JobRefused(
                        f"the table {self._name} in {self._where} has no column {column!r}; it has "
                        f"{', '.join(schema.names)}"
                    )
            if not pa.types.is_fixed_size_list(kind := schema.field("vector").type):
                raise JobRefused(
                    f"the column 'vector' of the table {self._name} in {self._where} is of type "
                    f"{kind}, and vectors are lists of one length"
                )
            # One that no job made may have numbers for ids, and rows without a vector.
            name = "id" if pa.types.is_string(schema.field("id").type) else "CAST(id AS string)"
            found = (
                self._indexed.search()
                .where(f"{name} IN ({quoted})")
                .select(["id", "vector"])
                .to_arrow()
            )
        found = found.filter(found["vector"].is_valid())
        vectors = matrix(found["vector"])
        return dict(zip(map(str, found["id"].to_pylist()), vectors, strict=True))

    @cached_property
    def _indexed(self) -> Any:
        """The table with an index over the ids, so that looking them up is no walk each time."""
        if self._space is not None:
            self._table.create_index("id", config=BTree(), replace=True)
        return self._table

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        where = f"the table {self._name} in {self._where}"
        with self._asking():
            names = [
                field.name
                for field in self._table.schema
                if field.name != "vector" and not is_of_bytes(field.type)
            ]
            for batch in self._table.search().select(names).to_batches():
                try:
                    found = rows_of(batch)
                except ValueError as error:
                    raise JobRefused(f"{where} cannot be read: {first_line(error)}") from None
                for row in found:
                    yield walked(where, row)

    def target(self, alias: str) -> str | None:
        found = leads_to(self._link(alias))
        return Path(found).stem if found else None

    def switch(self, alias: str) -> None:
        lead(self._link(alias), Path(self._where) / f"{self._name}.lance")

    def _link(self, alias: str) -> Path:
        if not self._is_folder:
            raise JobRefused(f"LanceDB has no aliases, and {self._where} no symbolic links")
        return named(Path(self._where), alias, self._doors, ending=".lance")

    @contextmanager
    def _asking(self) -> Iterator[None]:
        with self._lock:
            try:
                yield
            except (OSError, RuntimeError) as error:  # a conflict with another worker, too
                raise StoreDown(f"LanceDB at {self._where}: {_told(error)}") from error


def _told(error: Exception) -> str:
    return PLACE_IN_SOURCE.sub("", first_line(error))
