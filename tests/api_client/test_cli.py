"""The command line, on the fake client: what it prints, and the exit code."""

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from io import BytesIO, TextIOWrapper
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet
from typer.core import TyperGroup
from typer.main import get_command

from api_client import __main__ as process
from api_client import cli, pulse, show, vectorfile
from api_client.__main__ import INTERRUPTED, TERMINATED
from api_client.gateway import child
from api_client.reembed import watching
from api_client.stack import up as stack
from api_client.testing import MODELS, NODE, FakeClient
from api_client.wire import names
from api_client.wire.errors import ImageUnreadable, NoAnswer, NoBroker, NoWorker
from api_client.wire.messages import CatalogueEntry, Event, Kind, Knobs, Managed
from api_client.wire.version import VERSION
from tests.flow.processes import until

ROOT = Path(__file__).parents[2]
WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Version": "13",
}


@pytest.fixture
def clipyard(monkeypatch, capsys):
    """Runs a command line on a client; answers with exit code, output and errors."""

    def run(*argv, client=None):
        for commands in (cli, cli.reembed):
            monkeypatch.setattr(commands, "a_client", lambda: client or FakeClient())
        monkeypatch.setattr(sys, "argv", ["clipyard", *map(str, argv)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return run


@pytest.fixture
def pictures(tmp_path):
    for name in ("b.png", "a.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_pictures_of_a_folder_are_embedded_in_order(clipyard, pictures):
    code, out, _ = clipyard("embed", pictures, "--json")
    rows = json.loads(out)
    assert code == 0
    assert [Path(row["item"]).name for row in rows] == ["a.png", "b.png"]
    assert len(rows[0]["vector"]) == 16


def test_of_a_folder_nothing_is_left_out_but_what_is_hidden(clipyard, pictures):
    (pictures / "IMG_1.HEIC").write_bytes(b"no worker opens it, and says so")
    (pictures / "gone.jpg").symlink_to("nowhere.jpg")
    for hidden in ("._a.png", ".trash/c.png"):
        (pictures / hidden).parent.mkdir(exist_ok=True)
        (pictures / hidden).write_bytes(b"no picture")
    _, out, _ = clipyard("embed", pictures, "--json")
    found = [Path(row["item"]).name for row in json.loads(out)]
    assert found == ["IMG_1.HEIC", "a.png", "b.png", "gone.jpg"]


def test_a_folder_that_may_not_be_read_is_not_taken_for_an_empty_one(
    clipyard, pictures, monkeypatch
):
    scan = os.scandir

    def refuse(place):
        if Path(place).name == "locked":
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    (pictures / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    code, _, error = clipyard("embed", pictures)
    assert (code, error) == (1, f"error: [Errno 13] Permission denied: '{pictures}/locked'\n")


def test_what_is_in_a_file_is_not_shown_too(clipyard, pictures, tmp_path):
    client = FakeClient(failing={str(pictures / "a.png"): ImageUnreadable("it is broken")})
    code, out, err = clipyard("embed", pictures, "-o", tmp_path / "v.parquet", client=client)
    assert (code, out.splitlines()) == (1, [f"1 vector in {tmp_path}/v.parquet"])
    assert f"{pictures}/a.png: image_unreadable: it is broken" in err


def test_a_picture_may_be_a_url(clipyard):
    url = "https://example.org/a.png"
    client = FakeClient(failing={url: ImageUnreadable("not opened as a file")})
    _, out, _ = clipyard("embed", url, "--json", client=client)
    [row] = json.loads(out)
    assert (row["item"], row["error"]["message"]) == (url, "not opened as a file")


@pytest.mark.parametrize("name", ["data:image/png;base64," + "aGVs" * 2000, "a" * 300 + ".png"])
def test_what_is_no_name_of_a_file_here_is_a_picture_all_the_same(clipyard, name):
    code, out, _ = clipyard("embed", name, "b.png", "--json")
    assert code == 0
    assert [row["item"] for row in json.loads(out)] == [name, "b.png"]


def rows_of(file):
    """References and vectors; of a bare matrix the vectors alone."""
    if file.suffix == ".npy":
        return None, np.load(file)
    if file.suffix == ".parquet":
        rows = parquet.read_table(file).to_pylist()
    else:
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [row["reference"] for row in rows], np.float32([row["vector"] for row in rows])


@pytest.mark.parametrize("ending", vectorfile.ENDINGS)
def test_vectors_are_written_where_they_are_wanted(clipyard, pictures, tmp_path, ending):
    out = tmp_path / "results" / "of today" / f"vectors{ending}"
    files = [pictures / "a.png", pictures / "b.png"]
    code, _, _ = clipyard("embed", pictures, "-o", out)
    assert code == 0
    references, vectors = rows_of(out)
    assert references in (None, [str(file) for file in files])
    if ending == ".parquet":
        assert parquet.read_schema(out).field("vector").type == pa.list_(pa.float32(), 16)
    with FakeClient() as client:
        assert np.array_equal(vectors, client.embed_images(files))


def test_a_name_that_is_not_utf8_costs_nobody(clipyard, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "500")  # or a long path is folded
    (pictures / "a.png").rename(pictures / "caf\udce9.png")
    for ending in ("npy", "jsonl", "parquet"):
        assert clipyard("embed", pictures, "-o", tmp_path / f"vectors.{ending}")[0] == 0
    for argv in (["embed", pictures], ["search", "words", pictures]):
        for options in ([], ["--json"]):
            code, out, _ = clipyard(*argv, *options)
            assert code == 0
            assert "udce9.png" in "".join(re.findall(r"[\w.]", out.encode().decode()))


@pytest.mark.parametrize(
    "out",
    [
        *("vectors.csv", "vectors", ".", "folder.npy", "notes.txt/vectors.npy", "x" * 300 + ".npy"),
        "x" * 250 + ".npy",  # only what it is written to has too long a name
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(clipyard, pictures, out):
    (pictures / "folder.npy").mkdir()
    code, said, error = clipyard("embed", pictures, "-o", pictures / out, client=object())
    assert (code, said) == (2, "")
    assert re.match(r"error: cannot write vectors to .*\n$", error)


@pytest.mark.parametrize("is_link", [False, True])
def test_neither_a_pipe_nor_a_device_is_taken_for_a_file(clipyard, tmp_path, is_link):
    os.mkfifo(pipe := tmp_path / "pipe.npy")
    out = tmp_path / "link.jsonl" if is_link else pipe
    if is_link:
        out.symlink_to(pipe)
    code, said, error = clipyard("text", "words", "-o", out, client=object())
    assert (code, said) == (2, "")
    assert error == f"error: cannot write vectors to {out}: what is there is no file\n"
    assert pipe.is_fifo()
    items = FakeClient().embed_texts_detailed(["words"])
    with pytest.raises(OSError, match="what is there is no file"):  # put there meanwhile
        vectorfile.write(out, ["words"], items)
    assert pipe.is_fifo()


def test_parquet_that_cannot_be_written_is_refused_before_the_work(clipyard, tmp_path, monkeypatch):
    monkeypatch.setattr(vectorfile, "find_spec", lambda _: None)
    code, said, error = clipyard("text", "words", "-o", "vectors.parquet", client=object())
    assert (code, said) == (2, "")
    assert "pip install -e '.[sinks]'" in error
    assert clipyard("text", "words", "-o", tmp_path / "vectors.jsonl")[0] == 0


def test_a_place_that_is_looked_at_stays_as_it_is(tmp_path):
    (tmp_path / "there.npy").write_bytes(b"old")
    for name in ("there.npy", "new.npy"):
        vectorfile.check(tmp_path / name)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [
        ("there.npy", b"old")
    ]


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_vectors_are_not_lost_to_a_neighbour_that_failed(clipyard, pictures, tmp_path, options):
    client = FakeClient(failing={str(pictures / "a.png"): ImageUnreadable("cut short")})
    out = tmp_path / "vectors.npy"
    code, _, error = clipyard("embed", pictures, "-o", out, *options, client=client)
    assert code == 1
    assert not out.exists()
    assert f"{out}.jsonl" in error
    failed, good = map(json.loads, Path(f"{out}.jsonl").read_text().splitlines())
    assert (failed["error"], failed["vector"]) == ("image_unreadable", None)
    assert len(good["vector"]) == 16


@pytest.mark.parametrize("ending", vectorfile.ENDINGS)
def test_half_a_file_of_vectors_is_named_and_takes_nobodys_place(clipyard, tmp_path, ending):
    out = tmp_path / f"vectors{ending}"
    out.write_text("of yesterday")
    sizes = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (128, sizes[1]))  # as a disk that is full
    try:
        code, _, error = clipyard("text", "red", "blue", "-o", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, sizes)
    assert (code, error) == (1, f"error: cannot write vectors to {out}: File too large\n")
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_text() == "of yesterday"


def test_vectors_go_where_a_link_leads(clipyard, tmp_path):
    there, link = tmp_path / "large disk", tmp_path / "vectors.npy"
    there.mkdir()
    link.symlink_to(there / "vectors.npy")
    for _ in range(2):
        assert clipyard("text", "red", "-o", link)[0] == 0
        assert link.is_symlink()
        assert np.load(link).shape == (1, 16)
    assert len(list(there.iterdir())) == 1


def test_vectors_of_no_pictures_are_an_empty_matrix(clipyard, tmp_path):
    (tmp_path / "empty").mkdir()
    assert clipyard("embed", tmp_path / "empty", "-o", tmp_path / "vectors.npy")[0] == 0
    assert np.load(tmp_path / "vectors.npy").size == 0


@pytest.mark.parametrize("command", [["embed"], ["search", "words"]])
def test_a_folder_without_pictures_is_told(clipyard, pictures, command):
    (empty := pictures / "empty").mkdir()
    code, _, error = clipyard(*command, empty, pictures)
    assert code == 0
    assert error.startswith(f"{empty} holds no pictures (.apng, ")
    assert error.count("holds no pictures") == 1


def test_the_id_of_a_job_stays_on_one_line(clipyard, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    client = FakeClient()
    job = client.reembed("/photos", sink="/vectors/of/a/folder/with/a/long/name", id="j" * 20).id
    assert job in clipyard("reembed", "list", client=client)[1]


def test_eighty_columns_have_room_for_where_a_job_writes(clipyard, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    client = FakeClient()
    client.reembed("/photos", sink="qdrant:http://vectors.org:6333#p", id="20261129-2030-a1b2c3")
    assert " http://vectors.org:6333#p " in clipyard("reembed", "list", client=client)[1]
    [row] = json.loads(clipyard("reembed", "list", "--json", client=client)[1])
    assert list(row) == ["id", "state", "done", "failed", "items", "model", "sink"]


def test_the_id_of_a_model_stays_on_one_line(clipyard, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    long = MODELS[0].model_copy(update={"id": "ViT-B-16-SigLIP2-256/webli-of-somebody"})
    assert long.id in clipyard("models", client=FakeClient(models=[long]))[1]


def test_whoever_did_what_they_were_asked_and_of_which_model_stay_on_one_line(
    clipyard, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    did = {"worker": "gpu0@machine-learning-7", "model": "sentence-transformers/all-MiniLM-L6-v2"}
    client = FakeClient()
    client.switch = lambda *_, **__: [Managed(**did, changed=True, message="switched " * 20)]
    out = clipyard("switch", did["model"], client=client)[1]
    assert all(f" {name} " in out for name in did.values())


def test_models_are_listed_by_name_and_what_nobody_has_said_of_one_is_left_out(clipyard):
    bare = CatalogueEntry(id="mine/bare", name="", family="own", dimension=0, kinds=("text",))
    client = FakeClient(models=[bare, *MODELS])
    _, out, _ = clipyard("models", client=client)
    assert out.index("fake/large") < out.index("fake/small") < out.index("mine/bare")
    [row] = [line for line in out.splitlines() if bare.id in line]
    assert "0" not in row
    assert json.loads(clipyard("models", "--json", client=client)[1])[-1]["dimension"] == 0


def test_some_failed_items_are_shown_and_told_by_the_exit_code(clipyard, pictures):
    client = FakeClient(failing={str(pictures / "a.png"): ImageUnreadable("cut short")})
    code, out, _ = clipyard("embed", pictures, "--json", client=client)
    assert code == 1
    assert json.loads(out)[0]["error"] == {"code": "image_unreadable", "message": "cut short"}


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_search_tells_which_pictures_failed_and_why(clipyard, pictures, options):
    client = FakeClient(failing={str(pictures / "a.png"): ImageUnreadable("cut short")})
    code, _, error = clipyard("search", "words", pictures, *options, client=client)
    assert code == 1
    assert f"{pictures}/a.png: image_unreadable: cut short" in error.splitlines()


def test_a_search_asks_the_model_that_has_answered_for_the_pictures(clipyard, pictures):
    class Switched(FakeClient):
        def _hold(self, talk):
            answer = super()._hold(talk)
            super()._hold(self._desk.switch("fake/large", None, None))
            return answer

    found = [
        clipyard("search", "words", pictures, *options, "--json", client=client())[:2]
        for client, options in ((FakeClient, []), (Switched, []), (Switched, ["-m", "auto"]))
    ]
    assert found == [found[0]] * 3
    assert found[0][0] == 0


def test_a_search_by_auto_passes_over_a_model_that_only_sees(clipyard, pictures):
    eyes = CatalogueEntry(id="eyes", name="", family="fake", dimension=8, kinds=(Kind.IMAGE,))
    client = FakeClient(models=[eyes, *MODELS])
    assert clipyard("search", "words", pictures, "-m", "auto", client=client)[0] == 0


def test_a_search_that_is_refused_has_embedded_no_picture(clipyard, pictures):
    class Counting(FakeClient):
        def embed_images_detailed(self, images, **options):
            raise AssertionError

    code, out, error = clipyard("search", " ", pictures, client=Counting())
    assert (code, out) == (2, "")
    assert error.startswith("error: texts[0]")


def test_a_search_in_two_spaces_ranks_nothing(clipyard, pictures):
    class Updated(FakeClient):  # a worker of another version answered
        def embed_texts_detailed(self, texts, **options):
            items = super().embed_texts_detailed(texts, **options)
            return [replace(item, fingerprint="another") for item in items]

    code, out, error = clipyard("search", "words", pictures, client=Updated())
    assert (code, out) == (1, "")
    assert error.startswith("error: workers answered in two vector spaces (another and fake:")


@pytest.mark.parametrize(
    ("argv", "key"),
    [
        (["text", "words"], "vector"),
        (["models"], "id"),
        (["load", "fake/large"], "changed"),
        (["reload", "fake/large"], "changed"),
        (["switch", "fake/large"], "changed"),
        (["unload"], "changed"),
        (["unload", "--scope", "everything"], "changed"),
        (["set", "slots=3"], "changed"),
    ],
)
def test_rows_are_tables_for_people_and_json_for_scripts(clipyard, argv, key):
    code, out, _ = clipyard(*argv, "--json")
    assert code == 0
    assert key in json.loads(out)[0]
    assert clipyard(*argv)[0] == 0


def test_seconds_are_rounded_for_people_alone(clipyard):
    client = FakeClient()
    client.unload = lambda *_, **__: [
        Managed(worker=NODE, model="m", changed=True, message="gone", seconds=0.006538)
    ]
    assert "0.01" in clipyard("unload", client=client)[1]
    assert json.loads(clipyard("unload", "--json", client=client)[1])[0]["seconds"] == 0.006538


def test_it_says_its_version(clipyard):
    assert clipyard("--version") == (0, f"clipyard {VERSION}\n", "")


def test_every_command_that_shows_something_takes_json():
    shows_nothing = {"up", "gateway", "dashboard", "acl", "drop"}  # acl: a file for Redis

    def without(command):
        if isinstance(command, TyperGroup):
            return {name for one in command.commands.values() for name in without(one)}
        return set() if "--json" in str([one.opts for one in command.params]) else {command.name}

    assert without(get_command(cli.app)) == shows_nothing


@pytest.mark.parametrize("sickness", ["", "gpu0@a is not there"])
def test_health_is_a_line_or_json(clipyard, monkeypatch, sickness):
    monkeypatch.setattr(pulse, "sickness", lambda **_: sickness)
    code, out, _ = clipyard("health", "--json")
    assert json.loads(out) == {"healthy": not sickness, "trouble": sickness}
    assert code == bool(sickness)
    assert clipyard("health")[:2] == (code, f"{sickness or 'healthy'}\n")


@pytest.mark.parametrize(
    ("command", "field", "value"),
    [
        ("watch", "state", "complete"),
        ("switch", "message", "done, in memory"),
        ("switch-back", "message", "done, in memory"),
    ],
)
def test_what_came_of_a_job_is_one_json_object(clipyard, command, field, value):
    client = FakeClient()
    job = client.reembed("/photos", sink="/vectors").id
    code, out, _ = clipyard("reembed", command, job, "--json", client=client)
    assert (code, json.loads(out)[field]) == (0, value)
    assert clipyard("reembed", command, job, client=client)[0] == 0


def test_the_id_of_a_job_is_told_before_it_is_watched(monkeypatch):
    told, by_then = TextIOWrapper(BytesIO()), []  # a file, as of nohup

    def watch(job):
        by_then.append(told.buffer.getvalue())
        return job.status()

    monkeypatch.setattr(cli.reembed, "a_client", FakeClient)
    monkeypatch.setattr(watching, "watch", watch)
    monkeypatch.setattr(sys, "stdout", told)
    argv = ["clipyard", "reembed", "submit", "/p", "-o", "/v", "--set", "id=j", "--watch"]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert by_then == [b"j\n"]


def test_what_people_wrote_is_shown_as_they_wrote_it(clipyard, tmp_path):
    for words in ("[/b] hi", "a [red]circle", "a :cat:"):
        assert words in clipyard("text", words)[1]
        code, out, _ = clipyard("text", words, "-o", tmp_path / "[b]vectors.jsonl")
        assert code == 0
        assert f"1 vector in {tmp_path}/[b]vectors.jsonl" in out.splitlines()


def test_an_id_is_never_cut(capsys):
    row = dict.fromkeys("abcdefg", "20261128-125900-0123456789")
    show.table([*row], [row], as_json=False)
    drawn = capsys.readouterr().out
    first_column = [line.split("\u2502")[1].strip() for line in drawn.splitlines()[3:-1]]
    assert "".join(first_column) == row["a"]


def test_columns_without_names_have_no_head(capsys):
    show.table(["", " "], [{"": "id", " ": "j"}], as_json=False)
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_why_knows_a_model_by_its_alias(clipyard):
    client = FakeClient(models=[MODELS[0].model_copy(update={"aliases": ("small",)})])
    client.load("fake/small")
    code, out, _ = clipyard("why", "small", client=client)
    assert code == 0
    assert out.startswith("fake/small is on the device of")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_why_refuses_a_model_that_nobody_knows(clipyard, options):
    code, out, error = clipyard("why", "fake/smal", *options)
    assert (code, out) == (2, "")
    assert error.startswith("error: no worker lists a model 'fake/smal'; nearest: fake/small")


def test_why_tells_of_a_model_that_needs_no_entry_and_went(clipyard, monkeypatch):
    gone = Event(at=1.0, worker=NODE, kind="unloaded", model="fake/other", reason="was idle")
    client = FakeClient()
    fleet = client.status().model_copy(update={"events": (gone,)})
    monkeypatch.setattr(client, "status", lambda: fleet)
    code, out, _ = clipyard("why", "fake/other", client=client)
    assert code == 0
    assert "unloaded" in out


def test_status_is_one_json_object(clipyard):
    code, out, _ = clipyard("status", "--json")
    assert code == 0
    assert json.loads(out)["current"] == "fake/small"


@pytest.mark.parametrize(
    "argv",
    [
        ["no-such-command"],
        ["embed"],
        ["text", ""],
        ["text", "a", "--model", ""],
        ["load", "x" * 201],
        ["unload", "fake/small", "--scope", "vision"],
        ["unload", "--scope", "some"],
        ["set", "slots"],
        ["set", "slots=0"],
        ["set", "no_such=1"],
        ["switch", "no/such"],
        ["status", "--watch", "--json"],
        ["status", "--watch"],  # into a pipe, where it would draw nothing and never end
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(clipyard, argv):
    code, out, error = clipyard(*argv)
    assert (code, out) == (2, "")
    assert "Traceback" not in error
    assert error


@pytest.mark.parametrize(
    ("variable", "value"), [("TERM", "dumb"), ("TERM", "unknown"), ("TTY_COMPATIBLE", "0")]
)
def test_a_terminal_that_nothing_can_be_drawn_on_is_no_place_to_watch(
    clipyard, monkeypatch, variable, value
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv(variable, value)
    assert clipyard("status", "--watch", client=object())[0] == 2


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["embed", ""], "what follows 'embed'"),
        (["embed", "a.png", ""], "what follows 'a.png'"),
        (["health", "--worker", ""], "what follows '--worker'"),
        (["quickstart", "--images="], "'--images='"),
        (["reembed", "submit", "/photos", "--sink", ""], "what follows '--sink'"),
        (["acl", "--secrets", ""], "what follows '--secrets'"),
        (["reembed", "submit", "/photos", "-o", "/v", "--set", "id="], "what follows 'id='"),
        (["reembed", "submit", "/photos", "-o", "/v", "--to", "table="], "what follows 'table='"),
    ],
)
def test_what_is_empty_is_a_mistake(clipyard, argv, told):
    code, out, error = clipyard(*argv, client=object())
    assert (code, out) == (2, "")
    assert error == f"error: {told} is empty; give it a value, or leave it out\n"


def test_a_sentence_of_ours_is_told_as_it_is(clipyard, monkeypatch):
    said = clipyard("unload", "--scope", "family")[2]
    assert said.startswith("error: unload: the scope family goes with")
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "nonsense")
    assert clipyard("health")[2].startswith("error: CLIPYARD_REDIS_URL: no usable Redis URL")


def test_a_setting_may_be_given_no_values(clipyard):
    assert clipyard("set", "pinned=")[0] == 0


def test_a_setting_that_is_nested_without_end_is_wrong_usage(clipyard):
    code, out, error = clipyard("set", "slots=" + "[" * 50_000)
    assert (code, out) == (2, "")
    assert error.startswith("error: knobs.slots: ")


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("adaptive_timeouts=yes", True),
        ("adaptive_timeouts=Off", False),
        ("pressure_threshold=.5", 0.5),
        ("slots=+2", 2),
        ("pinned=fake/small,fake/large", ("fake/small", "fake/large")),
    ],
)
def test_a_setting_is_changed_as_the_environment_has_it(clipyard, knob, value):
    client, asked = FakeClient(), []
    client.set_knobs = lambda knobs, **_: asked.append(Knobs(**knobs)) or []
    assert clipyard("set", knob, client=client)[0] == 0
    assert asked == [Knobs(**{knob.partition("=")[0]: value})]


@pytest.mark.parametrize(
    "argv",
    [
        ["acl", "--secrets", "secrets", "--url", "redis://:geheim@redis/0"],
        ["acl", "--secrets", "a file"],
        ["quickstart", "--out", "a file"],
    ],
)
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    clipyard, tmp_path, monkeypatch, argv
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a file").touch()
    code, out, error = clipyard(*argv)
    assert (code, out) == (2, "")
    assert "geheim" not in error
    assert [file.name for file in tmp_path.iterdir()] == ["a file"]


@pytest.mark.parametrize("error", [NoBroker("no Redis"), NoWorker("nobody"), NoAnswer("late")])
def test_nobody_to_ask_is_exit_code_3(clipyard, error):
    class Away:
        def __enter__(self):
            raise error

        def __exit__(self, *_):
            pass

    assert clipyard("models", client=Away()) == (3, "", f"error: {error}\n")


def test_a_file_that_cannot_be_written_is_one_line(clipyard, tmp_path, monkeypatch):
    (tmp_path / "client.url").mkdir()
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "redis://127.0.0.1:1/0")
    code, out, error = clipyard("acl", "--secrets", tmp_path, "--url", "redis://redis")
    assert (code, out) == (1, "")
    assert re.fullmatch(r"error: .*client\.url'\n", error)


def test_a_stack_that_cannot_be_started_is_one_line_on_standard_error(
    clipyard, pictures, monkeypatch
):
    monkeypatch.setenv("CLIPYARD_HOME", str(pictures / "a.png"))
    assert clipyard("up") == (1, "", f"error: cannot use {pictures}/a.png: File exists\n")


@pytest.mark.parametrize(("extra", "library"), [("gateway", "fastapi"), ("dashboard", "flower")])
def test_an_extra_that_is_not_there_or_broken_is_told_with_the_reason(tmp_path, extra, library):
    (tmp_path / f"{library}.py").write_text("from zlib import nothing_of_this_name")
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "CLIPYARD_REDIS_URL": "redis://a"}
    env |= {"CLIPYARD_DASHBOARD_PASSWORD": "0123456789abcdef"}
    argv = [sys.executable, "-m", "api_client", extra]
    ended = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: the {extra} is an extra (cannot import name 'nothing_")


@pytest.mark.parametrize(
    ("argv", "extras"),
    [
        ([], []),
        (["--flower"], ["flower"]),
        (["--gateway"], ["gateway"]),
        (["--gateway", "--flower"], ["flower", "gateway"]),
    ],
)
def test_a_stack_has_what_else_was_asked_for(clipyard, monkeypatch, argv, extras):
    started = []
    monkeypatch.setattr(stack, "run", lambda options, **_: started.append(options))
    assert clipyard("up", "--device", "cpu", *argv)[0] == 0
    assert [extra.name for extra in started[0].extras] == extras


@pytest.mark.parametrize("command", ["gateway", "dashboard"])
def test_a_port_that_is_taken_is_one_sentence_and_exit_code_2(command):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        env = {
            **os.environ,
            "CLIPYARD_REDIS_URL": "redis://127.0.0.1:1/0",
            "CLIPYARD_GATEWAY_PORT": port,
            "CLIPYARD_DASHBOARD_PORT": port,
            "CLIPYARD_DASHBOARD_PASSWORD": "p" * 16,
        }
        argv = [sys.executable, "-m", "api_client", command]
        ended = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert f"error: cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert f"CLIPYARD_{command.upper()}_HOST or CLIPYARD_{command.upper()}_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture(scope="module")
def gateway_that_ended():
    """Asked for its health and for a WebSocket; its exit code, output and errors."""
    env = {
        **os.environ,
        "CLIPYARD_REDIS_URL": "redis://127.0.0.1:1/0",
        "CLIPYARD_TRACES": "true",
        "OTEL_TRACES_EXPORTER": "console",
    }
    argv = [sys.executable, "-m", "api_client", "gateway", "--port", "0"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True) as gateway:
        running = next(line for line in gateway.stderr if child.extra().ready(line))
        [url] = re.findall(r"http://[\d.:]+", running)
        assert httpx.get(f"{url}/healthz", timeout=20).status_code == 200
        httpx.get(f"{url}/encode/text?text=geheim", headers=WEBSOCKET, timeout=20)
        gateway.terminate()
        said = gateway.communicate(timeout=60)
    return gateway.returncode, *said


def test_a_gateway_that_is_stopped_sends_its_last_spans(gateway_that_ended):
    code, out, _ = gateway_that_ended
    assert code == 0
    assert '"name": "GET /healthz"' in out


def test_a_gateway_logs_no_query(gateway_that_ended):
    assert "geheim" not in str(gateway_that_ended)


def test_a_gateway_for_others_without_a_token_is_exit_code_2(clipyard, monkeypatch):
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "redis://127.0.0.1:1/0")
    code, _, error = clipyard("gateway", "--host", "0.0.0.0")
    assert code == 2
    assert "CLIPYARD_GATEWAY_TOKENS" in error


class Importing:
    """While a module is looked for, somebody presses Ctrl-C."""

    def find_spec(self, name, *_):
        raise KeyboardInterrupt


def test_ctrl_c_while_the_parts_are_imported_is_an_interruption_as_well(monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.delitem(sys.modules, "api_client.cli")
    monkeypatch.setattr(sys, "meta_path", [Importing()])
    with pytest.raises(SystemExit) as end:
        process.main()
    assert end.value.code == INTERRUPTED


def test_a_command_that_is_terminated_withdraws_what_it_asked_for(stage):
    stage.show_worker()
    asked = {
        "CLIPYARD_REDIS_URL": stage.settings.url(),
        "CLIPYARD_KEY_PREFIX": stage.settings.key_prefix,
    }
    argv = [sys.executable, "-m", "api_client", "text", "words"]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, cwd=ROOT, env={**os.environ, **asked}, stderr=pipe) as command:
        until(lambda: stage.store.llen(stage.keys.queue(names.EMBED, names.INTERACTIVE)))
        command.terminate()
        _, said = command.communicate(timeout=60)
    assert (command.returncode, b"Traceback" in said) == (TERMINATED, False)
    [answer] = stage.store.scan_iter(stage.keys.answer("*"))
    assert b"withdrawn by its caller" in stage.store.lindex(answer, 0)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_commands_are_completed(shell):
    env = {
        **os.environ,
        "_CLIPYARD_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": "clipyard stat",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "clipyard stat",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": "stat",
    }
    said = subprocess.run(
        [sys.executable, "-m", "api_client"], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert "status" in said.stdout


def test_help_loads_nothing_heavy():
    said = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "api_client", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in said.stderr.splitlines()
    }
    assert not loaded & {"numpy", "celery", "kombu", "redis", "pydantic", "rich", "PIL", "torch"}
    assert "Usage: clipyard" in said.stdout


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_models_of_no_worker_are_no_empty_table(clipyard, monkeypatch, options):
    monkeypatch.setattr(FakeClient, "models", lambda _: [])
    code, out, error = clipyard("models", *options)
    assert (code, out) == (3, "")
    assert error.startswith("error: no worker is alive; start one")


def test_of_an_old_collection_with_several_vectors_one_is_named(clipyard):
    client = FakeClient()
    migrate = ["migrate", "photos", "--old", "http://q:6333#b32", "--into-new", "http://q:6333#l14"]
    _, job, _ = clipyard("reembed", *migrate, "--old-option", "vector=image", client=client)
    migration = client.job(job.strip()).status().spec.migration
    assert migration.old.options == {"collection": "b32", "vector": "image"}


def test_what_is_said_of_a_source_and_of_a_sink_reaches_the_job(clipyard):
    client = FakeClient()
    said = ["--from", "column=url", "--to", "tower=text", "--set", "window=3"]
    _, job, _ = clipyard("reembed", "submit", "/list.csv", "-o", "/vectors", *said, client=client)
    spec = client.job(job.strip()).status().spec
    assert (spec.source.options, spec.sink.options) == ({"column": "url"}, {"tower": "text"})
    assert spec.window == 3


@pytest.mark.parametrize("group", [[], ["reembed"], ["quarantine"]])
def test_what_each_command_does_is_listed_in_full(clipyard, monkeypatch, group):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = clipyard(*group, "--help")
    assert (code, "..." in out.partition("Commands:")[2]) == (0, False)


def test_every_command_and_exit_code_is_documented():
    page = (ROOT / "docs" / "command-line.md").read_text()
    commands = get_command(cli.app).commands
    assert {name for name in commands if f"`{name}`" not in page} == set()
    for code in (0, cli.FAILED, cli.USAGE, cli.NOBODY, INTERRUPTED, TERMINATED):
        assert f"| {code} |" in page


def test_what_others_wrote_tells_the_terminal_nothing(clipyard):
    title = "\x1b]0;mine\x07"
    _, shown, _ = clipyard("text", title)
    _, _, refused = clipyard("load", title)
    for said in (shown, refused):
        assert "mine" in said
        assert not {"\x1b", "\x07"} & set(said)


def test_letters_that_the_terminal_does_not_have_are_escaped(clipyard, monkeypatch):
    monkeypatch.setattr(sys, "stdout", latin := TextIOWrapper(BytesIO(), encoding="latin-1"))
    assert clipyard("text", "na\u00efve \u7522\u54c1")[0] == 0
    latin.flush()
    assert "na\u00efve \\u7522\\u54c1" in latin.buffer.getvalue().decode("latin-1")


class Cutting(FakeClient):
    def embed_texts_detailed(self, texts, **options):
        first, *rest = super().embed_texts_detailed(texts, **options)
        return [replace(first, truncated=True), *rest]


def test_a_text_that_was_cut_is_told(clipyard):
    code, out, error = clipyard("text", "long", "short", client=Cutting())
    assert (code, error) == (0, "longer than the model reads, and cut: 1 of 2\n")
    assert "cut" not in out
    _, out, error = clipyard("text", "long", "short", "--json", client=Cutting())
    assert ([row["truncated"] for row in json.loads(out)], error) == ([True, False], "")


def test_progress_is_for_terminals_only(clipyard, pictures):
    assert clipyard("embed", pictures)[2] == ""
