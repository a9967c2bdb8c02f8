import csv
import errno
import gzip
import io
import json
import os
import re
import subprocess
import sys
import tarfile

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from pyarrow import parquet

from api_client.wire.errors import (
    ImageForbidden,
    ImageMissing,
    ImageTooLarge,
    ImageUnreadable,
    JobRefused,
    StoreDown,
)
from api_client.wire.jobs import Place
from api_client.wire.messages import PathRef, UrlRef
from worker.reembed.doors import Doors
from worker.reembed.items import Chunk, Item, Shard, Space
from worker.reembed.sinks import open_sink
from worker.reembed.sources import collection, open_source
from worker.settings import WorkerSettings

STORES = ("memory", "kept", "flat", "picky", "away", "ftp")


@pytest.fixture(autouse=True)
def _no_objects():
    """What fsspec keeps in memory is one store for all tests of a process."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


@pytest.fixture
def doors(tmp_path):
    return Doors(
        WorkerSettings.read(
            image_roots=[tmp_path],
            sink_roots=[tmp_path],
            image_stores=[f"{name}://photos/" for name in STORES],
        )
    )


@pytest.fixture
def source(doors):
    return lambda kind, where, **options: open_source(
        Place(kind=kind, where=str(where), options=options), doors
    )


def jpeg(shade):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(file, "JPEG")
    return file.getvalue()


def tree(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def ids(source):
    return [item.id for item in source.walk()]


def test_a_folder_is_walked_in_order_and_ids_are_paths_below_it(source, tmp_path):
    tree(tmp_path, "b/2.JPG", "a.avif", "b/1.jpg", "b/c/3.webp", "notes.txt", ".hidden/4.jpg")
    found = list(source("folder", tmp_path).walk())
    assert [item.id for item in found] == ["a.avif", "b/1.jpg", "b/2.JPG", "b/c/3.webp"]
    assert source("folder", tmp_path).fetch(found[0]) == PathRef(path=f"{tmp_path}/a.avif")


def test_pictures_that_no_worker_opens_are_items_that_will_fail_and_not_left_out(source, tmp_path):
    tree(tmp_path, "IMG_1.HEIC", "a.jxl", "b.jfif", "c.pgm", "d.heic.txt", "e.mov")
    assert ids(source("folder", tmp_path)) == ["IMG_1.HEIC", "a.jxl", "b.jfif", "c.pgm"]


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        ("*.jpg", ["1.jpg"]),
        ("**/*.jpg", ["1.jpg", "a/2.jpg", "a/b/3.jpg"]),
        ("a/**", ["2.jpg", "b/3.jpg"]),
        ("**/[2-3].jpg", ["a/2.jpg", "a/b/3.jpg"]),
        ("**/[!2].jpg", ["1.jpg", "a/b/3.jpg"]),
        ("*/?.jpg", ["a/2.jpg"]),
        ("a/**/*.jpg", ["2.jpg", "b/3.jpg"]),
        ("**/**/a/**/*?.*p*g", ["a/2.jpg", "a/b/3.jpg"]),
        ("a[!b]2.jpg", []),
    ],
)
def test_a_glob_means_what_a_shell_means(source, tmp_path, glob, expected):
    tree(tmp_path, "1.jpg", "a/2.jpg", "a/b/3.jpg")
    assert ids(source("folder", tmp_path / glob)) == expected


@pytest.mark.timeout(9)
@pytest.mark.parametrize("glob", ["*?" * 30, "*a" * 30, "**/" * 30, "**/*a*/" * 9])
def test_a_glob_takes_no_time_whatever_there_is(source, tmp_path, glob):
    tree(tmp_path, "a" * 200 + ".jpg", "a/" * 30 + "a.jpg")
    assert ids(source("folder", tmp_path / f"{glob}.png")) == []


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
@pytest.mark.parametrize("glob", ["[0-", "[z-a].tar"])
def test_what_can_be_no_glob_is_refused(source, tmp_path, kind, glob):
    with pytest.raises(JobRefused, match="cannot be a glob"):
        source(kind, tmp_path / glob)


@pytest.mark.parametrize("name", ["Trip [2024]", "what?", "a*b"])
def test_a_folder_or_a_shard_may_be_called_as_a_glob_is_written(source, tmp_path, name):
    tree(tmp_path, f"{name}/1.jpg")
    assert ids(source("folder", tmp_path / name)) == ["1.jpg"]
    write_tar(tmp_path / f"{name}.tar", [("1.jpg", b"x")])
    assert ids(source("webdataset", tmp_path / f"{name}.tar")) == [f"{name}/1"]


def test_a_file_name_that_is_no_utf8_has_an_id_that_is(source, tmp_path):
    (tmp_path / b"caf\xe9.jpg".decode("utf-8", "surrogateescape")).write_bytes(b"x")
    [item] = source("folder", tmp_path).walk()
    assert item.kept().id == r"caf\xe9.jpg"


@pytest.mark.parametrize(
    ("kind", "where", "known"),
    [
        ("folder", "", "it has none"),
        ("list", "list.csv", "there are column, id"),
        ("texts", "texts.csv", "there are column, id"),
        ("webdataset", "1.tar", "it has none"),
        ("fsspec", "", "it has none"),
        ("collection", "q", "there are collection, vector"),
    ],
)
def test_an_option_that_no_source_of_its_kind_has_is_refused(source, tmp_path, kind, where, known):
    with pytest.raises(JobRefused, match=f"no option 'colum' of .*; {known}"):
        list(source(kind, tmp_path / where, colum="url").walk())


def test_a_missing_folder_is_refused(source, tmp_path):
    with pytest.raises(JobRefused, match="there is no folder"):
        list(source("folder", tmp_path / "nowhere").walk())


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, JobRefused), (errno.ESTALE, StoreDown), (errno.ENOENT, StoreDown)],
)
def test_a_folder_that_goes_away_while_it_is_walked_is_worth_another_try(
    source, tmp_path, monkeypatch, number, kind
):
    tree(tmp_path, "a.png", "b/1.jpg")
    scandir = os.scandir

    def refuse(folder):
        if folder.name == "b":
            raise OSError(number, os.strerror(number))
        return scandir(folder)

    walk = source("folder", tmp_path).walk()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(kind, match="b' cannot be read"):
        list(walk)


@pytest.mark.parametrize("where", ["/etc", "relative", "{}/../.."])
def test_nothing_outside_the_roots_is_read(source, tmp_path, where):
    with pytest.raises(JobRefused):
        source("folder", where.format(tmp_path))


def test_a_list_has_a_path_a_line(source, tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg\n/abs/b.jpg\n\nhttps://h/c.jpg\n")
    found = source("list", tmp_path / "list.txt")
    assert [item.ref for item in found.walk()] == [
        f"{tmp_path}/a.jpg",
        "/abs/b.jpg",
        "https://h/c.jpg",
    ]
    *_, last = found.walk()
    assert found.fetch(last) == UrlRef(url="https://h/c.jpg")


def write_csv(file, rows):
    with file.open("w", newline="") as out:
        table = csv.DictWriter(out, rows[0].keys())
        table.writeheader()
        table.writerows(rows)


def write_parquet(file, rows):
    parquet.write_table(pa.Table.from_pylist(rows), file)


def write_jsonl(file, rows):
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


TABLES = {".csv": write_csv, ".parquet": write_parquet, ".jsonl": write_jsonl}


@pytest.mark.parametrize("ending", TABLES)
def test_a_table_has_paths_ids_and_metadata(source, tmp_path, ending):
    rows = [{"file": f"{n}.jpg", "sku": f"s{n}", "shop": "north"} for n in range(3)]
    TABLES[ending](tmp_path / f"list{ending}", rows)
    found = list(source("list", tmp_path / f"list{ending}", column="file", id="sku").walk())
    assert [item.id for item in found] == ["s0", "s1", "s2"]
    assert found[1].ref == f"{tmp_path}/1.jpg"
    assert found[2].meta == {"shop": "north"}


@pytest.mark.parametrize("ending", TABLES)
def test_a_table_has_texts(source, tmp_path, ending):
    TABLES[ending](tmp_path / f"t{ending}", [{"text": "a dog", "n": "1"}, {"text": "", "n": "2"}])
    texts = source("texts", tmp_path / f"t{ending}")
    found = list(texts.walk())
    assert [(item.id, texts.fetch(item)) for item in found] == [
        (f"t{ending}:1", "a dog"),
        (f"t{ending}:2", ""),
    ]
    assert found[0].meta == {"n": "1"}


@pytest.mark.parametrize("ending", TABLES)
def test_a_text_of_a_table_may_be_long(source, tmp_path, ending):
    TABLES[ending](tmp_path / f"t{ending}", [{"text": "a dog " * 50_000}])
    [item] = source("texts", tmp_path / f"t{ending}").walk()
    assert item.text == "a dog " * 50_000


def test_marks_of_byte_order_and_blank_lines_are_no_items(source, tmp_path):
    (tmp_path / "list.txt").write_text("/a.jpg\n\n", "utf-8-sig")
    assert ids(source("list", tmp_path / "list.txt")) == ["/a.jpg"]
    (tmp_path / "t.jsonl").write_text('{"text": "a"}\n\n{"text": "b"}\n \n', "utf-8-sig")
    assert ids(source("texts", tmp_path / "t.jsonl")) == ["t.jsonl:1", "t.jsonl:2"]


@pytest.mark.parametrize("kind", ["list", "texts"])
def test_a_compressed_list_is_refused_and_not_taken_for_lines(source, tmp_path, kind):
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(b"path,text\n/a.jpg,a dog\n"))
    with pytest.raises(JobRefused, match="compressed, or no text"):
        ids(source(kind, tmp_path / "x.csv.gz"))


def test_a_missing_column_is_refused_with_those_that_are_there(source, tmp_path):
    write_csv(tmp_path / "list.csv", [{"file": "a", "sku": "b"}])
    with pytest.raises(JobRefused, match=r"'path'; .* are file, sku: .* `--from column="):
        list(source("list", tmp_path / "list.csv").walk())


def test_a_url_with_a_comma_is_not_cut_there(source, tmp_path):
    (tmp_path / "x.csv").write_text("path\nhttps://a/b.jpg?crop=20,30\n")
    with pytest.raises(JobRefused, match="line 2 has more columns than the first one; quote what"):
        ids(source("list", tmp_path / "x.csv"))


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("x.parquet", "no"),
        ("x.parquet", "PAR1 whose last page is not one\x04\0\0\0PAR1"),
        ("x.jsonl", "no"),
        ("x.jsonl", "1"),
    ],
)
def test_a_broken_table_is_refused(source, tmp_path, name, body):
    (tmp_path / name).write_text(body)
    with pytest.raises(JobRefused, match=f"{name} cannot be read as"):
        list(source("list", tmp_path / name).walk())


@pytest.mark.parametrize(
    ("broken", "told"),
    [('{"path": b}', "Expecting value, at character 10 of a line"), ("7", "a line")],
)
def test_how_far_a_broken_table_could_be_read_is_told(source, tmp_path, broken, told):
    lines = ['{"path": "a"}', "", '{"path": "b"}', broken]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    with pytest.raises(JobRefused, match=f"cannot be read as .jsonl beyond row 2: {told}"):
        list(source("list", tmp_path / "x.jsonl").walk())


@pytest.mark.parametrize(("time", "zone"), [(10**18, None), (0, "Mars/Olympus")])
def test_a_time_that_python_cannot_hold_is_a_sentence(source, tmp_path, time, zone):
    times = pa.array([time], pa.timestamp("us", tz=zone))
    parquet.write_table(pa.table({"path": ["a.jpg"], "taken": times}), tmp_path / "x.parquet")
    with pytest.raises(JobRefused, match=r"x\.parquet cannot be read as \.parquet: \w+Error: "):
        list(source("list", tmp_path / "x.parquet").walk())


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (pa.timestamp("ns"), "1970-01-01 00:00:01.000002"),
        (pa.timestamp("ns", tz="Europe/Berlin"), "1970-01-01 01:00:01.000002+01:00"),
        (pa.duration("ns"), "0:00:01.000002"),
        (pa.time64("ns"), "00:00:01.000002"),
    ],
)
def test_a_time_in_nanoseconds_is_told_to_the_microsecond(source, tmp_path, kind, told):
    """As pandas and DuckDB write them: no worker took such a list."""
    times = pa.array([1_000_002_003], kind)
    parquet.write_table(pa.table({"path": ["a.jpg"], "taken": times}), tmp_path / "x.parquet")
    [item] = source("list", tmp_path / "x.parquet").walk()
    assert str(item.meta["taken"]) == told


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (pa.list_(pa.timestamp("ns")), [1_000_002_003]),
        (pa.list_(pa.time64("ns"), 1), [1_000_002_003]),
        (pa.struct([("at", pa.large_list(pa.duration("ns")))]), {"at": [1_000_002_003]}),
        (pa.map_(pa.string(), pa.timestamp("ns")), [("at", 1_000_002_003)]),
    ],
)
def test_so_is_one_within_another_column(source, tmp_path, kind, given):
    times = pa.array([given, None], kind)
    table = pa.table({"path": ["a.jpg", "b.jpg"], "taken": times})
    parquet.write_table(table, tmp_path / "x.parquet")
    first, second = source("list", tmp_path / "x.parquet").walk()
    assert b":01.000002" in first.kept().line()
    assert second.meta == {"taken": None}


def test_metadata_that_are_nested_deeper_than_python_follows_are_a_sentence():
    deep = []
    for _ in range(sys.getrecursionlimit()):
        deep = [deep]
    with pytest.raises(JobRefused, match=r"the metadata of 'a\.jpg' are nested too deep"):
        Item(id="a.jpg", ref="a.jpg", meta={"deep": deep}).kept()


@pytest.mark.parametrize(("number", "kind"), [(errno.EACCES, JobRefused), (errno.EIO, StoreDown)])
def test_a_list_that_cannot_be_opened_is_named(source, tmp_path, monkeypatch, number, kind):
    (tmp_path / "list.csv").write_text("path\na.jpg\n")
    walk = source("list", tmp_path / "list.csv").walk()

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with pytest.raises(kind, match=r"list\.csv"):
        list(walk)


def write_tar(file, members):
    with tarfile.open(file, "w") as tar:
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))


def test_a_shard_and_its_member_may_have_any_colons_in_their_names(source, tmp_path):
    (tmp_path / "a::b").mkdir()
    for shard, name in (("x.tar", "c::d@1+2.jpg"), ("a::b/x.tar", "c.tar::d.jpg")):
        write_tar(tmp_path / shard, [(name, b"picture")])
        shards = source("webdataset", tmp_path / shard)
        assert [shards.fetch(item) for item in shards.walk()] == [b"picture"]


def test_a_run_of_more_shards_than_anybody_has_is_refused(source, tmp_path):
    with pytest.raises(JobRefused, match="name fewer"):
        source("webdataset", tmp_path / "s-{0..9999999999}.tar")


def test_shards_are_read_by_the_places_of_their_members(source, tmp_path):
    for shard in range(2):
        samples = [
            (f"{n:04d}.{ending}", body)
            for n in range(3)
            for ending, body in [
                ("jpg", jpeg(n)),
                ("txt", f"number {n}".encode()),
                ("json", json.dumps({"n": n}).encode()),
            ]
        ]
        write_tar(tmp_path / f"s-{shard:03d}.tar", samples)
    tars = source("webdataset", tmp_path / "s-{000..001}.tar")
    found = list(tars.walk())
    assert [item.id for item in found][2:4] == ["s-000/0002", "s-001/0000"]
    assert found[1].meta == {"caption": "number 1", "n": 1}
    assert tars.fetch(found[5]) == jpeg(2)
    assert ids(source("webdataset", tmp_path / "s-*.tar")) == [item.id for item in found]


def test_shards_of_one_name_in_several_folders_are_told_apart(source, tmp_path):
    for shard in ("train/0.tar", "val/0.tar", "val/1.tar"):
        (tmp_path / shard).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / shard, [("7.jpg", b"x")])
    assert ids(source("webdataset", tmp_path / "**/*.tar")) == ["train/0/7", "val/0/7", "1/7"]
    for folder in ("part0", "part1"):
        (tmp_path / folder).mkdir()
        write_tar(tmp_path / folder / "images.tar", [("7.jpg", b"x")])
    parts = source("webdataset", tmp_path / "part{0..1}/images.tar")
    assert ids(parts) == ["part0/images/7", "part1/images/7"]


def test_no_picture_of_a_shard_is_left_out_for_the_dots_in_its_name(source, tmp_path):
    """webdataset's keys end at the first dot; what people make by `tar` has names with several."""
    names = ["v1.0/a.b.jpg", "v1.0/a.b.txt", "v1.0/a.c.JPG", "s.left.png", "s.right.png"]
    usual = ["7.heic", "7.jpg", "7.mask.png", "7.txt", "._7.jpg", ".hidden.jpg", "8.heic", "9.avif"]
    write_tar(tmp_path / "x.tar", [(name, b"it") for name in names + usual])
    found = {item.id: item.meta for item in source("webdataset", tmp_path / "x.tar").walk()}
    assert found == {
        "x/v1.0/a.b": {"caption": "it"},
        "x/v1.0/a.c": {},
        "x/s.left": {},
        "x/s.right": {},
        "x/7": {"caption": "it"},
        "x/8": {},
        "x/9": {},
    }


