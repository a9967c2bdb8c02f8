"""What a client makes of its arguments, and how a job looks on a terminal."""

import io
import os
from collections import deque
from types import SimpleNamespace

import pytest
from rich.console import Console, Group

from api_client import cli
from api_client.reembed import places, talks, watching
from api_client.reembed.job import awaited, shadow, specification
from api_client.talks import Line
from api_client.testing import FakeClient
from api_client.wire import names
from api_client.wire.errors import BadRequest, ClipyardError, NoAnswer, UnknownJob
from api_client.wire.jobs import JobSpec, JobState, JobStatus, Place


@pytest.mark.parametrize(
    ("address", "kind", "where", "options"),
    [
        ("/photos", "folder", "/photos", {}),
        ("/photos/**/*.jpg", "folder", "/photos/**/*.jpg", {}),
        ("photos", "folder", os.path.abspath("photos"), {}),
        ("/d/list.csv", "list", "/d/list.csv", {}),
        ("/d/texts.jsonl", "texts", "/d/texts.jsonl", {}),
        ("texts:/d/t.parquet", "texts", "/d/t.parquet", {}),
        ("/d/s-{000..009}.tar", "webdataset", "/d/s-{000..009}.tar", {}),
        ("s3://bucket/photos", "fsspec", "s3://bucket/photos", {}),
        (
            "qdrant:http://h:6333#cats",
            "collection",
            "http://h:6333",
            {"store": "qdrant", "collection": "cats"},
        ),
        ("parquet:/vectors", "collection", "/vectors", {"store": "parquet"}),
    ],
)
def test_a_source_is_told_by_its_address(address, kind, where, options):
    assert places.source(address) == Place(kind=kind, where=where, options=options)


@pytest.mark.parametrize(
    ("address", "kind", "where", "options"),
    [
        ("/vectors", "parquet", "/vectors", {}),
        ("npy:/vectors", "npy", "/vectors", {}),
        ("http://h:6333#cats", "qdrant", "http://h:6333", {"collection": "cats"}),
        ("qdrant:/d/q#cats", "qdrant", "/d/q", {"collection": "cats"}),
        ("lancedb:/d/l#cats", "lancedb", "/d/l", {"table": "cats"}),
        ("postgresql://me@h/db#cats", "pgvector", "postgresql://me@h/db", {"table": "cats"}),
    ],
)
def test_a_sink_is_told_by_its_address(address, kind, where, options):
    assert places.sink(address) == Place(kind=kind, where=where, options=options)


@pytest.mark.parametrize(
    "address", ["postgresql://me:secret@h/db#cats", "pgvector:postgresql://h/db?password=secret"]
)
def test_a_password_is_not_written_down(address):
    with pytest.raises(BadRequest, match="PGPASSWORD"):
        places.sink(address)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("s3://bucket/x", "say which kind of sink s3:// is, as in lancedb:s3://bucket"),
        ("mysql://h/db", "built in are lancedb, npy, parquet, pgvector, qdrant"),
        ("", "empty name"),
        ("qdrant:#cats", "empty name"),
        ("http://[::1:6333#cats", r"'http://\[::1:6333#cats' cannot be a place: Invalid IPv6"),
        ("qdrant:localhost:6333#cats", "a server is qdrant:http://localhost:6333"),
        ("qdrant:[::1]:6333#cats", r"a folder of that name qdrant:\./\[::1\]:6333"),
        ("qdrant:http://[::1:6333#cats", r"'http://\[::1:6333' cannot be a place: Invalid IPv6"),
    ],
)
def test_an_address_that_cannot_be_a_sink_is_refused(address, told):
    with pytest.raises(BadRequest, match=told):
        places.sink(address)


def test_what_has_no_kind_is_a_folder():
    assert places.sink("Bad Kind:/x").kind == "parquet"


@pytest.mark.parametrize(
    "options",
    [{"chunk_size": 0}, {"chunk_size": "many"}, {"id": "a/b"}, {"window": -1}],
)
def test_an_option_that_cannot_be_used_is_named(options):
    with pytest.raises(BadRequest, match=next(iter(options))):
        specification("/photos", "/vectors", "m", **options)


@pytest.mark.parametrize("mistyped", ["chunksize", "submitted_at"])
def test_for_an_option_that_there_is_not_those_that_there_are_are_told(mistyped):
    with pytest.raises(BadRequest, match=f"^no option {mistyped}; there are id, .*chunk_size"):
        specification("/photos", "/vectors", "m", **{mistyped: 3})


