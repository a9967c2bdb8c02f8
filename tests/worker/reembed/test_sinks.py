import errno
import hashlib
import json
import os
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from shutil import rmtree
from threading import Barrier, Thread

import lancedb
import numpy as np
import psycopg
import pyarrow as pa
import pytest
from pgvector.psycopg.vector import VectorLoader
from pyarrow import dataset, parquet
from qdrant_client import models

from api_client.wire.errors import ImageMissing, JobRefused, SpaceMismatch, StoreDown
from api_client.wire.jobs import Place
from worker.reembed.doors import Doors
from worker.reembed.files import tidy
from worker.reembed.items import Chunk, Item, Shard, Space
from worker.reembed.sinks import lance, open_sink, postgres, qdrant
from worker.reembed.sinks.qdrant import point_id
from worker.settings import WorkerSettings

SPACE = Space(model="fake/vision", fingerprint="f1", dimension=8, job="j1")
EVERY = ["parquet", "npy", "qdrant", "lancedb", "pgvector"]


@pytest.fixture
def places(tmp_path, request):
    """Where each kind of sink is, by kind and name."""

    def place(kind, name="photos"):
        match kind:
            case "parquet" | "npy":
                return Place(kind=kind, where=str(tmp_path / name))
            case "qdrant":
                return Place(kind=kind, where=str(tmp_path / "q"), options={"collection": name})
            case "lancedb":
                return Place(kind=kind, where=str(tmp_path / "lance"), options={"table": name})
            case _:
                url = request.getfixturevalue("postgres_url")
                return Place(kind=kind, where=url, options={"table": name})

    return place


@pytest.fixture
def doors(tmp_path):
    return Doors(WorkerSettings.read(sink_roots=[tmp_path], sink_addresses=["postgresql://"]))


@pytest.fixture(params=EVERY)
def kind(request):
    return request.param


@pytest.fixture
def make(places, doors):
    return lambda kind, space=SPACE, name="photos": open_sink(places(kind, name), space, doors)


def shard(number=0, *, lost=(1,), seed=0):
    items = [Item(id=f"{number}/{i}", ref=f"/p/{i}.jpg", meta={"n": i}) for i in range(3)]
    items.append(Item(id=f"{number}/3", ref="/p/3.jpg"))  # nothing is known of this one
    dice = np.random.default_rng([number, seed])
    rows = []
    for i in range(4):
        row = dice.standard_normal(8).astype(np.float32)
        row /= np.linalg.norm(row)
        rows.append(ImageMissing("there is no file") if i in lost else row)
    return Shard(Chunk(number, items), rows)


def wanted(written):
    return {item.id: row for item, row in written.embedded()}


def same(found, expected):
    assert set(found) == set(expected)
    for item_id, row in expected.items():
        np.testing.assert_allclose(found[item_id], row, atol=1e-3)


def test_what_was_written_is_read_by_its_ids(make, kind):
    sink = make(kind)
    for number in range(3):
        sink.write(shard(number))
    same(sink.read(["1/0", "1/1", "1/2", "nobody's"], chunk=1), wanted(shard(1, lost=(1, 3))))
    same(
        sink.read(["0/0", "2/0"]),
        wanted(shard(0, lost=(1, 2, 3))) | wanted(shard(2, lost=(1, 2, 3))),
    )


def test_names_and_metadata_that_are_no_text_are_escaped(make, kind):
    strange = "caf\udce9 \ud83d \0"
    item = Item(strange, f"/p/{strange}", meta={"caption": strange, "score": float("nan")}).kept()
    sink = make(kind)
    sink.write(Shard(Chunk(0, [item]), [np.eye(8, dtype=np.float32)[0]]))
    assert set(sink.read([item.id], chunk=0)) == {r"caf\udce9 \ud83d \x00"}
    json.loads(json.dumps(item.meta), parse_constant=pytest.fail)
    json.dumps(item.meta, ensure_ascii=False).encode()


def test_writing_a_chunk_again_replaces_it(make, kind):
    sink = make(kind)
    sink.write(shard(0, lost=(1,), seed=1))
    sink.write(shard(0, lost=()))
    same(sink.read([f"0/{i}" for i in range(4)], chunk=0), wanted(shard(0, lost=())))


def test_another_process_finds_what_is_there(make, kind):
    sink = make(kind)
    sink.write(shard(0))
    if kind == "qdrant":  # a process has one client for good
        sink._client.close()
        qdrant._made.cache_clear()
    same(make(kind).read(["0/0", "0/2", "0/3"], chunk=0), wanted(shard(0)))


@pytest.mark.parametrize(
    "other",
    [
        Space(model="fake/vision", fingerprint="f2", dimension=8, job="j1"),
        Space(model="fake/vision", fingerprint="f1", dimension=9, job="j1"),
    ],
    ids=["fingerprint", "dimension"],
)
def test_a_sink_of_another_space_is_refused_with_the_way_out(make, kind, other):
    make(kind).write(shard(0))
    with pytest.raises(SpaceMismatch, match="name another sink, or migrate"):
        make(kind, other)


def test_a_sink_without_vectors_is_of_the_space_that_it_was_made_for(make, kind):
    make(kind)
    with pytest.raises(SpaceMismatch, match=r"vectors of fake/vision \(8 long, f1\)"):
        make(kind, Space(model="fake/other", fingerprint="f2", dimension=8, job="j2"))


def test_a_sink_that_is_not_there_cannot_be_read(places, doors, kind):
    with pytest.raises(JobRefused):
        open_sink(places(kind, "nowhere"), None, doors)


@pytest.mark.parametrize("kind", ["parquet", "qdrant", "lancedb", "pgvector"])
def test_a_sink_can_be_walked_as_a_source(make, places, doors, kind):
    sink = make(kind)
    sink.write(shard(0, lost=()))
    found = dict(open_sink(places(kind), None, doors).rows())
    assert found["0/2"] == {"ref": "/p/2.jpg", "n": 2}
    assert len(found) == 4