def test_a_row_without_a_text_is_an_item_and_one_without_a_path_ends_the_job(source, tmp_path):
    file = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"text": ["a", None], "path": ["a.jpg", None]}), file)
    assert [item.text for item in source("texts", file).walk()] == ["a", ""]
    with pytest.raises(JobRefused, match="row 2 has nothing in its column 'path'"):
        ids(source("list", file))


@pytest.fixture
def captioned(doors, tmp_path):
    """A folder of vectors whose captions are none and 0."""
    place = Place(kind="parquet", where=str(tmp_path / "old"))
    row = np.array([1, 0], np.float32)
    items = [Item(id=f"{n}", ref="/a.jpg", meta={"caption": n}) for n in (None, 0)]
    open_sink(place, Space("m", "f", 2, "job"), doors).write(Shard(Chunk(0, items), [row, row]))
    return place.where


def test_a_field_of_a_collection_that_is_empty_is_no_word_none(source, captioned):
    held = source("collection", captioned, store="parquet", text="caption")
    assert [item.text for item in held.walk()] == ["", "0"]


@pytest.mark.parametrize("option", ["ref", "text"])
def test_a_field_that_a_collection_lacks_is_refused_with_those_it_has(source, captioned, option):
    held = source("collection", captioned, store="parquet", **{option: "title"})
    with pytest.raises(JobRefused, match=f"'title'; it has caption, ref: .* `--from {option}="):
        list(held.walk())