def test_every_job_has_an_id_of_its_own():
    specs = [specification("/photos", "/vectors", "m") for _ in range(2)]
    assert specs[0].id != specs[1].id
    assert JobSpec.read(specs[0].model_dump_json()) == specs[0]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{}", "names no version"),
        ("no json", "names no version"),
        ('{"version": 0}', "an older version"),
        ('{"version": 99}', "a newer version"),
        ('{"version": 1}', "is broken: id: Field required"),
    ],
)
def test_a_job_file_that_cannot_be_read_says_why(text, sentence):
    with pytest.raises(BadRequest, match=sentence):
        JobSpec.read(text)


def test_a_migration_stays_within_one_kind_of_store_and_needs_two_collections():
    _, sink, migration = shadow("live", "/old", "/new")
    assert (sink.where, migration.old.where, migration.alias) == ("/new", "/old", "live")
    with pytest.raises(BadRequest, match="cannot be switched"):
        shadow("live", "/old", "qdrant:/q#new")
    with pytest.raises(BadRequest, match="are the same"):
        shadow("live", "/old", "/old")


def test_a_folder_for_papers_of_a_user_who_is_not_here_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = specification("/p", sink="/v", model="a/b", papers="~nobody-here/x")
    assert job.papers == str(tmp_path / "~nobody-here/x")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("/a/old", "/b/new", "a name in /a cannot lead to what is in /b"),
        ("npy:/old", "npy:/old/new", "cannot lead"),
        ("lancedb:/a#old", "lancedb:/b#new", "cannot lead"),
        ("http://q:6333#old", "http://r:6333#new", "cannot lead"),
        ("postgresql://u@h/a#old", "postgresql://u@h/b#new", "cannot lead"),
        ("/a/live", "/a/new", "'live' is the name that is to be switched"),
        ("qdrant:/q#live", "qdrant:/q#new", "'live' is the name"),
        (Place(kind="parquet", where="/b/../a/live"), "/a/new", "'live' is the name"),
    ],
)
def test_a_name_that_would_lead_nobody_there_or_back_is_refused(old, new, said):
    with pytest.raises(BadRequest, match=said):
        shadow("live", old, new)


@pytest.mark.parametrize("alias", ["", "x" * 5000, "half \ud800", None])
def test_what_can_be_no_name_is_refused_with_a_sentence(alias):
    with pytest.raises(BadRequest, match="cannot be a name that is switched: "):
        shadow(alias, "/old", "/new")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("/a/old", Place(kind="parquet", where="/b/../a/new")),
        ("lancedb:/live#old", "lancedb:/live#new"),
        ("my:/live", "my:/b"),
    ],
)
def test_a_name_that_leads_there_and_back_is_not_refused(old, new):
    assert shadow("live", old, new)[2].alias == "live"


@pytest.mark.parametrize(
    ("old", "new", "held"),
    [
        ("/old", "/new", {"store": "parquet"}),
        ("http://q:6333#b32", "http://q:6333#l14", {"store": "qdrant", "collection": "b32"}),
    ],
)
def test_a_migration_reads_what_the_old_collection_holds(old, new, held):
    source, _, _ = shadow("live", old, new)
    spec = specification(source, new, "m", source_options={"ref": "url"})
    assert (spec.source.kind, spec.source.options) == ("collection", {**held, "ref": "url"})


@pytest.mark.parametrize("wrong", ["model=x", "source=y", "sink_options=tower=text", "colour=red"])
def test_what_set_does_not_know_is_a_sentence(wrong, capsys, monkeypatch):
    submit = ["clipyard", "reembed", "submit", "/p", "--sink", "/v", "--set", wrong]
    monkeypatch.setattr("sys.argv", submit)
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert (
        f"--set knows no '{wrong.partition('=')[0]}'; it sets chunk_size" in capsys.readouterr().err
    )


def status(seen_at, done, **fields):
    spec = specification("/photos", "/vectors", "m", id="j")
    given = {"state": JobState.RUNNING, "items": 1000, "read_s": 1, "forward_s": 3, **fields}
    return JobStatus(spec=spec, seen_at=seen_at, done=done, **given)


def test_rate_and_time_left_come_from_what_was_seen():
    seen = deque([status(10.0, 100), status(20.0, 300)])
    assert watching.rate(seen) == 20.0
    told = " ".join(map(str, watching.drawn(seen[-1], rate=20.0)[1:]))
    assert "300/1000" in told
    assert "20/s" in told
    assert "about 0:00:35 left" in told
    assert "read 1 s 25%" in told


@pytest.mark.parametrize(
    ("rate", "told"),
    [(0.0, "running  0/1000  failed 0  "), (0.4, "failed 0  0.4/s  about 0:41:40 left")],
)
def test_a_rate_is_told_once_it_is_known_and_however_slow_it_is(rate, told):
    assert str(watching.drawn(status(1.0, 0), rate=rate)[1]).endswith(told)