@pytest.mark.parametrize("kind", ["parquet", "qdrant", "lancedb", "pgvector"])
def test_metadata_of_a_name_of_ours_leads_to_no_other_picture(make, kind):
    item = Item(id="7", ref="/p/7.jpg", meta={"ref": "/p/8.jpg"})
    sink = make(kind)
    sink.write(Shard(Chunk(0, [item]), [np.eye(8, dtype=np.float32)[0]]))
    assert list(sink.rows()) == [("7", {"ref": "/p/7.jpg"})]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": 7, "meta": "hello"}, {"meta": "hello"}),
        ({"id": 7, "meta": {"n": 1}}, {"n": 1}),
        ({"id": 7, "meta": None, "n": 1}, {"n": 1}),
    ],
)
def test_a_table_that_no_job_wrote_can_be_walked(make, tmp_path, row, expected):
    lancedb.connect(tmp_path / "lance").create_table("photos", [{"ref": "/p/7.jpg", **row}])
    assert list(make("lancedb", None).rows()) == [("7", {"ref": "/p/7.jpg", **expected})]


def test_pictures_that_a_table_holds_themselves_are_no_metadata(make, tmp_path, postgres_url):
    rows = [{"id": "7", "ref": "/p/7.jpg", "picture": b"x", "pages": [{"bytes": b"x"}]}]
    lancedb.connect(tmp_path / "lance").create_table("old", rows)
    with psycopg.connect(postgres_url) as owner:
        owner.execute("CREATE TABLE old (id text, ref text, picture bytea)")
        owner.execute("INSERT INTO old VALUES ('7', '/p/7.jpg', 'x')")
    for kind in ("lancedb", "pgvector"):
        old = make(kind, None, "old")
        assert list(old.rows()) == [("7", {"ref": "/p/7.jpg"})]


def test_a_walk_asks_a_table_for_neither_its_pictures_nor_its_vectors(make, postgres_url):
    """They are most of it: a hundred thousand rows of 512 numbers took 13 s of a core, not 0.8."""
    with psycopg.connect(postgres_url) as owner:
        owner.execute(
            "CREATE FUNCTION much() RETURNS bytea STABLE LANGUAGE plpgsql AS "
            "$$BEGIN RAISE 'it was read'; END$$"
        )
        columns = "'7' AS id, '/p/7.jpg' AS ref, much() AS picture, much() AS embedding"
        owner.execute(f"CREATE VIEW old AS SELECT {columns}".encode())
    old = make("pgvector", None, "old")
    assert list(old.rows()) == [("7", {"ref": "/p/7.jpg"})]


def test_vectors_come_from_postgresql_as_bytes_and_not_as_text(make, monkeypatch):
    """A check of a hundred thousand took ten times as long."""
    sink = make("pgvector")
    sink.write(shard(0))
    monkeypatch.setattr(VectorLoader, "load", pytest.fail)
    same(sink.read(["0/0", "0/2", "0/3"]), wanted(shard(0)))


def test_an_extension_where_the_job_does_not_look_is_named_with_the_way_to_it(doors, postgres_url):
    with psycopg.connect(postgres_url) as owner:
        owner.execute("CREATE SCHEMA extensions")
        owner.execute("CREATE EXTENSION vector SCHEMA extensions")
    with pytest.raises(JobRefused, match="pgvector is in the schema extensions") as refused:
        open_sink(Place(kind="pgvector", where=postgres_url), SPACE, doors)
    way = str(refused.value).partition("look: ")[2].replace("ROLE test", "DATABASE %s")
    with psycopg.connect(postgres_url) as owner:  # the role is of all tests
        owner.execute((way % owner.info.dbname).encode())
    open_sink(Place(kind="pgvector", where=postgres_url), SPACE, doors)


def test_a_schema_that_a_login_may_not_use_is_named_with_the_grant_it_wants(doors, postgres_url):
    place = Place(kind="pgvector", where=postgres_url.replace("//test", "//writer"))
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("CREATE ROLE writer LOGIN")
        try:
            owner.execute(
                "CREATE SCHEMA extensions; CREATE EXTENSION vector SCHEMA extensions;"
                "GRANT CREATE ON SCHEMA public TO writer;"
                "ALTER ROLE writer SET search_path = public, extensions"
            )
            with pytest.raises(JobRefused, match="GRANT USAGE ON SCHEMA extensions") as no:
                open_sink(place, SPACE, doors)
            owner.execute(str(no.value).partition("look: ")[2].encode())
            open_sink(place, SPACE, doors)
        finally:
            owner.execute("DROP OWNED BY writer; DROP ROLE writer")


def test_vectors_of_a_table_that_no_job_wrote_are_read_by_the_names_of_its_numbers(
    make, tmp_path, postgres_url
):
    rows = [{"id": 7, "vector": [1.0, 0.0]}, {"id": 8, "vector": None}]
    lancedb.connect(tmp_path / "lance").create_table("old", rows, on_bad_vectors="null")
    with psycopg.connect(postgres_url) as owner:
        owner.execute("CREATE EXTENSION vector")
        owner.execute("CREATE TABLE old (id bigint, embedding vector(2))")
        owner.execute("INSERT INTO old VALUES (7, '[1, 0]'), (8, NULL)")
    for kind in ("lancedb", "pgvector"):
        old = make(kind, None, "old")
        same(old.read(["7", "8", "a.jpg"]), {"7": np.array([1.0, 0.0])})


@pytest.mark.parametrize(
    ("kind", "ids"),
    [
        ("integer", ("7", "8")),
        ("bigint", ("7", "-9223372036854775808")),
        ("numeric", ("7", "8.50")),
        ("uuid", ("2d1a2bd2-3d5c-4c2a-9c53-0b6c5b4f2a10", "ffffffff-3d5c-4c2a-9c53-0b6c5b4f2a10")),
        ("text", ("7", "a.jpg")),
        ("varchar(9)", ("7", "a.jpg")),
    ],
)
def test_ids_of_any_type_are_found_by_their_index(make, postgres_url, kind, ids):
    with psycopg.connect(postgres_url) as owner:
        owner.execute("CREATE EXTENSION vector")
        owner.execute(f"CREATE TABLE old (id {kind} PRIMARY KEY, embedding vector(2))")
        for item_id in ids:
            owner.execute("INSERT INTO old VALUES (%s, '[1, 0]')", [item_id])
        # So that no plan reads all rows that has another way.
        owner.execute(f"ALTER DATABASE {owner.info.dbname} SET enable_seqscan = off".encode())
        owner.execute("CREATE VIEW scans AS SELECT seq_scan FROM pg_stat_user_tables")
    old = make("pgvector", None, "old")
    with psycopg.connect(postgres_url) as looking:
        before = looking.execute("SELECT seq_scan FROM scans").fetchone()
    none = ["", "b", "٣", "9223372036854775808", "1e999999", "NaN"]
    same(old.read([*ids, *none]), dict.fromkeys(ids, np.array([1.0, 0.0])))
    with psycopg.connect(postgres_url) as looking:
        assert looking.execute("SELECT seq_scan FROM scans").fetchone() == before


