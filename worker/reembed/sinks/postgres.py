"""A PostgreSQL table with a column of pgvector's type."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import psycopg
from pgvector.psycopg import register_vector
from psycopg import errors, sql

from api_client.wire.errors import ItemError, JobRefused, StoreDown, first_line
from api_client.wire.jobs import Place

from ..doors import Doors
from ..items import Shard, Space, Vector, storable
from ..plugins import options_of
from . import refuse_another_space, walked

CONNECT_S = 10
# Who builds an index keeps writers waiting for an hour, and a worker has four places for bulk.
WAIT_FOR_LOCKS = "SET LOCAL lock_timeout = '10s'"
# By another job that prepares the same table or database at the same instant.
OVERTAKEN = (errors.UniqueViolation, errors.DuplicateObject, errors.DuplicateTable)
# Too long for a column, or for an index: that of ids takes 2704 bytes, compressed. Or of characters
# that the database's encoding has none of.
UNHELD = (
    errors.StringDataRightTruncation,
    errors.ProgramLimitExceeded,
    errors.UntranslatableCharacter,
)
COLUMNS = ("id", "ref", "model", "fingerprint", "meta", "embedding")


class Compared(NamedTuple):
    """How ids are looked for: as what, of which type, and which texts can be such a one."""

    column: str
    type: str
    can_be: Callable[[str], object]


def _is_bigint(item_id: str) -> bool:
    return bool(re.fullmatch("-?[0-9]{1,19}", item_id)) and -(2**63) <= int(item_id) < 2**63


_AS_INTEGER = Compared("id", "bigint", _is_bigint)
COMPARED = {
    "text": Compared("id::text", "text", lambda item_id: True),
    "smallint": _AS_INTEGER,
    "integer": _AS_INTEGER,
    "bigint": _AS_INTEGER,
    "numeric": Compared("id", "numeric", re.compile(r"-?[0-9]{1,99}(\.[0-9]{1,99})?").fullmatch),
    "uuid": Compared(
        "id", "uuid", re.compile("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}").fullmatch
    ),
}

# A view that is made anew is nobody's to read: statements that give its rights again.
GRANTS = """
SELECT format('GRANT %%s ON %%s TO %%s%%s', privilege_type, oid::regclass,
    CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
    CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
FROM pg_class, aclexplode(relacl) WHERE oid = to_regclass(%s)
"""


class PgVector:
    """A row an item, upserted by its id. Options: `table`; names for searchers are views.

    In `a.b` the first is the schema where there is one, unless something is called so as a whole.

    `where` is `postgresql://user@host/database`; passwords come from PGPASSWORD or PGPASSFILE on
    the worker, since a job is written down in readable form.
    """

    def __init__(self, place: Place, space: Space | None, doors: Doors) -> None:
        self._name = options_of(place, table="clipyard")["table"]
        self._where = doors.reaching(place.where)
        self._space = space
        self._ids = ""  # their type
        with self._asking() as ask:
            self._table = _named(ask, self._name)
            self._prepare(ask)

    def _prepare(self, ask: Any) -> None:
        place = f"{self._where}, table {self._name}"
        found = ask.execute("SELECT to_regclass(%s)", [self._table.as_string(ask)]).fetchone()[0]
        if found is None:
            if self._space is None:
                raise JobRefused(f"there is no {place}")
            ask.execute(
                sql.SQL(
                    "CREATE TABLE {} (id text PRIMARY KEY, ref text NOT NULL, "
                    "model text NOT NULL, fingerprint text NOT NULL, meta jsonb NOT NULL, "
                    "embedding vector({}) NOT NULL)"
                ).format(self._table, sql.Literal(self._space.dimension))
            )
            made_for = json.dumps([self._space.model, self._space.fingerprint])
            note = sql.SQL("COMMENT ON TABLE {} IS {}")
            ask.execute(note.format(self._table, sql.Literal(made_for)))
        if self._space is None:
            return
        columns = self._columns(ask)
        if not columns.keys() >= set(COLUMNS):
            raise JobRefused(f"{place} is not one of a job's: name another table")
        row = ask.execute(
            sql.SQL("SELECT model, fingerprint FROM {} LIMIT 1").format(self._table)
        ).fetchone()
        told = dict(zip(("model", "fingerprint"), row or self._made_for(ask), strict=False))
        _, dimension = columns["embedding"]
        refuse_another_space(place, told, dimension=dimension, wanted=self._space)

    def _made_for(self, ask: Any) -> tuple[str, ...]:
        """Model and fingerprint, by the comment on a table that a job made."""
        found = "SELECT obj_description(%s::regclass, 'pg_class')"
        [comment] = ask.execute(found, [self._table.as_string(ask)]).fetchone()
        with suppress(TypeError, ValueError):  # there is none, or one of the owner's
            model, fingerprint = json.loads(comment)
            return model, fingerprint
        return ()

    def write(self, shard: Shard) -> Mapping[str, ItemError]:
        assert self._space is not None
        rows = [
            (
                item.id,
                storable(item.ref),
                self._space.model,
                self._space.fingerprint,
                json.dumps(item.meta, ensure_ascii=False),  # a SQL_ASCII database takes no escapes
                row,
            )
            for item, row in shard.embedded()
        ]
        upsert = sql.SQL(
            "INSERT INTO {} ({}) VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (id) DO UPDATE SET "
            "ref = excluded.ref, model = excluded.model, fingerprint = excluded.fingerprint, "
            "meta = excluded.meta, embedding = excluded.embedding"
        ).format(self._table, sql.SQL(", ").join(map(sql.Identifier, COLUMNS)))
        with self._asking() as ask:
            try:
                with ask.connection.transaction():
                    ask.executemany(upsert, rows)
            except UNHELD:
                return _one_by_one(ask, upsert, rows)
        return {}

    def read(self, ids: Sequence[str], *, chunk: int | None = None) -> Mapping[str, Vector]:
        # A table that no job made may have numbers or UUIDs for ids, arrays for vectors, and rows
        # without one. As texts they would be looked for in all rows, past the index.
        with self._asking() as ask:
            own = COMPARED.get(self._ids or self._type_of_ids(ask), COMPARED["text"])
            query = sql.SQL(
                "SELECT id::text, embedding::vector FROM {} "
                "WHERE {} = ANY(%s::text[]::{}[]) AND embedding IS NOT NULL"
            ).format(self._table, sql.SQL(own.column), sql.SQL(own.type))
            rows = _looked_up(ask, query, list(filter(own.can_be, ids)))
        return {item_id: row.to_numpy() for item_id, row in rows}

    def _type_of_ids(self, ask: Any) -> str:
        """Asked for once; empty where no column has that name."""
        self._ids, _ = self._columns(ask).get("id", ("", 0))
        return self._ids

    def _columns(self, ask: Any) -> dict[str, tuple[str, int]]:
        """Of each column its type and that type's modifier, which of vectors is the dimension."""
        found = ask.execute(
            "SELECT attname, atttypid::regtype::text, atttypmod FROM pg_attribute "
            "WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped",
            [self._table.as_string(ask)],
        )
        return {name: (kind, modifier) for name, kind, modifier in found}

    def rows(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        # A connection of its own: a walk lasts, and others write meanwhile. Vectors and pictures
        # are most of a table, and nothing of an item.
        with self._connected() as connection, connection.cursor("walk") as walk:
            names = [
                name
                for name, (kind, _) in self._columns(connection).items()
                if name != "embedding" and kind != "bytea"
            ]
            columns = sql.SQL(", ").join(map(sql.Identifier, names))
            walk.execute(sql.SQL("SELECT {} FROM {}").format(columns, self._table))
            for row in walk:
                fields = dict(zip(names, row, strict=True))
                yield walked(f"{self._where}, table {self._name}", fields)

    def target(self, alias: str) -> str | None:
        with self._asking() as ask:
            found = ask.execute(
                "SELECT relkind::text, obj_description(oid, 'pg_class'), oid = to_regclass(%s) "
                "FROM pg_class WHERE oid = to_regclass(%s)",
                [self._table.as_string(ask), _named(ask, alias).as_string(ask)],
            ).fetchone()
        if found is None:
            return None
        kind, comment, is_own = found
        if kind != "v":
            raise JobRefused(f"{alias!r} is no view, so it cannot be switched")
        if is_own:  # a view of itself: what it leads to would be lost
            raise JobRefused(f"{alias!r} is {self._name!r} by another name: name the table itself")
        table: str | None = comment
        return table

    def switch(self, alias: str) -> None:
        self.target(alias)
        with self._asking() as ask:  # one transaction: one step for searchers
            view = _named(ask, alias)
            grants = ask.execute(GRANTS, [view.as_string(ask)]).fetchall()
            ask.execute(sql.SQL("DROP VIEW IF EXISTS {}").format(view))
            ask.execute(sql.SQL("CREATE VIEW {} AS SELECT * FROM {}").format(view, self._table))
            note = sql.SQL("COMMENT ON VIEW {} IS {}")
            ask.execute(note.format(view, sql.Literal(self._name)))
            for (grant,) in grants:
                ask.execute(grant)

    @contextmanager
    def _asking(self) -> Iterator[Any]:
        """A cursor in a transaction, on a connection of its own: a chunk takes far longer."""
        with self._connected() as connection:
            if connection.execute("SELECT to_regtype('vector')").fetchone() == (None,):
                self._extend(connection)
            register_vector(connection)
            with connection.cursor() as cursor:
                yield cursor

    def _extend(self, connection: psycopg.Connection) -> None:
        found = (
            "SELECT extnamespace::regnamespace::text, quote_ident(current_user), "
            "current_setting('search_path'), has_schema_privilege(extnamespace, 'USAGE') "
            # Else somebody has made it just now, and will be found the next time.
            "FROM pg_extension WHERE extname = 'vector' AND to_regtype('vector') IS NULL"
        )
        if row := connection.execute(found).fetchone():
            schema, user, others, may = row
            mend = f"ALTER ROLE {user} SET search_path = {others}, {schema}"
            if not may:
                mend = f"GRANT USAGE ON SCHEMA {schema} TO {user}"
            raise JobRefused(
                f"PostgreSQL at {self._where}: pgvector is in the schema {schema}, where {user} "
                f"does not look: {mend}"
            )
        connection.execute("CREATE EXTENSION vector")  # for the owner to allow

    @contextmanager
    def _connected(self) -> Iterator[psycopg.Connection]:
        try:
            with psycopg.connect(
                self._where, connect_timeout=CONNECT_S, client_encoding="utf8"
            ) as connection:
                connection.execute(WAIT_FOR_LOCKS)
                yield connection
        except (
            errors.ReadOnlySqlTransaction,  # another server takes over just now
            *OVERTAKEN,
            psycopg.OperationalError,
            psycopg.InterfaceError,
        ) as error:
            raise StoreDown(f"PostgreSQL at {self._where}: {first_line(error)}") from error
        except psycopg.Error as error:  # below its first line are statement and row
            raise JobRefused(f"PostgreSQL at {self._where}: {first_line(error)}") from error


def _named(ask: Any, name: str) -> sql.Identifier:
    whole, (schema, _, table) = sql.Identifier(name), name.partition(".")
    # What is there keeps its place when a schema of that name comes to be.
    in_schema = (
        "SELECT to_regclass(%s) IS NULL AND EXISTS (SELECT FROM pg_namespace WHERE nspname = %s)"
    )
    if table and ask.execute(in_schema, [whole.as_string(ask), schema]).fetchone() == (True,):
        return sql.Identifier(schema, table)
    return whole


def _looked_up(ask: Any, query: sql.Composed, ids: Sequence[str]) -> list[Any]:
    """The rows of ids; one of characters that the database's encoding lacks has none."""
    try:
        with ask.connection.transaction():
            # As text, a check would take fifteen times as long.
            rows: list[Any] = ask.execute(query, [ids], binary=True).fetchall()
            return rows
    except errors.UntranslatableCharacter:
        half = len(ids) // 2
        if not half:
            return []
        return _looked_up(ask, query, ids[:half]) + _looked_up(ask, query, ids[half:])


def _one_by_one(ask: Any, upsert: sql.Composed, rows: Sequence[Any]) -> dict[str, ItemError]:
    """Store what can be stored; why the rest cannot be, by its id.

    Raises:
        StringDataRightTruncation, ProgramLimitExceeded: all of several are too long: that is the
            table's doing, not theirs.
    """
    refused, too_long = {}, []
    for row in rows:
        try:
            with ask.connection.transaction():
                ask.execute(upsert, row)
        except UNHELD as error:
            refused[row[0]] = ItemError(f"PostgreSQL cannot hold it: {error.diag.message_primary}")
            if not isinstance(error, errors.UntranslatableCharacter):
                too_long.append(error)
    if len(too_long) == len(rows) > 1:
        raise too_long[0]
    return refused