@pytest.mark.parametrize("state", [JobState.PAUSED, JobState.CANCELLED])
def test_nothing_is_left_to_wait_for_when_a_job_does_not_go_on(state):
    assert "left" not in str(watching.drawn(status(1.0, 300, state=state), rate=20.0)[1])


def test_a_terminal_of_eighty_columns_has_room_for_what_people_ask_for():
    console = Console(file=io.StringIO(), width=80, force_terminal=True)
    spent = {"read_s": 9_999, "decode_s": 9_999, "forward_s": 36e6, "write_s": 36e5}
    console.print(Group(*watching.drawn(status(20.0, 300, failed=12, **spent), rate=20.0)))
    shown = console.file.getvalue()
    assert "running  312/1000  failed 12  20/s  about 0:00:34 left" in shown
    assert "read 9999 s 0%  decode 9999 s 0%  forward 10000 h 91%  write 1000 h 9%" in shown


def test_texts_that_were_cut_are_told():
    [*_, told] = watching.drawn(status(1.0, 1000, cut=12), rate=0)
    assert str(told) == "longer than the model reads, and cut: 12 of 1000"


def test_where_to_read_what_failed_is_told_at_the_end():
    ended = status(1.0, 998, failed=2, state=JobState.COMPLETE, papers="/vectors/_job-a")
    [*_, told] = watching.drawn(ended, rate=0)
    assert str(told) == "what failed, and why: /vectors/_job-a/report.html"


def test_what_others_named_does_nothing_to_the_terminal():
    [*_, told] = watching.drawn(status(1.0, 0, reason="\x1b]0;mine\x07.png: is empty"), rate=0)
    assert "\x1b" not in str(told)


@pytest.fixture
def watched(monkeypatch):
    """Watches a job that looks like this, one after the other; gives the rates that are shown."""

    def rates(looks):
        found, job = [], SimpleNamespace(status=iter(looks).__next__)
        monkeypatch.setattr(watching.time, "sleep", lambda _: None)
        monkeypatch.setattr(watching, "drawn", lambda _, *, rate: found.append(rate) or [])
        watching.watch(job)
        return found

    return rates


def test_when_chunks_are_done_again_the_rate_begins_anew(watched):
    looks = [status(1.0, 900), status(2.0, 100), status(3.0, 150, state=JobState.COMPLETE)]
    assert watched(looks) == [0.0, 0.0, 50.0]


def test_the_time_in_which_a_source_was_listed_is_none_of_the_rate(watched):
    """A minute of it, and the job was told to take three times as long for the next one."""
    looks = [status(1.0, 0, state=JobState.PLANNING), status(61.0, 0)]
    looks.append(status(91.0, 600, state=JobState.COMPLETE))
    assert watched(looks) == [0.0, 0.0, 20.0]


def test_what_is_watched_into_a_file_ends_its_last_line(capsys):
    look = status(1.0, 1000, state=JobState.COMPLETE)
    watching.watch(SimpleNamespace(status=lambda: look))
    assert capsys.readouterr().err.endswith("\nworkers  \n")


def test_what_ends_a_watch_into_a_file_has_a_line_of_its_own(capsys, monkeypatch):
    monkeypatch.setattr(watching.time, "sleep", lambda _: None)
    looks = [status(1.0, 1000)]
    with pytest.raises(IndexError):
        watching.watch(SimpleNamespace(status=lambda: looks.pop()))
    assert capsys.readouterr().err.endswith("\nworkers  \n")