@pytest.mark.parametrize("kind", ["real[]", "text"])
def test_vectors_of_a_table_that_no_job_wrote_may_be_of_any_type_that_can_be_one(
    make, postgres_url, kind
):
    with psycopg.connect(postgres_url) as owner:
        owner.execute("CREATE EXTENSION vector")
        owner.execute(f"CREATE TABLE old (id text, embedding {kind})")
        owner.execute(f"INSERT INTO old VALUES ('7', '[1, 0]'::vector::{kind})")
    old = make("pgvector", None, "old")
    same(old.read(["7"]), {"7": np.array([1.0, 0.0])})


def test_a_table_whose_column_can_be_no_vectors_is_refused_whatever_is_asked(make, postgres_url):
    with psycopg.connect(postgres_url) as owner:
        owner.execute("CREATE TABLE old (id text, embedding bytea)")
    old = make("pgvector", None, "old")
    with pytest.raises(JobRefused, match="cannot cast type bytea to vector"):
        old.read([""])


@pytest.fixture
def named(tmp_path, doors):
    """A collection whose points have several vectors, by the one that is asked for."""
    size = {"size": 2, "distance": models.Distance.COSINE}
    many = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
    vectors = {
        "tokens": models.VectorParams(**size, multivector_config=many),
        "image": models.VectorParams(**size),
    }
    sparse = models.SparseVector(indices=[3], values=[1.0])

    def opened(vector="", *more):
        place = Place(
            kind="qdrant",
            where=str(tmp_path / "q"),
            options={"collection": "old", "vector": vector},
        )
        client, _ = qdrant._connected(place.where)
        client.create_collection(
            "old",
            vectors | {name: models.VectorParams(**size) for name in more},
            sparse_vectors_config={"words": models.SparseVectorParams()},
        )
        for id, held in enumerate([{"words": sparse, "image": [1.0, 0.0]}, {"words": sparse}, {}]):
            client.upsert("old", [models.PointStruct(id=id, vector=held)])
        return open_sink(place, None, doors)

    return opened


@pytest.mark.parametrize(("vector", "more"), [("", ()), ("image", ("title",))])
def test_of_several_vectors_of_a_point_the_one_that_is_meant_is_read(named, vector, more):
    same(named(vector, *more).read(["0", "1", "2"]), {"0": [1.0, 0.0]})


@pytest.mark.parametrize(
    ("vector", "more", "said"),
    [
        ("", ("title",), "has not just one, but image, title: .*option 'vector'"),
        ("imaeg", (), "has no 'imaeg', but image:"),
    ],
)
def test_which_vector_of_a_point_is_meant_is_not_guessed(named, vector, more, said):
    with pytest.raises(JobRefused, match=said):
        named(vector, *more).read([""])


def test_a_new_collection_has_no_vector_of_a_name(tmp_path, doors):
    place = Place(kind="qdrant", where=str(tmp_path / "q"), options={"vector": "image"})
    with pytest.raises(JobRefused, match="has no 'image', but one without a name"):
        open_sink(place, SPACE, doors)


def test_a_table_whose_lists_may_be_of_any_length_is_none_of_vectors(make, tmp_path):
    columns = ("id", "ref", "model", "fingerprint", "meta")
    row = {name: "" for name in columns} | {"vector": [1.0, 2.0]}
    schema = pa.schema([*((n, pa.string()) for n in columns), ("vector", pa.list_(pa.float32()))])
    lancedb.connect(tmp_path / "lance").create_table("old", [row], schema=schema)
    with pytest.raises(
        JobRefused, match=r"is of type list<.*>, and vectors are lists of one length"
    ):
        make("lancedb", None, "old").read([""])
    with pytest.raises(JobRefused, match="is not one of a job's"):
        make("lancedb", name="old")


def test_a_database_that_goes_away_while_it_is_walked_is_worth_another_try(make, postgres_url):
    sink = make("pgvector")
    for number in range(100):
        sink.write(shard(number, lost=()))
    walk = sink.rows()
    next(walk)
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(StoreDown):
        list(walk)


def test_an_item_that_a_table_has_no_room_for_is_told_of_and_its_neighbours_are_stored(
    make, postgres_url
):
    items = [Item(id=name, ref="") for name in ("a", "b" * 100, "".join(map(chr, range(1, 8000))))]
    rows = [np.eye(8, dtype=np.float32)[0]] * len(items)
    sink = make("pgvector")
    refused = sink.write(Shard(Chunk(0, items), rows))
    assert list(refused) == [items[2].id]
    assert "index row" in str(refused[items[2].id])
    assert set(sink.read([item.id for item in items])) == {items[0].id, items[1].id}
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("TRUNCATE photos; ALTER TABLE photos ALTER id TYPE varchar(50)")
    assert list(sink.write(Shard(Chunk(0, items), rows))) == [items[1].id, items[2].id]
    with pytest.raises(JobRefused, match="too long"):
        sink.write(Shard(Chunk(0, items[1:]), rows[1:]))