def test_texts_that_a_collection_does_not_hold_are_not_taken_for_pictures(
    source, doors, tmp_path, monkeypatch
):
    """Their job paused after five minutes, with a file that is outside of the image roots."""
    (tmp_path / "t.jsonl").write_text('{"text": "a cat"}\n')
    items = list(source("texts", tmp_path / "t.jsonl").walk())
    place = Place(kind="parquet", where=str(tmp_path / "old"))
    held, row = source("collection", place.where, store="parquet"), np.array([1, 0], np.float32)
    sink = open_sink(place, Space("m", "f", 2, "job"), doors)
    sink.write(Shard(Chunk(0, items), [row]))
    told = r"a text of 't\.jsonl', and .*`--source`"
    with pytest.raises(JobRefused, match=told):
        list(held.walk())
    # Beside a picture a text is one recorded failure, whichever comes first.
    sink.write(Shard(Chunk(0, [*items, Item("a", "/a.jpg")]), [row, row]))
    text, picture = held.walk()
    assert held.fetch(picture) == PathRef(path="/a.jpg")
    with pytest.raises(ImageUnreadable, match=told):
        held.fetch(text)
    monkeypatch.setattr(collection, "TOLD_BY", 1)
    with pytest.raises(JobRefused, match=told):
        next(held.walk())