def test_the_rate_of_a_job_of_weeks_is_steady(watched):
    """A chunk of 1024 every 20 seconds."""
    looks = [status(at / 2, at // 40 * 1024) for at in range(1200)]
    looks.append(status(600.0, 30 * 1024, state=JobState.COMPLETE))
    assert all(45 < rate < 55 for rate in watched(looks)[600:])


def test_what_keeps_a_job_from_going_on_is_told():
    told = " ".join(map(str, watching.drawn(status(1.0, 0, trouble="the disk is full"), rate=0)))
    assert "the disk is full" in told


@pytest.mark.parametrize("timeout", [float("nan"), float("inf"), -1, 0, "5", 10**400])
def test_a_timeout_that_cannot_be_waited_is_refused(timeout):
    job = FakeClient().reembed("/photos", sink="/vectors")
    with pytest.raises(BadRequest, match=r"^timeout is .*; use a number of seconds above 0"):
        job.wait(timeout)


def test_a_look_at_a_job_is_not_later_than_its_caller_waits(monkeypatch):
    def status(line, job):
        yield print
        return SimpleNamespace(state=JobState.RUNNING)

    monkeypatch.setattr(talks, "status", status)
    talk = awaited(None, "j", 0.01)
    next(talk)
    assert talk.send(None).seconds <= 0.01


def test_a_job_is_tended_as_soon_as_it_is_submitted_or_changed(stage, client):
    asked = stage.keys.queue(names.CONTROL, names.INTERACTIVE)
    job = client.reembed("/photos", sink="/vectors", model="m")
    assert stage.store.llen(asked) == 1
    job.pause()
    assert stage.store.llen(asked) == 2


def test_who_waits_for_a_job_no_longer_is_told_how_it_stands(client):
    job = client.reembed("/photos", sink="/vectors", model="m", id="j")
    with pytest.raises(NoAnswer, match=r"job j is still planning after 0\.01 s"):
        job.wait(0.01)


def test_a_list_of_jobs_takes_as_many_round_trips_as_one_and_leaves_out_what_has_expired(stage):
    line = Line(stage.settings)

    def steps(talk):
        said, taken = None, 0
        while True:
            try:
                step = talk.send(said)
            except StopIteration as end:
                return end.value, taken
            said, taken = step(stage.store), taken + 1

    def submit(name):
        steps(talks.submit(line, specification("/photos", "/vectors", "m", id=name)))

    submit("a")
    [_], of_one = steps(talks.listing(line))
    submit("b")
    submit("c")
    stage.store.delete(stage.keys.job("b"))
    found, of_three = steps(talks.listing(line))
    assert [status.id for status in found] == ["c", "a"]
    assert of_three == of_one


def test_a_job_in_a_state_that_this_version_does_not_know_hides_no_other_one(stage, client):
    for name in "ab":
        client.reembed("/photos", sink="/vectors", model="m", id=name)
    stage.store.hset(stage.keys.job("a"), "state", "dreaming")
    assert [status.id for status in client.jobs()] == ["b"]
    with pytest.raises(BadRequest, match="of another version of Clipyard, by their state"):
        client.job("a").status()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda store, key: (store.delete(key), store.set(key, "text")), "books of job a is none"),
        (lambda store, key: store.hset(key, "by:gpu0@a", "many"), r"by their workers\.gpu0@a"),
        (lambda store, key: store.hset(key, "state", b"\xff"), "by their state"),
        (lambda store, key: store.hset(key, "spec", b"\xff"), "names no version"),
    ],
)
def test_a_job_whose_books_are_none_hides_no_other_one(stage, client, spoil, told):
    for name in "ab":
        client.reembed("/photos", sink="/vectors", model="m", id=name)
    spoil(stage.store, stage.keys.job("a"))
    stage.store.zadd(stage.keys.jobs, {b"\xff": 1})
    assert [status.id for status in client.jobs()] == ["b"]
    with pytest.raises(BadRequest, match=told):
        client.job("a").status()


def test_what_is_no_list_of_jobs_is_one_sentence(stage, client):
    stage.store.set(stage.keys.jobs, "text")
    with pytest.raises(ClipyardError, match="as the list of jobs is none"):
        client.jobs()


@pytest.mark.parametrize("job", ["a b", "\udce9", "", None, 7, "x" * 100_000])
def test_an_id_that_no_job_can_have_is_of_no_job(client, job):
    with pytest.raises(UnknownJob, match=r"^there is no job .*; see `clipyard reembed list`$"):
        client.job(job)


def test_a_reason_that_is_not_utf8_is_written_down_escaped(stage, client):
    job = client.reembed("/photos", sink="/vectors", model="m", id="j")
    stage.store.hset(stage.keys.job("j"), "state", "running")
    assert job.pause("caf\udce9").reason == r"caf\udce9"


def test_of_two_who_resume_a_job_at_once_the_second_is_told_that_it_runs(stage, client):
    client.reembed("/photos", sink="/vectors", model="m", id="j")
    stage.store.hset(stage.keys.job("j"), "state", "paused")
    talk = talks.change(Line(stage.settings), "j", "resume", reason="")
    said = next(talk)(stage.store)
    stage.store.hset(stage.keys.job("j"), "state", "running")
    said = talk.send(said)(stage.store)
    said = talk.send(said)(stage.store)
    with pytest.raises(BadRequest, match="job j is running: only a paused job can be resumed"):
        talk.send(said)


@pytest.mark.parametrize("address", [None, 7, b"/photos", ["/photos"]])
def test_what_is_no_address_is_no_folder_of_that_name(address):
    for place in (places.source, places.sink):
        with pytest.raises(BadRequest, match="cannot be a place: pass a path or an address"):
            place(address)


def test_an_option_that_is_not_utf8_is_refused():
    with pytest.raises(BadRequest, match="options"):
        specification("/photos", "/vectors", "m", source_options={"column": "caf\udce9"})