def test_metadata_are_kept_in_a_database_without_an_encoding(doors, postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        name = f"{owner.info.dbname}_ascii"
        owner.execute(f"CREATE DATABASE {name} ENCODING SQL_ASCII TEMPLATE template0".encode())
    sink = open_sink(Place(kind="pgvector", where=f"{postgres_url}_ascii"), SPACE, doors)
    row = np.eye(8, dtype=np.float32)[0]
    assert not sink.write(Shard(Chunk(0, [Item("a", "", meta={"title": "\u20ac"})]), [row]))
    assert [fields["title"] for _, fields in sink.rows()] == ["\u20ac"]


@pytest.fixture
def latin(doors, postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        name = f"{owner.info.dbname}_latin"
        owner.execute(f"CREATE DATABASE {name} ENCODING LATIN1 TEMPLATE template0".encode())
    return open_sink(Place(kind="pgvector", where=f"{postgres_url}_latin"), SPACE, doors)


def test_an_item_that_a_database_has_no_characters_for_is_told_of(latin):
    items = [Item("a", ""), Item("\u20ac", ""), Item("b", "", meta={"title": "\u20ac"})]
    refused = latin.write(Shard(Chunk(0, items), [np.eye(8, dtype=np.float32)[0]] * 3))
    assert list(refused or ()) == ["\u20ac", "b"]
    assert list(latin.read(["a", "b"])) == ["a"]


def test_so_is_every_item_of_a_chunk_and_none_of_them_has_a_row(latin):
    """As those of a folder whose name has such a character."""
    rows = [np.eye(8, dtype=np.float32)[0]] * 3
    latin.write(Shard(Chunk(0, [Item("a", ""), Item("b", "")]), rows[:2]))
    too_long = [Random(seed).randbytes(9000).hex() for seed in range(2)]  # however compressed
    ids = ["\u20ac/0", *too_long]
    assert list(latin.write(Shard(Chunk(1, [Item(i, "") for i in ids]), rows)) or ()) == ids
    assert set(latin.read(["a", *ids, "b"])) == {"a", "b"}
    assert latin.read(ids) == {}


def test_a_table_that_somebody_locks_is_worth_another_try(make, postgres_url, monkeypatch):
    """As who builds an index does: bulk work of every kind waited for that."""
    monkeypatch.setattr(postgres, "WAIT_FOR_LOCKS", "SET LOCAL lock_timeout = '10ms'")
    sink = make("pgvector")
    with psycopg.connect(postgres_url) as owner:
        owner.execute("CREATE INDEX ON photos USING hnsw (embedding vector_l2_ops)")
        with pytest.raises(StoreDown, match="lock timeout"):
            sink.write(shard(0))
        assert sink.read(["0/0"]) == {}
    sink.write(shard(0))
    same(sink.read(["0/0", "0/2", "0/3"]), wanted(shard(0)))


def test_a_database_that_another_server_takes_over_is_worth_another_try(make, postgres_url):
    sink = make("pgvector")
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        name = owner.info.dbname
        owner.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on".encode())
    with pytest.raises(StoreDown, match="read-only"):
        sink.write(shard(0))


@pytest.mark.parametrize("body", [b"cut short", b"PAR1 no last page\x04\0\0\0PAR1"])
def test_a_broken_file_of_a_folder_that_is_walked_is_named(make, tmp_path, body):
    sink = make("parquet")
    (tmp_path / "photos" / "part-j1-00000000.parquet").write_bytes(body)
    with pytest.raises(JobRefused, match=r"part-j1-00000000\.parquet is broken"):
        list(sink.rows())


def test_a_table_without_ids_is_refused_with_what_it_has(make, tmp_path):
    lancedb.connect(tmp_path / "lance").create_table("photos", [{"key": "a", "path": "/p/a.jpg"}])
    with pytest.raises(JobRefused, match="has no column 'id'; it has key, path"):
        list(make("lancedb", None).rows())


@pytest.mark.parametrize(
    ("time", "kind"),
    [(2**60, pa.timestamp("us")), (0, pa.timestamp("us", "Mars/Olympus")), (2**30, pa.date32())],
)
def test_a_time_of_a_table_that_python_cannot_hold_is_a_sentence(make, tmp_path, time, kind):
    row = pa.table({"id": ["7"], "ref": ["/p/7.jpg"], "taken": pa.array([time], kind)})
    lancedb.connect(tmp_path / "lance").create_table("old", row)
    with pytest.raises(JobRefused, match=r"the table old in .* cannot be read: \w+Error: "):
        list(make("lancedb", None, "old").rows())


def test_a_name_is_switched_and_switched_back(make, kind):
    old = make(kind, name="old")
    old.write(shard(0, seed=1))
    new = make(kind, Space("b", "f2", 8, "j2"), name="new")
    new.write(shard(0, seed=2))
    assert new.target("live") is None
    old.switch("live")
    led_to = old.target("live")
    new.switch("live")
    assert new.target("live") != led_to
    old.switch("live")
    assert new.target("live") == led_to


def test_a_table_may_lie_in_a_schema_or_have_a_dot_in_its_name(make, postgres_url):
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute('CREATE SCHEMA "my album"')
        for name in ("my album.photos", "photos.v2"):
            sink = make("pgvector", name=name)
            sink.write(shard(0))
            same(sink.read(["0/0", "0/2", "0/3"]), wanted(shard(0)))
            sink.switch(f"{name}.live")
            sink.switch(f"{name}.live")
            assert sink.target(f"{name}.live") == name
        found = owner.execute(
            "SELECT schemaname, relname FROM pg_stat_user_tables ORDER BY relname"
        ).fetchall()
    assert found == [("my album", "photos"), ("public", "photos.v2")]


def test_a_table_keeps_its_place_when_a_schema_of_its_name_comes_to_be(make, postgres_url):
    make("pgvector", name="photos.v2").write(shard(0))
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("CREATE SCHEMA photos")
    same(make("pgvector", name="photos.v2").read(["0/0", "0/2", "0/3"]), wanted(shard(0)))


def test_a_name_that_something_else_has_is_refused(make, kind):
    sink = make(kind, name="photos")
    make(kind, name="live")
    with pytest.raises(JobRefused, match=r"cannot (be )?switch"):
        sink.target("live")


def test_a_view_by_another_name_of_its_own_is_not_switched(make, places, doors):
    """It was led to the new table, and could not be led back."""
    make("pgvector").switch("live")
    old = open_sink(places("pgvector", "public.live"), None, doors)
    for ask in (old.target, old.switch):
        with pytest.raises(JobRefused, match=r"'live' is 'public\.live' by another name"):
            ask("live")


@pytest.mark.parametrize("kind", ["qdrant", "lancedb"])
def test_a_name_that_no_collection_can_have_is_refused(make, kind):
    with pytest.raises(JobRefused, match=r"cannot be at .* my/photos'"):
        make(kind, name="my/photos")


@pytest.mark.parametrize(
    ("kind", "where"),
    [("qdrant", "grpc://h:6334"), ("qdrant", "http://[h"), ("lancedb", "ftp://h")],
)
def test_an_address_that_no_collection_can_have_is_refused(kind, where):
    doors = Doors(WorkerSettings.read(sink_addresses=["*"]))
    with pytest.raises(JobRefused, match=f"{kind} cannot be at '{re.escape(where)}'"):
        open_sink(Place(kind=kind, where=where), SPACE, doors)


def test_who_may_search_a_view_may_do_so_when_it_was_switched(make, postgres_url):
    may = "SELECT has_table_privilege('the reader', 's.live', 'SELECT')"
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute('CREATE SCHEMA s; CREATE ROLE "the reader"')
        try:
            make("pgvector", name="old").switch("s.live")
            owner.execute('GRANT SELECT ON s.live TO "the reader"')
            make("pgvector", Space("b", "f2", 16, "j2"), name="new").switch("s.live")
            assert owner.execute(may).fetchone() == (True,)
        finally:
            owner.execute('DROP OWNED BY "the reader"; DROP ROLE "the reader"')


def test_threads_that_open_a_folder_of_qdrant_at_the_same_instant_share_it(tmp_path):
    together = Barrier(4)

    def opened(_):
        together.wait()
        return qdrant._connected(str(tmp_path / "q"))

    with ThreadPoolExecutor(4) as workers:
        assert len({id(client) for client, _ in workers.map(opened, range(4))}) == 1


def test_the_same_chunk_gives_the_same_bytes(make, tmp_path):
    digests = []
    for name in ("a", "b"):
        make("parquet", name=name).write(shard(0))
        [file] = (tmp_path / name).glob("part-*.parquet")
        digests.append(hashlib.sha256(file.read_bytes()).hexdigest())
    assert digests[0] == digests[1]


def test_parquet_shards_hold_a_row_an_item_and_its_error(make, tmp_path):
    make("parquet").write(shard(0))
    table = dataset.dataset(tmp_path / "photos", format="parquet").to_table()
    assert table["error"].to_pylist() == [None, "image_missing", None, None]
    assert table["vector"].to_pylist()[1] is None
    assert str(table.schema.field("vector").type) == "fixed_size_list<element: float>[8]"
    assert set(table["fingerprint"].to_pylist()) == {"f1"}


def test_npy_files_are_laid_out_as_the_index_builder_of_clip_retrieval_reads_them(make, tmp_path):
    sink = make("npy")
    for number in range(2):
        sink.write(shard(number))
    sink.write(shard(2, lost=range(4)))  # nothing to index, so no file
    vectors = sorted((tmp_path / "photos" / "img_emb").iterdir())
    metas = sorted((tmp_path / "photos" / "metadata").iterdir())
    assert [v.stem.rpartition("_")[2] for v in vectors] == [
        m.stem.rpartition("_")[2] for m in metas
    ]
    assert [np.load(v).shape for v in vectors] == [(3, 8), (3, 8)]
    assert np.load(vectors[0]).dtype == np.float16
    assert parquet.read_table(metas[0])["image_path"].to_pylist() == [
        "/p/0.jpg",
        "/p/2.jpg",
        "/p/3.jpg",
    ]


@pytest.mark.parametrize("kind", ["parquet", "npy"])
@pytest.mark.parametrize("at", [8, -200])  # in a page, and in the file's own tables
def test_a_file_whose_bytes_have_changed_is_as_one_that_is_not_there(make, kind, tmp_path, at):
    sink = make(kind)
    sink.write(shard(0))
    [file] = (tmp_path / "photos").rglob("*.parquet")
    broken = bytearray(file.read_bytes())
    broken[at : at + 40] = b"\xff" * 40
    file.write_bytes(broken)
    assert sink.read(["0/0"], chunk=0) == {}


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_a_file_whose_bytes_have_changed_costs_a_search_of_all_no_other(make, kind, tmp_path):
    sink, other = make(kind), shard(1)
    sink.write(shard(0))
    sink.write(other)
    broken = min((tmp_path / "photos").rglob("*0.parquet"))
    broken.write_bytes(broken.read_bytes()[:-9])
    same(sink.read([*wanted(shard(0)), *wanted(other)]), wanted(other))


@pytest.mark.parametrize(
    "columns",
    [
        {"x": [1]},
        {"id": ["0/0"], "vector": ["q"], "error": [None]},
        {"id": ["0/0"], "vector": [None], "error": [None]},
        {"id": [7], "vector": [[1.0]], "error": [None]},
    ],
)
def test_a_file_of_somebody_else_with_a_name_of_ours_holds_no_vectors(make, tmp_path, columns):
    sink = make("parquet")
    sink.write(shard(0))
    parquet.write_table(pa.table(columns), tmp_path / "photos" / "part-theirs.parquet")
    same(sink.read(["0/0", "0/2", "0/3"]), wanted(shard(0)))


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_what_people_put_beside_the_vectors_is_left_alone(make, kind, tmp_path):
    sink = make(kind)
    (tmp_path / "photos" / "index.faiss").write_bytes(b"an index of these vectors")
    if kind == "npy":
        (tmp_path / "photos" / "metadata").mkdir()
        for name in ("metadata_all.parquet", "captions.parquet"):
            (tmp_path / "photos" / "metadata" / name).write_bytes(b"of all files")
    assert sink.read(["0/0"]) == {}
    sink.write(shard(0))
    assert set(make(kind).read(["0/0"])) == {"0/0"}


@pytest.mark.parametrize(("held", "asked"), [("npy", "parquet"), ("parquet", "npy")])
@pytest.mark.parametrize("space", [None, SPACE, Space("fake/vision", "f1", 8, "j2")])
def test_a_folder_of_one_layout_is_none_of_the_other(make, held, asked, space):
    make(held).write(shard(0))
    with pytest.raises(JobRefused, match="holds vectors in another layout"):
        make(asked, space)


def test_two_jobs_do_not_share_a_folder_of_npy_files(make):
    make("npy")
    with pytest.raises(JobRefused, match="is job j1's"):
        make("npy", Space("fake/vision", "f1", 8, "j2"))


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_of_two_jobs_that_come_to_an_empty_folder_at_once_one_is_refused(make, kind, monkeypatch):
    iterdir = Path.iterdir

    def overtaken(folder):
        monkeypatch.setattr(Path, "iterdir", iterdir)
        make(kind)
        return iterdir(folder)

    monkeypatch.setattr(Path, "iterdir", overtaken)
    with pytest.raises(SpaceMismatch, match=r"vectors of fake/vision \(8 long, f1\)"):
        make(kind, Space(model="fake/other", fingerprint="f2", dimension=8, job="j2"))


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_a_file_system_without_hard_links_can_be_a_sink(make, kind, tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    make(kind)
    assert [file.name for file in (tmp_path / "photos").iterdir()] == ["_space.json"]


def test_a_folder_of_something_else_is_left_alone(make, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(JobRefused, match="files of somebody else"):
        make("parquet")


@pytest.mark.parametrize("kind", ["parquet", "npy"])
@pytest.mark.parametrize("where", ["photos", "photos/below"])
def test_a_file_is_no_sink(tmp_path, doors, kind, where):
    (tmp_path / "photos").write_text("x")
    with pytest.raises(JobRefused, match="is a file, or below one"):
        open_sink(Place(kind=kind, where=str(tmp_path / where)), SPACE, doors)


@pytest.mark.parametrize("kind", ["parquet", "npy"])
@pytest.mark.parametrize("body", ["", "[]", "{}"])
def test_a_folder_whose_space_cannot_be_read_is_refused_by_name(make, kind, tmp_path, body):
    make(kind)
    [file] = tmp_path.glob("*/_space.json")
    file.write_text(body)
    with pytest.raises(JobRefused, match=r"_space\.json says no vector space"):
        make(kind)


def test_an_option_that_no_sink_of_its_kind_has_is_refused_before_anything_is_made(
    doors, kind, tmp_path
):
    where = "postgresql://nobody@127.0.0.1:1/none" if kind == "pgvector" else str(tmp_path / "it")
    place = Place(kind=kind, where=where, options={"colection": "photos"})
    with pytest.raises(
        JobRefused, match=r"no option 'colection' of .*; (there are \w+|it has none)"
    ):
        open_sink(place, SPACE, doors)
    assert not list(tmp_path.iterdir())


def test_a_tower_that_there_is_not_is_refused(doors, tmp_path):
    place = Place(kind="npy", where=str(tmp_path / "it"), options={"tower": "txt"})
    with pytest.raises(JobRefused, match=r"no tower 'txt' .*; there are image, text"):
        open_sink(place, SPACE, doors)
    assert not list(tmp_path.iterdir())


def test_the_address_of_a_store_is_no_folder_to_write_into(doors):
    with pytest.raises(JobRefused, match="s3://b/v' is in no folder of the workers; mount"):
        doors.writing("s3://b/v")


def test_nothing_is_written_outside_the_sink_roots(doors):
    with pytest.raises(JobRefused, match="CLIPYARD_SINK_ROOTS"):
        open_sink(Place(kind="parquet", where="/elsewhere"), SPACE, doors)


def test_a_full_disk_is_worth_another_try_and_leaves_nothing_behind(make, tmp_path, monkeypatch):
    sink = make("parquet")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StoreDown, match="No space left"):
        sink.write(shard(0))
    assert [f.name for f in (tmp_path / "photos").iterdir()] == ["_space.json"]


def test_a_disk_that_is_full_when_a_chunk_is_written_again_costs_no_vectors(make, monkeypatch):
    sink = make("npy")
    sink.write(shard(0))
    before = sink.read(["0/0", "0/1"])

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(parquet, "write_table", full)
    with pytest.raises(StoreDown, match="No space left"):
        sink.write(shard(0, lost=()))
    assert set(sink.read(["0/0", "0/1"])) == set(before) == {"0/0"}


def test_who_is_killed_between_the_names_of_two_files_costs_no_vectors(make, monkeypatch):
    class Killed(BaseException):
        """Nothing is done after it."""

    sink = make("npy")
    sink.write(shard(0, lost=(1,)))
    replace, done = os.replace, []

    def killed_at_the_second(*names):
        if done:
            patch.setattr(Path, "unlink", lambda *_, **__: None)
            raise Killed
        done.append(replace(*names))

    retried = shard(0, lost=(2,), seed=1)  # as many rows, but others
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed_at_the_second)
        with pytest.raises(Killed):
            sink.write(retried)
    for _ in range(2):
        same(sink.read([f"0/{n}" for n in range(4)]), wanted(retried))
        sink.settle()  # as at the end of a job that found them all
        tidy(sink.folder)


def test_who_reads_an_npy_chunk_that_is_being_written_leaves_its_files_alone(make, monkeypatch):
    sink, replace, names, found = make("npy"), os.replace, [], []
    sink.write(shard(0, lost=(1,)))

    def read_between(*given):
        names.append(given)
        if len(names) == 2:
            found.append(sink.read([f"0/{n}" for n in range(4)]))
        return replace(*given)

    monkeypatch.setattr(os, "replace", read_between)
    sink.write(again := shard(0, lost=(2,), seed=1))
    same(found[0], wanted(again))
    same(sink.read([f"0/{n}" for n in range(4)]), wanted(again))


def test_a_database_that_is_away_is_worth_another_try(doors):
    place = Place(kind="pgvector", where="postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(StoreDown) as away:
        open_sink(place, SPACE, doors)
    assert len(str(away.value).splitlines()) == 1


def test_a_row_that_a_table_refuses_is_not_told_with_its_vector(make, postgres_url):
    sink = make("pgvector")
    with psycopg.connect(postgres_url, autocommit=True) as owner:
        owner.execute("ALTER TABLE photos ADD CONSTRAINT short CHECK (length(ref) < 3)")
    with pytest.raises(JobRefused, match=r'violates check constraint "short"$'):
        sink.write(shard(0))


def test_where_in_its_own_source_lancedb_met_an_error_is_not_told(make, tmp_path):
    sink = make("lancedb")
    rmtree(tmp_path / "lance")
    (tmp_path / "lance").write_bytes(b"")
    with pytest.raises(StoreDown) as down:
        sink.write(shard(0))
    assert ".rs:" not in str(down.value)


def test_a_full_disk_under_qdrant_s_local_mode_is_worth_another_try(make):
    sink = make("qdrant")
    store = sink._client._client.collections["photos"].storage.storage
    store.execute("PRAGMA max_page_count = 1")  # no more than it has now
    items = [Item(id=str(n), ref="") for n in range(100)]
    much = Shard(Chunk(0, items), [np.eye(8, dtype=np.float32)[0]] * len(items))
    with pytest.raises(StoreDown, match="full"):
        sink.write(much)
    store.execute("PRAGMA max_page_count = 1000000")
    sink.write(much)
    same(sink.read([item.id for item in items]), wanted(much))


def test_jobs_that_begin_in_an_empty_database_at_the_same_instant_get_there(make, postgres_url):
    start = Barrier(4)

    def prepared(_):
        start.wait()
        while True:
            with suppress(StoreDown):
                return make("pgvector")

    with ThreadPoolExecutor(4) as workers:
        assert len(list(workers.map(prepared, range(4)))) == 4


@pytest.mark.parametrize("item_id", ["7", "12345678-1234-5678-1234-56781234abcd"])
def test_ids_that_qdrant_takes_stay_as_they_are(item_id):
    assert str(point_id(item_id)) == item_id


def test_other_ids_get_the_same_point_each_time():
    assert point_id("a.jpg") == point_id("a.jpg") != point_id("b.jpg")


@pytest.mark.parametrize(
    "ids",
    [
        ["7", "007", "+7", "7 ", "\N{ARABIC-INDIC DIGIT SEVEN}"],
        ["12345678-1234-5678-1234-56781234abcd", "12345678-1234-5678-1234-56781234ABCD"],
        ["9" * 5000, "9" * 5001],
    ],
)
def test_no_two_ids_are_one_point_of_qdrant(ids):
    assert len({point_id(item_id) for item_id in ids}) == len(ids)


@pytest.fixture
def answering_qdrant():
    """Opens a sink on a server that has one answer for everything, and hears the keys."""

    def opened(code, headers=(), heard=None):
        class Answering(BaseHTTPRequestHandler):
            def do_GET(self):
                if heard is not None:
                    heard.add(self.headers["api-key"])
                self.send_response(code)
                for header in headers:
                    self.send_header(*header)
                self.end_headers()

            def log_message(self, *_):
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
            Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            try:
                doors = Doors(WorkerSettings.read(sink_addresses=[address]))
                open_sink(Place(kind="qdrant", where=address), SPACE, doors)
            finally:
                server.shutdown()

    return opened


@pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")
def test_qdrant_gets_the_key_of_the_environment(monkeypatch, answering_qdrant):
    monkeypatch.setenv("QDRANT_API_KEY", "open sesame")
    heard = set()
    with pytest.raises(JobRefused, match="401"):
        answering_qdrant(401, heard=heard)
    assert heard == {"open sesame"}


def test_a_qdrant_that_builds_its_index_has_time_to_answer():
    client, _ = qdrant._connected("http://127.0.0.1:1")
    assert client.init_options["timeout"] == qdrant.ANSWER_S


@pytest.mark.parametrize(
    ("code", "headers"), [(409, ()), (429, ()), (429, [("Retry-After", "3")]), (503, ())]
)
def test_a_qdrant_that_has_no_time_is_worth_another_try(answering_qdrant, code, headers):
    with pytest.raises(StoreDown) as down:
        answering_qdrant(code, headers)
    assert len(str(down.value).splitlines()) == 1


@pytest.mark.parametrize(("characters", "requests"), [(0, [256, 256, 88]), (200, [106] * 5 + [70])])
def test_a_chunk_goes_to_qdrant_in_requests_of_a_size_that_it_takes(
    make, monkeypatch, characters, requests
):
    sink, upserted = make("qdrant"), []
    upsert = sink._client.upsert
    monkeypatch.setattr(qdrant, "UPSERTED_BYTES", 69_000)

    def noted(name, points, *, wait):
        upserted.append(len(points))
        upsert(name, points, wait=wait)

    monkeypatch.setattr(sink._client, "upsert", noted)
    items = [Item(id=f"{n}.jpg", ref="", meta={"caption": "é" * characters}) for n in range(600)]
    sink.write(Shard(Chunk(0, items), [np.eye(8, dtype=np.float32)[0]] * len(items)))
    assert upserted == requests
    assert len(sink.read([item.id for item in items])) == 600


@pytest.mark.parametrize(
    ("allowed", "kind", "address"),
    [
        ("http://127.0.0.1:{port}", "qdrant", "http://127.0.0.1:{port}@localhost:{port}"),
        ("http://localhost", "qdrant", "http://localhost:{port}"),
        ("postgresql://a@b/", "pgvector", "postgresql://a@b/c?host=127.0.0.1&port={port}"),
    ],
)
def test_a_job_reaches_no_server_but_an_allowed_one(allowed, kind, address):
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        doors = Doors(WorkerSettings.read(sink_addresses=[allowed.format(port=port)]))
        with pytest.raises(JobRefused, match="CLIPYARD_SINK_ADDRESSES"):
            open_sink(Place(kind=kind, where=address.format(port=port)), SPACE, doors)
        with pytest.raises(BlockingIOError):  # nobody has come, with a password or without
            server.accept()


@pytest.mark.parametrize(
    ("allowed", "address"),
    [
        ("s3://bucket/ours/", "s3://bucket/ours/../theirs"),
        ("s3://bucket/ours/", "s3://bucket/ours/%2e%2e/theirs"),
        ("postgresql://", "postgresql://no:port/../../../tmp"),  # which LanceDB takes for a path
    ],
)
def test_a_job_leaves_no_allowed_address_by_a_step_up(allowed, address):
    doors = Doors(WorkerSettings.read(sink_addresses=[allowed]))
    with pytest.raises(JobRefused, match="leads out of its folder"):
        open_sink(Place(kind="lancedb", where=address), SPACE, doors)


@pytest.mark.parametrize("address", ["postgresql://a@b/c?sslmode=require", "http://b:6333/c"])
def test_a_job_reaches_what_is_allowed_as_it_stands(address):
    doors = Doors(WorkerSettings.read(sink_addresses=[address]))
    assert doors.reaching(address) == address


@pytest.mark.parametrize("kind", ["qdrant", "lancedb", "pgvector"])
def test_workers_that_opened_it_before_merge_and_see_what_others_wrote(make, kind):
    one, other = make(kind), make(kind)
    one.write(shard(0, lost=()))
    other.write(shard(0, lost=()))
    assert sum(1 for _ in other.rows()) == 4
    same(one.read(["0/0"]), wanted(shard(0, lost=(1, 2, 3))))
    other.write(shard(1, lost=()))
    assert set(one.read(["0/0", "1/0"])) == {"0/0", "1/0"}


@pytest.mark.parametrize("kind", ["lancedb", "pgvector"])
def test_workers_that_upsert_a_chunk_at_the_same_instant_leave_it_once(make, kind):
    upserted_by_four([make(kind) for _ in range(4)])


def test_a_table_that_was_given_the_key_keeps_one_row_an_item(make, tmp_path):
    """By the lines that operations.md has for it."""
    sink = make("lancedb")
    unmarked = [pa.field(field.name, field.type) for field in sink._table.schema]
    store = lancedb.connect(tmp_path / "lance")
    table = store.create_table("others", schema=pa.schema(unmarked))
    table.alter_columns({"path": "id", "nullable": False})
    table.set_unenforced_primary_key("id")
    upserted_by_four([make("lancedb", name="others") for _ in range(4)])


def upserted_by_four(sinks):
    start = Barrier(len(sinks))

    def upsert(sink, number):
        start.wait()
        sink.write(shard(number, lost=()))

    for number in range(2):
        with ThreadPoolExecutor(len(sinks)) as workers:
            list(workers.map(upsert, sinks, [number] * len(sinks)))
        held = sorted(item_id for item_id, _ in sinks[0].rows())
        assert held == [f"{n}/{i}" for n in range(number + 1) for i in range(4)]
        sinks[0].read(held)  # as a job's check: from then on LanceDB has an index


def test_columns_that_others_add_to_a_table_keep_what_they_hold(make, tmp_path):
    sink = make("lancedb")
    sink.write(shard(0, lost=()))
    table = lancedb.connect(tmp_path / "lance").open_table("photos")
    table.add_columns({"album": "cast(null as string)"})
    table.update(where="id = '0/1'", values={"album": "Rome"})
    for worker in (sink, make("lancedb")):
        for number in range(2):
            worker.write(shard(number, lost=(), seed=1))
    same(sink.read(["0/1"]), {"0/1": shard(0, lost=(), seed=1).rows[1]})
    held = dict(sink.rows())
    assert held["0/1"]["album"] == "Rome"
    assert held["1/1"]["album"] is None


def test_a_column_of_others_that_wants_a_value_is_named(make, tmp_path):
    sink = make("lancedb")
    sink.write(shard(0, lost=()))
    lancedb.connect(tmp_path / "lance").open_table("photos").add_columns({"album": "'Rome'"})
    with pytest.raises(JobRefused, match=r"photos in .*album"):
        sink.write(shard(1, lost=()))


def test_a_table_of_many_chunks_is_compacted_as_it_grows(make, monkeypatch):
    monkeypatch.setattr(lance, "COMPACTED_EVERY", 4)
    sink = make("lancedb")
    for number in range(9):
        sink.write(shard(number))
    assert sink._table.stats()["fragment_stats"]["num_fragments"] == 1
    assert sum(1 for _ in sink.rows()) == 27


@pytest.fixture
def sessions(monkeypatch):
    """What LanceDB remembers, of each table that was opened."""
    made, session = [], lancedb.Session
    monkeypatch.setattr(
        lancedb, "Session", lambda **sizes: made.append(session(**sizes)) or made[-1]
    )
    return made


def test_what_lancedb_remembers_is_each_tables_own_and_grows_with_no_chunk(
    make, sessions, monkeypatch
):
    """Shared, it let two upserts at once leave an id twice in a table that was made anew."""
    monkeypatch.setattr(lance, "VERSIONS_BYTES", 2**18)
    for name in ("one", "two"):
        sink = make("lancedb", name=name)
        for number in range(20):
            sink.write(shard(number))
    one, two = sessions
    assert one is not two
    assert 0 < one.size_bytes <= 2 * 2**18
    assert 0 < two.size_bytes <= 2 * 2**18


@pytest.mark.parametrize(
    ("versions", "index", "least", "most"),
    [(2**18, 2**18, 0, 2 * 2**18), (2**16, lance.INDEX_BYTES, 2**19, 2**22)],
)
def test_an_index_is_remembered_as_a_whole_up_to_a_bound_of_its_own(
    make, sessions, monkeypatch, versions, index, least, most
):
    monkeypatch.setattr(lance, "VERSIONS_BYTES", versions)
    monkeypatch.setattr(lance, "INDEX_BYTES", index)
    items = [Item(id=f"{n:050}", ref="") for n in range(2**14)]
    sink = make("lancedb")
    sink.write(Shard(Chunk(0, items), [np.eye(8, dtype=np.float32)[0]] * len(items)))
    for at in range(0, len(items), 2**12):
        assert len(sink.read([item.id for item in items[at : at + 2**12]])) == 2**12
    assert least < sessions[0].size_bytes <= most


def test_a_chunk_is_not_written_again_because_others_overtook_its_compaction(make, monkeypatch):
    sink, asked = make("lancedb"), []

    def overtaken(self):
        asked.append(self)
        raise RuntimeError("lance error: Retryable commit conflict for version 107: Please retry.")

    monkeypatch.setattr(type(sink._table), "optimize", overtaken)
    sink.write(shard(0))
    assert asked
    same(sink.read(["0/0", "0/2", "0/3"]), wanted(shard(0)))


@pytest.mark.parametrize("kind", ["parquet", "npy", "lancedb"])
@pytest.mark.parametrize("alias", ["../live", "/tmp/live", "..", "a/b"])
def test_a_name_leads_nowhere_but_beside_the_sink(make, kind, alias):
    sink = make(kind)
    with pytest.raises(JobRefused, match="cannot be the name of a link"):
        sink.switch(alias)


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_no_name_is_written_beside_a_sink_root(places, kind, tmp_path):
    place = places(kind)
    alone = Doors(WorkerSettings.read(sink_roots=[place.where]))
    with pytest.raises(JobRefused, match="CLIPYARD_SINK_ROOTS"):
        open_sink(place, SPACE, alone).switch("live")
    assert not (tmp_path / "live").is_symlink()