def test_a_collection_of_a_kind_that_nobody_knows_is_refused(source, captioned):
    with pytest.raises(JobRefused, match="no sinks of kind 'Parquet'; there are lancedb, npy"):
        list(source("collection", captioned, store="Parquet").walk())


@pytest.mark.parametrize("value", [b"picture", {"bytes": b"picture", "path": "a.jpg"}, ["a", "b"]])
def test_a_column_of_pictures_themselves_or_of_lists_is_refused(source, tmp_path, value):
    """As data sets have them: their Python form would be a path that is missing, or a text."""
    file = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"image": [value]}), file)
    for kind in ("list", "texts"):
        with pytest.raises(JobRefused, match=r"row 1 has .* in its column 'image'"):
            ids(source(kind, file, column="image"))


def test_pictures_beside_their_addresses_are_no_metadata_of_theirs(source, tmp_path):
    """As img2dataset writes them: a job's manifest would hold every picture once more."""
    row = {"path": "a.jpg", "jpg": b"picture", "n": 1, "more": {"bytes": b"it"}, "tags": ["a", "b"]}
    parquet.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    [item] = source("list", tmp_path / "t.parquet").walk()
    assert item.meta == {"n": 1, "tags": ["a", "b"]}


@pytest.mark.parametrize(
    "column",
    [
        pa.array([b"hash"], pa.binary(4)),
        pa.array([b"hash"]).dictionary_encode(),
        pa.array([[b"hash"]], pa.list_(pa.binary(4))),
    ],
)
def test_columns_of_bytes_of_any_kind_are_no_metadata(source, tmp_path, column):
    parquet.write_table(pa.table({"path": ["a.jpg"], "of": column}), tmp_path / "t.parquet")
    [item] = source("list", tmp_path / "t.parquet").walk()
    assert not item.meta


def test_a_text_may_be_the_number_0(source, tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": 0}\n{"text": null}\n')
    assert [item.text for item in source("texts", tmp_path / "t.jsonl").walk()] == ["0", ""]


@pytest.mark.parametrize("end", [1536 + 100, None], ids=["cut", "broken"])
def test_a_shard_whose_headers_end_early_is_refused(source, tmp_path, end):
    write_tar(tmp_path / "x.tar", [(f"{n}.png", b"x" * 600) for n in range(3)])
    body = bytearray((tmp_path / "x.tar").read_bytes())
    body[1536:1540] = b"\xff" * 4  # the second picture's name
    (tmp_path / "x.tar").write_bytes(body[:end])
    with pytest.raises(JobRefused, match="the header at byte 1536 is broken"):
        ids(source("webdataset", tmp_path / "x.tar"))


def test_a_shard_that_ends_between_two_members_is_refused(source, tmp_path):
    write_tar(tmp_path / "x.tar", [(f"{n}.png", b"x" * 600) for n in range(3)])
    os.truncate(tmp_path / "x.tar", 2 * 1536)
    with pytest.raises(JobRefused, match="the zeros at its end are missing"):
        ids(source("webdataset", tmp_path / "x.tar"))
    os.truncate(tmp_path / "x.tar", 2 * 1536 + 1024)
    assert ids(source("webdataset", tmp_path / "x.tar")) == ["x/0", "x/1"]


def test_shards_that_are_cut_are_told_together(source, tmp_path):
    for n in range(8):
        write_tar(tmp_path / f"{n}.tar", [("a.png", b"x" * 600)])
    for n, size in {1: 1536, 2: 1536, 4: 1000, 5: 1536, 7: 0}.items():
        os.truncate(tmp_path / f"{n}.tar", size)
    with pytest.raises(JobRefused) as refused:
        ids(source("webdataset", tmp_path / "{0..8}.tar"))
    assert re.findall(r"(\d)\.tar", str(refused.value)) == ["1", "2", "4", "5"]
    assert str(refused.value).endswith(" and 1 more, too")  # 8.tar is not there
    os.truncate(tmp_path / "1.tar", 0)
    with pytest.raises(JobRefused, match=r"1\.tar is no whole.*; the zeros.*2\.tar, .*4\.tar, too"):
        ids(source("webdataset", tmp_path / "{0..4}.tar"))


def test_shards_that_cat_has_joined_are_refused_and_those_that_tar_has_are_read(source, tmp_path):
    for name in "abc":
        write_tar(tmp_path / f"{name}.tar", [(f"{name}.png", b"x" * 600)])
    body = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(body + (tmp_path / "b.tar").read_bytes())
    with pytest.raises(JobRefused, match=r"ends at byte 1536, and more follows.*--concatenate"):
        ids(source("webdataset", tmp_path / "x.tar"))
    for more in ("b.tar", "c.tar"):  # of both in one call GNU tar leaves such a file, too
        subprocess.run(["tar", "--concatenate", "-f", "a.tar", more], cwd=tmp_path, check=True)
    assert ids(source("webdataset", tmp_path / "a.tar")) == ["a/a", "a/b", "a/c"]


def test_what_is_left_over_in_the_last_record_of_a_shard_is_no_other_archive(source, tmp_path):
    write_tar(tmp_path / "a.tar", [("a.png", b"x" * 600)])
    os.truncate(tmp_path / "a.tar", 2560)
    with (tmp_path / "a.tar").open("ab") as shard:
        shard.write(b"left over in a buffer")
    assert ids(source("webdataset", tmp_path / "a.tar")) == ["a/a"]


def test_a_tar_that_is_none_and_one_that_is_missing_are_refused(source, tmp_path):
    (tmp_path / "x.tar").write_text("no tar")
    for name in ("x.tar", "y.tar", "none-*.tar"):
        with pytest.raises(JobRefused):
            list(source("webdataset", tmp_path / name).walk())


def test_a_folder_that_is_called_a_shard_is_refused_with_what_was_meant(source, tmp_path):
    tree(tmp_path, "x.target/1.jpg")
    with pytest.raises(JobRefused, match=r"a folder; name its shards, as '.*/x\.target/\*\.tar'"):
        list(source("webdataset", tmp_path / "x.target").walk())


@pytest.mark.parametrize("fields", ["[" * 50_000, "5", "{"])
def test_fields_that_are_no_object_are_refused_by_their_name(source, tmp_path, fields):
    write_tar(tmp_path / "s.tar", [("a.jpg", b"x"), ("a.json", fields.encode())])
    with pytest.raises(JobRefused, match=r"a\.json is no JSON object"):
        ids(source("webdataset", tmp_path / "s.tar"))


def test_a_shard_with_an_extended_header_that_no_reader_takes_is_refused(source, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as shard:
        member = tarfile.TarInfo("a.jpg")
        member.pax_headers = {"GNU.sparse.map": "a,b"}
        shard.addfile(member)
    with pytest.raises(JobRefused, match="no whole, uncompressed tar file"):
        ids(source("webdataset", tmp_path / "s.tar"))


def test_what_lies_outside_the_roots_is_neither_walked_nor_told(source, tmp_path):
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    outside.mkdir()
    write_tar(outside / "secret.tar", [])
    with pytest.raises(JobRefused, match="CLIPYARD_IMAGE_ROOTS") as refusal:
        source("webdataset", outside / "*.tar")
    assert "secret" not in str(refusal.value)


class Kept(MemoryFileSystem):
    """Keeps its listings, as drivers of object stores do."""

    protocol = "kept"

    def ls(self, path, detail=True, **_):
        path = self._strip_protocol(path)
        if (found := self._ls_from_cache(path)) is None:
            found = self.dircache[path] = super().ls(path, detail=True)
        return found

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("kept://"))


def test_what_was_added_to_a_store_since_the_last_job_is_found(source):
    fsspec.register_implementation("kept", Kept, clobber=True)
    fsspec.filesystem("memory").pipe_file("/photos/1.jpg", b"x")
    assert ids(source("fsspec", "kept://photos")) == ["1.jpg"]
    fsspec.filesystem("memory").pipe_file("/photos/2.jpg", b"x")
    assert ids(source("fsspec", "kept://photos")) == ["1.jpg", "2.jpg"]


def test_anything_that_fsspec_opens_is_a_source(source):
    store = fsspec.filesystem("memory")
    for name in ("a/1.jpg", "a/b/2.jpg", "a/notes.txt"):
        store.pipe(f"/photos/{name}", name.encode())
    remote = source("fsspec", "memory://photos")
    assert ids(remote) == ["a/1.jpg", "a/b/2.jpg"]
    *_, last = remote.walk()
    assert remote.fetch(last) == UrlRef(url="memory://photos/a/b/2.jpg")
    assert ids(source("fsspec", "memory://photos/**/2.*")) == ["a/b/2.jpg"]


KEYS = [f"photos/{key}" for key in ("/1.jpg", "a//2.jpg", "a//b/3.jpg", "a/4.jpg", "a/", "5.jpg")]


class Flat(AbstractFileSystem):
    """Lists keys as s3fs does: the folder without a name in `a//2.jpg` is called `a/`, and so is
    the file of a key `a/`."""

    protocol = "flat"

    def info(self, path, **_):
        return {"name": path, "type": "directory"}

    def ls(self, path, detail=True, **_):
        inside = [key[len(path) + 1 :] for key in self.find(path)]
        folders = {name.partition("/")[0] for name in inside if "/" in name}
        files = [name for name in inside if "/" not in name]
        return [
            {"name": f"{path}/{name}", "type": kind}
            for kind, names in (("directory", folders), ("file", files))
            for name in names
        ]

    def find(self, path, **_):
        return [key for key in KEYS if key.startswith(f"{path}/")]


@pytest.mark.parametrize("glob", ["", "/**/*.jpg"])
def test_folders_of_a_store_may_have_no_name(source, glob):
    fsspec.register_implementation("flat", Flat, clobber=True)
    flat = source("fsspec", f"flat://photos{glob}")
    assert sorted(ids(flat)) == ["/1.jpg", "5.jpg", "a//2.jpg", "a//b/3.jpg", "a/4.jpg"]
    assert {item.ref for item in flat.walk()} == {f"flat://photos/{id}" for id in ids(flat)}


class NoCredentialsError(Exception):
    """As clients of stores have their own, which know no other base."""


@pytest.mark.parametrize("asked", ["info", "ls"])
@pytest.mark.parametrize("error", [NoCredentialsError("no key"), PermissionError("expired")])
def test_a_store_that_cannot_be_listed_is_worth_another_try_and_says_why(
    source, monkeypatch, asked, error
):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(MemoryFileSystem, asked, refuse)
    fsspec.filesystem("memory").pipe("/photos/1.jpg", b"x")
    told = f"memory:///photos: {type(error).__name__}: {error}"
    with pytest.raises(StoreDown, match=told):
        ids(source("fsspec", "memory://photos"))


@pytest.mark.parametrize("name", ["list.parquet", "shard.tar", "1.jpg"])
def test_one_object_of_a_store_is_told_apart_from_an_empty_folder(source, name):
    fsspec.filesystem("memory").pipe(f"/photos/{name}", b"x")
    with pytest.raises(JobRefused, match=f"photos/{name} is one object, not a folder"):
        ids(source("fsspec", f"memory://photos/{name}"))


class Picky(AbstractFileSystem):
    protocol = "picky"

    def __init__(self, account, **_):
        super().__init__()


class Away(AbstractFileSystem):
    """Connects as soon as it is made."""

    protocol = "away"

    def __init__(self, **_):
        raise NoCredentialsError("no key\nwas found in ten places")


@pytest.mark.parametrize(
    ("where", "refused", "sentence"),
    [
        ("picky://photos", JobRefused, r"missing .* 'account'\); set FSSPEC_PICKY_<ARGUMENT>"),
        ("away://photos", StoreDown, "away:// cannot be .* moment: NoCredentialsError: no key$"),
        ("ftp://photos/2024", JobRefused, "names a host.* mount it and name the folder$"),
    ],
)
def test_a_store_that_cannot_be_opened_is_one_sentence(source, where, refused, sentence):
    for driver in (Picky, Away):
        fsspec.register_implementation(driver.protocol, driver, clobber=True)
    with pytest.raises(refused, match=sentence):
        source("fsspec", where)


@pytest.mark.parametrize("where", ["photos/../private", "photos/%2e%2e/private"])
def test_no_folder_beside_an_allowed_one_is_listed(source, where):
    fsspec.filesystem("memory").pipe(f"/{where}/1.jpg", b"x")
    with pytest.raises(JobRefused, match="leads out of its folder"):
        ids(source("fsspec", f"memory://{where}"))


def listed_item(source, tmp_path, line):
    """The source of a list of one line, and its item."""
    (tmp_path / "list.txt").write_bytes(os.fsencode(f"{line}\n"))
    listed = source("list", tmp_path / "list.txt")
    [item] = listed.walk()
    return listed, item


def test_stores_that_the_settings_do_not_name_are_not_reached(source, tmp_path):
    with pytest.raises(JobRefused, match="CLIPYARD_IMAGE_STORES: memory"):
        source("fsspec", "s3://photos")
    listed, item = listed_item(source, tmp_path, "/etc/x.tar::a@0+5")
    with pytest.raises(ImageForbidden):
        listed.fetch(item)


def test_no_more_of_an_archive_is_read_than_a_picture_may_have(source, tmp_path):
    with (tmp_path / "x.tar").open("wb") as file:
        file.truncate(2**40)
    listed, item = listed_item(source, tmp_path, f"x.tar::a.jpg@0+{2**40}")
    with pytest.raises(ImageTooLarge):
        listed.fetch(item)


def test_an_archive_that_has_gone_costs_its_members(source, tmp_path):
    listed, item = listed_item(source, tmp_path, "x.tar::a@0+5")
    with pytest.raises(ImageMissing):
        listed.fetch(item)


def test_beyond_its_archive_a_member_ends(source, tmp_path):
    write_tar(tmp_path / "x.tar", [("a", b"abc")])
    os.truncate(tmp_path / "x.tar", tarfile.BLOCKSIZE + 2)
    listed, item = listed_item(source, tmp_path, f"x.tar::a@{tarfile.BLOCKSIZE}+3")
    assert listed.fetch(item) == b"ab"


@pytest.mark.parametrize("place", [f"{10**17}+5", "2+9999", "0+1"])
def test_where_no_member_begins_there_is_none(source, tmp_path, place):
    (tmp_path / "x.tar").write_bytes(b"abc")
    listed, item = listed_item(source, tmp_path, f"x.tar::a@{place}")
    with pytest.raises(ImageMissing):
        listed.fetch(item)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a", "caf\xe9", "long/" * 25 + "d", os.fsdecode(b"\xe9")])
def test_a_member_is_not_taken_for_another_one_of_a_shard_that_was_written_anew(
    source, tmp_path, name, form
):
    def write(*members):
        with tarfile.open(tmp_path / "s.tar", "w", format=form) as tar:
            for member, body in members:
                info = tarfile.TarInfo(f"{member}.jpg")
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))

    write((name, b"123"), ("b", b"4567"), ("c", b"89ab"))
    tars = source("webdataset", tmp_path / "s.tar")
    found = list(tars.walk())
    assert [tars.fetch(item) for item in found] == [b"123", b"4567", b"89ab"]
    write((name, b"1234"), ("c", b"89ab"), ("b", b"4567"))
    for item in found:
        with pytest.raises(ImageMissing, match="is not where it was"):
            tars.fetch(item)


@pytest.mark.parametrize("place", [f"{10**30}+5", f"0+{10**30}"])
def test_a_place_that_no_file_has_is_taken_for_a_name(source, tmp_path, place):
    listed, item = listed_item(source, tmp_path, f"x.tar::a@{place}")
    assert listed.fetch(item) == PathRef(path=item.ref)


@pytest.mark.parametrize("url", ["http://host/\udcff", f"http://host/{'a' * 9000}"])
def test_what_cannot_be_the_address_of_a_picture_costs_that_item(source, tmp_path, url):
    listed, item = listed_item(source, tmp_path, url)
    with pytest.raises(ImageUnreadable, match=r"'http://host/.* is no URL"):
        listed.fetch(item)


def test_a_folder_is_no_archive(source, tmp_path):
    listed, item = listed_item(source, tmp_path, ".::a@0+5")
    with pytest.raises(ImageMissing):
        listed.fetch(item)


def test_a_kind_that_nobody_knows_is_refused_with_those_that_are_known(source):
    with pytest.raises(JobRefused, match=r"no sources of kind 'ftp'; there are collection, folder"):
        source("ftp", "/x")


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """An installed package that has a source called `ours`."""

    def install(body):
        (tmp_path / "theirs.py").write_text(body)
        (tmp_path / "theirs-1.dist-info").mkdir()
        told = tmp_path / "theirs-1.dist-info" / "entry_points.txt"
        told.write_text("[clipyard.sources]\nours = theirs:Ours\n")
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("theirs", None)


def test_a_plug_in_whose_package_is_not_there_is_named_with_what_it_lacks(source, plug_in):
    plug_in("import nowhere_to_be_found")
    with pytest.raises(
        JobRefused, match=r"plug-in theirs:Ours for 'ours' cannot .* 'nowhere_to_be_"
    ):
        source("ours", "/x")


def test_what_a_plug_in_cannot_take_for_a_place_is_refused_by_its_name(source, plug_in):
    plug_in("def Ours(place, doors):\n    raise ValueError('no port x')")
    with pytest.raises(JobRefused, match="ours cannot be at '/x': no port x"):
        source("ours", "/x")
