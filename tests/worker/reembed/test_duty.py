"""Jobs from their submission to their report, in one process, with bad luck of every kind."""

import html
import io
import json
import os
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Semaphore

import lancedb
import numpy as np
import pyarrow as pa
import pytest
import redis
from celery.exceptions import Reject
from PIL import Image, ImageColor
from pyarrow import dataset, parquet

from api_client.wire import names
from api_client.wire.broker import redis_client
from api_client.wire.errors import (
    BadRequest,
    DeviceLost,
    ImageMissing,
    ItemError,
    JobRefused,
    NotSigned,
    SpaceMismatch,
    StoreDown,
)
from api_client.wire.jobs import JobSpec, JobState, Place
from api_client.wire.jobscripts import CANCEL, RESUME, RETRY_FAILED, VERIFY
from api_client.wire.messages import Kind
from api_client.wire.quarantine import Crash, Evidence
from api_client.wire.settings import Settings
from tests.worker.reembed.fleet import Desk, Post, at_work, folder_of
from worker import runtime
from worker.catalogue import Entry
from worker.delivery import pool
from worker.delivery.pool import Reason
from worker.reembed import check, duty, embedding, manifest, neighbours
from worker.reembed import job as job_module
from worker.reembed.files import temporary_for
from worker.reembed.items import Item
from worker.reembed.ledger import JobLedger
from worker.reembed.migration import switched
from worker.reembed.papers import REOPENED, Loss, Marker, Papers
from worker.reembed.sinks import lance, qdrant, shards
from worker.reembed.sources.folder import Folder


@pytest.fixture
def here(store, keys, tmp_path):
    with at_work(store, keys, tmp_path) as parts:
        yield parts


@pytest.fixture
def post():
    return Post()


@pytest.fixture
def desk(store, keys, post, here):
    return Desk(store, keys, post)


@pytest.fixture
def sink(tmp_path):
    return Place(kind="parquet", where=str(tmp_path / "sink"))


@pytest.fixture
def pictures(tmp_path):
    return folder_of(tmp_path / "pictures")


def rows(sink):
    return dataset.dataset(sink.where, format="parquet").to_table().to_pylist()


def report(sink):
    with open(f"{sink.where}/_job-job/report.json") as file:
        return json.load(file)


def test_a_job_goes_from_its_submission_to_its_report(here, desk, pictures, sink):
    assert set(desk.run(pictures, sink)) == {"done"}
    status = desk.status()
    assert (status.state, status.done, status.failed) == (JobState.COMPLETE, 20, 0)
    found = rows(sink)
    assert sorted(row["id"] for row in found) == [f"{n:03}.png" for n in range(20)]
    assert {row["fingerprint"] for row in found} == {status.fingerprint}
    told = report(sink)
    assert (told["state"], told["vectors"], told["missing"]) == ("complete", 20, 0)
    page = Path(sink.where, "_job-job/report.html").read_text()
    assert "Every item is a vector in the sink or a recorded failure." in page
    assert "<svg" in page
    counted = here.meter.registry.get_sample_value(
        "clipyard_job_items_total", {"model": "fake/a", "code": "ok"}
    )
    assert counted == 20


def test_a_job_that_is_submitted_again_skips_what_is_done_and_can_be_retried(
    here, desk, post, pictures, sink, tmp_path
):
    whole = (tmp_path / "pictures" / "003.png").read_bytes()
    (tmp_path / "pictures" / "003.png").write_bytes(b"")
    desk.run(pictures, sink)
    desk.rerun(RETRY_FAILED)

    desk.submit(pictures, sink, submitted_at=1.0)  # Redis has lost everything
    post.deliver_all()
    embedded = here.meter.registry.get_sample_value(
        "clipyard_job_items_total", {"model": "fake/a", "code": "ok"}
    )
    assert embedded == 20 - 1 + 2 * 7
    (tmp_path / "pictures" / "003.png").write_bytes(whole)
    desk.rerun(RETRY_FAILED)
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)


def test_a_job_that_is_submitted_again_has_the_items_that_it_began_with(
    desk, post, pictures, sink, tmp_path
):
    desk.run(pictures, sink)
    (tmp_path / "pictures" / "000.png").unlink()
    post.sent.clear()
    desk.submit(pictures, sink, submitted_at=1.0)  # Redis has lost everything
    post.deliver_all()
    assert [row["id"] for row in rows(sink)] == [f"{n:03}.png" for n in range(20)]
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)
    assert report(sink)["seconds"] > 0.001  # from its first chunk on


@pytest.mark.parametrize(("folder", "size"), [("pictures", 5), ("others", 8)])
def test_another_job_under_the_id_of_an_earlier_one_is_refused(
    desk, pictures, sink, tmp_path, folder, size
):
    desk.run(pictures, sink)
    source = folder_of(tmp_path / folder)
    assert desk.run(source, sink, chunk_size=size, submitted_at=1.0) == ["refused"]
    assert "holds the papers of another job 'job'" in desk.status().reason


def test_of_two_jobs_that_come_to_a_folder_of_papers_at_once_one_is_refused(tmp_path, monkeypatch):
    place = Place(kind="parquet", where="/x")
    a, b = (JobSpec(id=id, source=place, sink=place, model="m") for id in "ab")
    papers, exists = Papers(tmp_path / "papers"), Path.exists

    def overtaken(path):
        monkeypatch.setattr(Path, "exists", exists)
        papers.begin(a)
        return False

    monkeypatch.setattr(Path, "exists", overtaken)
    with pytest.raises(JobRefused, match="holds the papers of another job 'a'"):
        papers.begin(b)
    assert papers.spec() == a


def test_unreadable_items_are_recorded_with_their_codes_and_can_be_retried(
    desk, pictures, sink, tmp_path
):
    whole = (tmp_path / "pictures" / "003.png").read_bytes()
    (tmp_path / "pictures" / "003.png").write_bytes(b"")
    desk.run(pictures, sink)
    assert (desk.status().done, desk.status().failed) == (19, 1)
    assert report(sink)["failure_codes"] == {"image_unreadable": 1}
    [failed] = report(sink)["failed_items"]
    assert (failed["id"], failed["code"]) == ("003.png", "image_unreadable")
    page = Path(sink.where, "_job-job/report.html").read_text()
    told = html.escape(f"003.png: {failed['message']}")
    assert f"What failed</h2>\n<table><tr><th>image_unreadable</th><td>{told}</td></tr>" in page

    (tmp_path / "pictures" / "003.png").write_bytes(whole)
    desk.rerun(RETRY_FAILED)
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)
    assert all(row["vector"] for row in rows(sink))


def test_pictures_in_files_and_shards_of_another_encoding_are_embedded(
    desk, pictures, sink, tmp_path
):
    folder, latin = tmp_path / "pictures", os.fsdecode(b"caf\xe9.png")
    (folder / "019.png").rename(folder / latin)
    desk.run(pictures, sink)
    assert (desk.status().done, desk.status().failed) == (20, 0)
    assert r"caf\xe9.png" in {row["id"] for row in rows(sink)}

    with tarfile.open(tmp_path / "s.tar", "w", encoding="utf-8") as shard:
        shard.add(folder / latin, latin)
    place = Place(kind="webdataset", where=str(tmp_path / "s.tar"))
    desk.run(place, sink, id="shards")
    assert r"s/caf\xe9" in {row["id"] for row in rows(sink)}


def test_a_chunk_of_which_nothing_was_kept_can_be_retried_in_a_database(desk, pictures, tmp_path):
    chunk = sorted((tmp_path / "pictures").iterdir())[:8]
    whole = [file.read_bytes() for file in chunk]
    for file in chunk:
        file.write_bytes(b"")
    desk.run(pictures, Place(kind="lancedb", where=str(tmp_path / "lance")))
    assert (desk.status().done, desk.status().failed) == (12, 8)

    for file, content in zip(chunk, whole, strict=True):
        file.write_bytes(content)
    desk.rerun(RETRY_FAILED)
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)


def test_a_retry_keeps_the_vectors_whose_pictures_have_gone(desk, pictures, sink, tmp_path):
    (tmp_path / "pictures" / "003.png").write_bytes(b"")
    desk.run(pictures, sink)
    before = {row["id"]: row["vector"] for row in rows(sink)}
    for file in (tmp_path / "pictures").glob("*.png"):
        file.unlink()
    desk.rerun(RETRY_FAILED)
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 19)
    assert {row["id"]: row["vector"] for row in rows(sink)} == before


@pytest.fixture(params=["image_unreachable", "image_forbidden", "image_missing"])
def code(request):
    """Why a store gives nothing: it is away, the worker may not open it, or it is not mounted."""
    return request.param


@pytest.fixture
def half_dead(tmp_path, pictures, store, keys, code):
    """A list whose first chunk can never be reached, and a worker that tries."""
    good = [str(file) for file in sorted((tmp_path / "pictures").iterdir())[:8]]
    (mount := tmp_path / "mount").mkdir()
    dead = mount / "x" if code == "image_missing" else "dead://x"
    (tmp_path / "list.txt").write_text("\n".join([*(f"{dead}/{n}.jpg" for n in range(8)), *good]))
    stores = ["dead://x/"] if code == "image_unreachable" else []
    with at_work(store, keys, tmp_path, image_stores=stores):
        yield Place(kind="list", where=str(tmp_path / "list.txt"))


def test_what_stays_out_of_reach_while_others_come_through_is_recorded(
    half_dead, store, keys, post, sink, code
):
    desk = Desk(store, keys, post)
    desk.submit(half_dead, sink)
    post.deliver()
    [dead, _] = post.sent
    assert [post.deliver(), post.deliver()] == ["trouble", "done"]
    post.sent.append(dead)
    post.deliver_all()
    status = desk.status()
    assert (status.state, status.done, status.failed) == (JobState.COMPLETE, 8, 8)
    assert report(sink)["failure_codes"] == {code: 8}


def test_a_job_that_was_resumed_records_what_is_still_out_of_reach(
    half_dead, store, keys, post, sink
):
    desk = Desk(store, keys, post)
    desk.submit(half_dead, sink, window=1, patience_s=0)
    assert [post.deliver(), post.deliver()] == ["done", "trouble"]
    assert desk.status().state is JobState.PAUSED
    desk.rerun(RESUME)
    status = desk.status()
    assert (status.state, status.done, status.failed) == (JobState.COMPLETE, 8, 8)


def test_a_folder_that_was_emptied_pauses_its_job_once(desk, post, pictures, sink, tmp_path):
    folder = tmp_path / "pictures"
    folder_of(folder, 40)
    desk.submit(pictures, sink, window=1, patience_s=0)
    post.deliver()
    for file in folder.iterdir():
        file.unlink()
    assert post.deliver_all() == ["trouble"]
    assert desk.status().state is JobState.PAUSED
    desk.do(RESUME)
    assert set(post.deliver_all()) == {"done"}
    assert (desk.status().state, desk.status().failed) == (JobState.COMPLETE, 40)


@pytest.mark.parametrize("kind", ["folder", "webdataset"])
def test_a_file_system_that_is_not_mounted_is_waited_for(
    desk, post, pictures, sink, tmp_path, kind
):
    folder, elsewhere = tmp_path / "pictures", tmp_path / "elsewhere"
    if kind == "webdataset":
        with tarfile.open(tmp_path / "0.tar", "w") as shard:
            shard.add(folder, "")
        for file in folder.iterdir():
            file.unlink()
        (tmp_path / "0.tar").rename(folder / "0.tar")
        pictures = Place(kind=kind, where=str(folder / "0.tar"))
    desk.submit(pictures, sink, patience_s=0)
    post.deliver()
    folder.rename(elsewhere)
    folder.mkdir()
    assert post.deliver() == "trouble"
    assert desk.status().reason == f"w@here: {str(folder)!r} is empty: is its file system mounted?"
    folder.rmdir()
    elsewhere.rename(folder)
    desk.rerun(RESUME)
    status = desk.status()
    assert (status.state, status.done, status.failed) == (JobState.COMPLETE, 20, 0)


def test_names_that_are_stale_hold_nobody_up(desk, pictures, sink, tmp_path):
    (tmp_path / "list.txt").write_text("".join(f"pictures/gone/{n}.png\n" for n in range(20)))
    assert set(desk.run(Place(kind="list", where=str(tmp_path / "list.txt")), sink)) == {"done"}
    assert (desk.status().state, desk.status().failed) == (JobState.COMPLETE, 20)


@pytest.fixture
def brief(store, keys, tmp_path):
    """A worker whose claims run out soon."""
    with at_work(store, keys, tmp_path, job_lease_s=0.3) as parts:
        yield parts


def test_a_step_may_take_longer_than_the_lease(
    store, keys, tmp_path, post, pictures, sink, monkeypatch
):
    desk, renew, renewed = Desk(store, keys, post), JobLedger.renew, Semaphore(0)

    def counted(ledger, claim):
        is_ours = renew(ledger, claim)
        renewed.release()
        return is_ours

    monkeypatch.setattr(JobLedger, "renew", counted)
    with at_work(store, keys, tmp_path, job_lease_s=1.0) as here:
        embed = here.batcher.embed
        desk.submit(pictures, sink, chunk_size=20)
        post.deliver()
        [chunk] = post.sent

        def slow(*args, **options):
            for _ in range(duty.RENEWALS + 2):
                assert renewed.acquire(timeout=20)
                desk.tend()
            assert post.sent == []
            post.sent.append(chunk)  # a twin of it, in the same process
            assert post.deliver() == "elsewhere"
            return embed(*args, **options)

        here.batcher.embed = slow
        assert post.deliver() == "done"
    assert desk.status().done == 20


def test_a_twin_in_the_same_process_takes_no_claim(here, store, keys, post, desk, pictures, sink):
    desk.submit(pictures, sink, chunk_size=20)
    post.deliver()
    [chunk], embed, said = post.sent[:], here.batcher.embed, []

    def overtaken(*args, **options):
        store.delete(keys.job_held("job"))  # the claim has run out, Redis having been away
        post.sent.append(chunk)
        said.append(post.deliver())
        assert not store.exists(keys.job_held("job"))
        return embed(*args, **options)

    here.batcher.embed = overtaken
    post.deliver()
    assert said == ["elsewhere"]


def test_a_worker_that_was_overtaken_leaves_alone_what_the_other_one_stored(
    here, desk, post, pictures, sink, tmp_path
):
    desk.submit(pictures, sink, chunk_size=20)
    post.deliver()
    embed = here.batcher.embed

    def overtaken(*args, **options):
        here.batcher.embed = embed
        job = duty.opened(here, "job")
        with here.suspects.begin("elsewhere", "by another worker") as start:
            duty.send(post, job.ledger, job.spec, job.ledger.finished(job.finish(0, bool, start)))
        assert set(post.deliver_all()) == {"done"}
        (tmp_path / "pictures" / "003.png").unlink()
        return embed(*args, **options)

    here.batcher.embed = overtaken
    post.deliver()
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)
    assert all(row["vector"] for row in rows(sink))
    assert not Papers(Path(sink.where, "_job-job")).marker(0).losses


def test_a_step_that_never_ends_keeps_its_claim_no_longer_than_any_may_run(
    brief, store, keys, post, pictures, sink, monkeypatch
):
    monkeypatch.setattr(duty, "LONGEST_RUN_S", 0.1)
    desk, embed = Desk(store, keys, post), brief.batcher.embed
    desk.submit(pictures, sink, chunk_size=20)
    post.deliver()

    def wedged(*args, **options):
        time.sleep(0.6)
        desk.tend()
        return embed(*args, **options)

    brief.batcher.embed = wedged
    post.deliver()
    assert [fields["what"] for _, fields, _ in post.sent][:1] == ["0"]


@pytest.fixture
def plan_for_long(brief, store, keys, post, pictures, sink, monkeypatch):
    """Plans a job for longer than any step may take; gives what comes of it.

    Its argument is what happens meanwhile.
    """
    monkeypatch.setattr(duty, "LONGEST_RUN_S", 0.1)
    walk = Folder.walk
    Desk(store, keys, post).submit(pictures, sink)

    def plan(meanwhile):
        def slowly(source):
            monkeypatch.setattr(Folder, "walk", walk)
            time.sleep(0.3)
            meanwhile()
            return walk(source)

        monkeypatch.setattr(Folder, "walk", slowly)
        return post.deliver()

    return plan


def test_a_planner_that_took_longer_than_any_may_leaves_a_job_alone_that_runs(
    plan_for_long, brief, store, keys, post, tmp_path
):
    desk = Desk(store, keys, post)

    def overtake():
        job = duty.opened(brief, "job")
        duty.send(post, job.ledger, job.spec, job.plan(lambda: None))  # by another worker
        (tmp_path / "pictures" / "000a.png").touch()

    assert plan_for_long(overtake) == "dropped"
    assert set(post.deliver_all()) == {"done"}
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)


@pytest.mark.parametrize("is_lost", [False, True])
def test_a_planner_that_took_longer_than_any_may_goes_on_while_the_job_waits_for_it(
    plan_for_long, store, keys, is_lost
):
    outcome = plan_for_long(lambda: is_lost and store.delete(keys.job("job")))
    assert outcome == ("dropped" if is_lost else "done")


def test_a_job_that_is_to_pause_at_a_failure_does(desk, pictures, sink, tmp_path):
    (tmp_path / "pictures" / "003.png").write_bytes(b"")
    desk.run(pictures, sink, on_failure="pause")
    status = desk.status()
    assert (status.state, status.failed) == (JobState.PAUSED, 1)
    assert "003.png" in status.reason
    desk.rerun(RESUME)
    assert desk.status().state is JobState.COMPLETE


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"kind": "folder", "where": "{}/nowhere"}, "there is no folder"),
        ({"kind": "folder", "where": "{}"}, "holds no items"),
        ({"kind": "folder", "where": "/etc"}, "not below an allowed folder"),
        ({"kind": "list", "where": "{}/twice.txt"}, "1 items have an id that another one has"),
        ({"kind": "telepathy", "where": "{}"}, "no sources of kind 'telepathy'"),
    ],
)
def test_a_source_that_cannot_be_used_ends_the_job_with_a_sentence(
    desk, sink, tmp_path, source, reason
):
    (tmp_path / "twice.txt").write_text("a\na\n")
    given = {name: value.format(tmp_path) for name, value in source.items()}
    assert desk.run(Place(**given), sink) == ["refused"]
    assert desk.status().state is JobState.FAILED
    assert reason in desk.status().reason


def test_a_name_of_another_encoding_may_stand_in_the_sentence_that_ends_a_job(desk, sink, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w", encoding="utf-8") as shard:
        for ending in (b"jpg", b"json"):
            member = tarfile.TarInfo(os.fsdecode(b"caf\xe9." + ending))
            member.size = 1
            shard.addfile(member, io.BytesIO(b"5"))
    assert desk.run(Place(kind="webdataset", where=str(tmp_path / "s.tar")), sink) == ["refused"]
    assert r"caf\xe9.json is no JSON object" in desk.status().reason


def test_a_sink_of_another_space_ends_the_job_with_the_way_out(desk, pictures, sink):
    desk.run(pictures, sink)
    assert desk.run(pictures, sink, id="job2", model="fake/b") == ["refused"]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"model": "fake/none"}, "no model 'fake/none'"),
        ({"model": "fake/sand"}, "made of sand"),
        ({"fingerprint": "another"}, "the job is in another"),
        ({"model": "fake/text"}, "does not embed images"),
    ],
)
def test_a_model_that_cannot_be_used_ends_the_job_with_a_sentence(
    store, keys, tmp_path, post, pictures, sink, given, reason
):
    entries = [
        Entry("fake/sand", backend="fake", options={"fail_load": "made of sand"}),
        Entry("fake/text", backend="fake", kinds=(Kind.TEXT,)),
    ]
    with at_work(store, keys, tmp_path, entries=entries):
        desk = Desk(store, keys, post)
        assert desk.run(pictures, sink, **given) == ["refused"]
        assert reason in desk.status().reason


def test_a_model_that_comes_to_answer_in_another_space_pauses_the_job_and_fails_no_item(
    store, keys, tmp_path, post, pictures, sink
):
    def pulled_anew(step):
        if step == "run":
            raise SpaceMismatch("it has other weights now")

    with at_work(
        store,
        keys,
        tmp_path,
        entries=[Entry("fake/moved", backend="fake", options={"before": pulled_anew})],
    ):
        desk = Desk(store, keys, post)
        desk.run(pictures, sink, model="fake/moved")
        status = desk.status()
        assert (status.state, status.failed) == (JobState.PAUSED, 0)
        assert "other weights" in status.reason


def test_a_manifest_that_was_changed_after_the_start_stops_the_job(desk, post, pictures, sink):
    desk.submit(pictures, sink)
    post.deliver()
    part = f"{sink.where}/_job-job/manifest/part-00000.jsonl"
    with open(part, "r+") as file:
        file.write("{")
        file.write("!")
    assert "trouble" in post.deliver_all()
    assert desk.status().state is JobState.PAUSED
    assert "was changed after the job started" in desk.status().reason


def test_a_full_disk_is_tried_again_and_then_pauses_the_job_with_the_reason(
    desk, post, pictures, sink, monkeypatch
):
    desk.submit(pictures, sink, patience_s=0)
    post.deliver()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(shards.parquet, "write_table", full)
        assert post.deliver() == "trouble"
    assert desk.status().state is JobState.PAUSED
    assert "No space left on device" in desk.status().reason
    assert set(post.deliver_all()) == {"stopped"}
    desk.rerun(RESUME)
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)


def test_what_a_plug_in_raises_need_not_say_anything(desk, post, pictures, sink, monkeypatch):
    class Wordless(Exception):
        def __str__(self):
            raise TypeError("it has no words for it")

    def failing(*_):
        raise Wordless

    desk.submit(pictures, sink)
    post.deliver()
    monkeypatch.setattr(shards.Parquet, "write", failing)
    assert post.deliver() == "trouble"
    assert desk.status().trouble == "w@here: internal error Wordless, see its log"


def test_for_a_sink_that_is_away_nothing_is_embedded_and_the_worker_is_named(
    desk, post, pictures, sink, monkeypatch, here
):
    desk.submit(pictures, sink)
    post.deliver()

    def away(*_):
        raise StoreDown("it does not answer")

    monkeypatch.setattr("worker.reembed.job.open_sink", away)
    monkeypatch.setattr(here.batcher, "embed", pytest.fail)
    assert post.deliver() == "trouble"
    assert desk.status().trouble == "w@here: it does not answer"


@pytest.mark.parametrize("kind", ["parquet", "npy"])
def test_a_folder_that_is_moved_away_is_waited_for_and_not_made_anew(
    desk, post, pictures, sink, tmp_path, monkeypatch, kind
):
    place, folder, elsewhere = sink.model_copy(update={"kind": kind}), tmp_path / "sink", "moved"
    desk.submit(pictures, place)
    assert [post.deliver(), post.deliver()] == ["done", "done"]
    embed = embedding.embed

    def moving(*given, **more):
        found = embed(*given, **more)
        folder.rename(tmp_path / elsewhere)
        return found

    with monkeypatch.context() as patched:
        patched.setattr("worker.reembed.job.embed", moving)
        assert [post.deliver(), post.deliver()] == ["trouble", "trouble"]
    assert (desk.status().state, folder.exists()) == (JobState.RUNNING, False)
    assert "is not here: bring it back if it was moved" in desk.status().trouble
    (tmp_path / elsewhere).rename(folder)
    desk.store.zadd(desk.keys.job_flight("job"), {"1": 0, "2": 0})  # the pauses are over
    desk.tend()
    post.deliver_all()
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)


def test_a_collection_that_was_deleted_is_made_again(desk, post, pictures, tmp_path):
    place = Place(kind="qdrant", where=str(tmp_path / "q"), options={"collection": "c"})
    desk.submit(pictures, place, patience_s=0)
    assert [post.deliver(), post.deliver()] == ["done", "done"]
    client, _ = qdrant._connected(place.where)
    client._client.collections["c"].close()  # which local mode forgets to do
    client.delete_collection("c")
    assert post.deliver() == "trouble"
    desk.rerun(RESUME)
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)


def test_a_job_file_of_an_older_version_is_refused(desk, post, pictures, sink, store, keys):
    desk.submit(pictures, sink)
    spec = json.loads(store.hget(keys.job("job"), "spec"))
    store.hset(keys.job("job"), "spec", json.dumps({**spec, "version": 0}))
    assert post.deliver_all() == ["unreadable"]
    store.hset(keys.job("job"), "spec", json.dumps(spec))
    assert desk.status().state is JobState.FAILED
    assert "an older version of Clipyard (job version 0" in desk.status().reason


def test_a_worker_that_cannot_read_a_job_that_has_begun_pauses_it(
    desk, post, pictures, sink, store, keys
):
    desk.submit(pictures, sink)
    post.deliver()
    spec = store.hget(keys.job("job"), "spec")
    store.hset(keys.job("job"), "spec", json.dumps({**json.loads(spec), "version": 0}))
    assert set(post.deliver_all()) == {"unreadable"}
    store.hset(keys.job("job"), "spec", spec)
    assert desk.status().state is JobState.PAUSED
    desk.rerun(RESUME)
    assert desk.status().state is JobState.COMPLETE
    store.hset(keys.job("job"), "spec", json.dumps({**json.loads(spec), "version": 0}))
    with pytest.raises(BadRequest, match="an older version of Clipyard"):
        duty.opened(runtime.here(), "job")
    store.hset(keys.job("job"), "spec", spec)
    assert desk.status().state is JobState.COMPLETE


def test_where_a_key_is_set_a_job_without_its_signature_is_refused(
    store, keys, tmp_path, post, pictures, sink
):
    with at_work(store, keys, tmp_path, signing_key="k" * 40) as parts:
        stranger = Desk(store, keys, post)
        stranger.submit(pictures, sink)
        assert post.sent == []
        assert stranger.status().state is JobState.FAILED
        assert "not signed" in stranger.status().reason
        Desk(store, keys, post, parts.settings).submit(pictures, sink)
        post.deliver_all()
        assert stranger.status().state is JobState.COMPLETE


def test_a_job_outlives_a_change_of_keys_only_where_its_own_is_still_accepted(
    store, keys, tmp_path, post, pictures, sink
):
    old, new = "o" * 40, "n" * 40
    with at_work(store, keys, tmp_path, signing_key=old) as parts:
        desk = Desk(store, keys, post, parts.settings)
        desk.submit(pictures, sink)
        post.deliver()
    with at_work(store, keys, tmp_path, signing_key=new):
        assert set(post.deliver_all()) == {"unreadable"}
        assert desk.status().state is JobState.PAUSED
        assert "CLIPYARD_OLD_SIGNING_KEY" in desk.status().reason
        with pytest.raises(NotSigned, match="CLIPYARD_OLD_SIGNING_KEY"):
            duty.opened(runtime.here(), "job")
    with at_work(store, keys, tmp_path, signing_key=new, old_signing_key=old):
        desk.rerun(RESUME)
        assert desk.status().state is JobState.COMPLETE


def test_a_worker_in_another_space_passes_the_chunk_on(
    desk, post, pictures, sink, here, store, keys
):
    desk.submit(pictures, sink)
    post.deliver()
    store.hset(keys.job("job"), "fingerprint", "another")
    Path(sink.where, "_space.json").unlink()  # the sink is of the job's space
    for node in ("w@here", "fit@there"):
        store.sadd(keys.workers, node)
        store.hset(keys.worker(node), "name", node)
    assert post.deliver() == "passed on"
    assert post.sent[-1][2] == names.direct_queue("fit@there")
    assert here.node in {name.decode() for name in store.smembers(keys.job_unfit("job"))}


def test_a_chunk_is_not_passed_on_to_a_worker_that_stops(desk, post, pictures, sink, store, keys):
    desk.submit(pictures, sink)
    post.deliver()
    store.hset(keys.job("job"), "fingerprint", "another")
    Path(sink.where, "_space.json").unlink()
    store.sadd(keys.workers, "fit@there")
    store.hset(keys.worker("fit@there"), "state", '"stopping"')
    assert post.deliver() == "trouble"


def test_of_many_workers_one_is_looked_at_to_pass_a_chunk_on(
    desk, post, pictures, sink, store, keys
):
    desk.submit(pictures, sink)
    post.deliver()
    store.hset(keys.job("job"), "fingerprint", "another")
    Path(sink.where, "_space.json").unlink()
    for number in range(100):
        store.sadd(keys.workers, f"fit@{number}")
        store.hset(keys.worker(f"fit@{number}"), "state", '"ready"')
    store.config_resetstat()
    assert post.deliver() == "passed on"
    assert store.info("commandstats")["cmdstat_hget"]["calls"] < 50


def test_a_job_whose_parts_another_chunk_throws_away_meanwhile_is_opened_all_the_same(
    desk, pictures, sink, monkeypatch
):
    class Cleared(dict):
        def __contains__(self, key):
            found = super().__contains__(key)
            self.clear()
            return found

    desk.submit(pictures, sink)
    monkeypatch.setattr(duty, "_open", Cleared())
    for _ in range(2):
        assert duty.opened(runtime.here(), "job").spec.id == "job"


def test_a_worker_keeps_the_connections_of_a_few_jobs(desk, pictures, sink, monkeypatch):
    monkeypatch.setattr(duty, "OPEN", 2)
    for job in "abc":
        desk.submit(pictures, sink, id=job)
    first, _, last = (duty.opened(runtime.here(), job) for job in "abc")
    assert duty.opened(runtime.here(), "c") is last
    assert duty.opened(runtime.here(), "a") is not first


def test_a_chunk_whose_marker_is_there_is_not_done_again(desk, post, pictures, sink, store, keys):
    desk.submit(pictures, sink)
    post.deliver()
    post.deliver()
    before = {row["id"]: row["vector"] for row in rows(sink)}
    # Redis comes back a second younger: it has forgotten the bit.
    store.delete(keys.job_done("job"))
    store.hset(keys.job("job"), mapping={"done": 0, "cursor": 0})
    store.delete(keys.job_flight("job"))
    runtime.here().catalogue = {}  # whoever embeds fails
    post.sent.clear()
    desk.tend()
    post.deliver()
    assert desk.status().done == len(before) == 8


def test_a_vector_that_went_missing_from_the_sink_is_found_and_made_again(
    desk, pictures, sink, tmp_path
):
    desk.run(pictures, sink)
    [first, *_] = sorted((tmp_path / "sink").glob("part-*.parquet"))
    first.unlink()
    desk.rerun(VERIFY)
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)
    assert first.exists()


@pytest.mark.parametrize("spoilt", [2.0, np.nan])
def test_a_vector_that_is_not_of_length_one_any_more_is_found_and_made_again(
    desk, pictures, sink, spoilt
):
    desk.run(pictures, sink)
    whole = rows(sink)
    [first, *_] = sorted(Path(sink.where).glob("part-*.parquet"))
    table = parquet.read_table(first)
    vectors = table["vector"].to_pylist()
    vectors[3] = [spoilt * value for value in vectors[3]]
    column = pa.array(vectors, table.schema.field("vector").type)
    at = table.schema.get_field_index("vector")
    parquet.write_table(table.set_column(at, table.schema.field(at), column), first)
    assert rows(sink) != whole
    desk.rerun(VERIFY)
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)
    assert rows(sink) == whole


def test_a_check_that_finds_one_vector_missing_keeps_the_others_whose_pictures_have_gone(
    desk, pictures, tmp_path
):
    place = Place(kind="qdrant", where=str(tmp_path / "q"), options={"collection": "c"})
    desk.run(pictures, place)
    for file in (tmp_path / "pictures").glob("*.png"):
        file.unlink()
    client, _ = qdrant._connected(place.where)
    client.delete("c", [qdrant.point_id("003.png")])
    desk.rerun(VERIFY)
    status = desk.status()
    assert (status.state, status.done, status.failed) == (JobState.COMPLETE, 19, 1)


def test_a_check_that_was_overtaken_by_one_that_had_chunks_done_again_ends_nothing(
    desk, here, post, pictures, sink, monkeypatch
):
    compare = check.compare
    monkeypatch.setattr("worker.reembed.job.REPAIRS", 1)

    def overtaken(*args, **options):
        found = compare(*args, **options)
        monkeypatch.setattr("worker.reembed.job.compare", compare)
        job = duty.opened(here, "job")
        duty.send(post, job.ledger, job.spec, job.check(lambda: None))  # by another worker
        assert post.deliver() == "done"
        return found

    monkeypatch.setattr("worker.reembed.job.compare", overtaken)
    desk.submit(pictures, sink, chunk_size=20)
    post.deliver()
    post.deliver()
    [file] = Path(sink.where).glob("*.parquet")
    file.unlink()
    post.deliver()
    assert desk.status().state is JobState.CHECKING
    post.deliver_all()
    assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)


def test_what_a_killed_writer_left_is_gone_when_the_job_is_over(desk, post, pictures, sink):
    desk.submit(pictures, sink)
    post.deliver()
    left = [temporary_for(Path(sink.where, at, "part-1")) for at in ("", "_job-job/chunks")]
    of_others = [Path(sink.where, at, ".tmp-notes") for at in ("", "_job-job/chunks")]
    for file in left + of_others:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    temporary_for(Path(sink.where, "of-somebody-else")).mkdir()
    post.deliver_all()
    assert desk.status().state is JobState.COMPLETE
    assert not any(file.exists() for file in left)
    assert all(file.exists() for file in of_others)


def test_a_job_that_ends_leaves_alone_what_another_one_plans_beside_it(desk, post, pictures, sink):
    def walk():
        yield from found[:9]
        assert set(post.deliver_all()) == {"done"}
        yield from found[9:]

    found = [Item(id=f"{n}", ref=f"/{n}.png") for n in range(20)]
    beside = Path(sink.where, "_job-other", "manifest")
    desk.submit(pictures, sink)
    assert list(manifest.write(beside, walk(), chunk_size=8)) == [20]
    assert desk.status().state is JobState.COMPLETE


def test_a_sink_that_loses_everything_ends_incomplete_and_says_what_is_missing(
    desk, pictures, sink, monkeypatch
):
    monkeypatch.setattr(shards.Parquet, "write", lambda self, shard: None)
    desk.run(pictures, sink)
    status = desk.status()
    assert status.state is JobState.INCOMPLETE
    assert status.reason == "20 items are neither in the sink nor recorded"
    assert len(report(sink)["missing_ids"]) == 20


def test_the_rate_does_not_hang_on_the_clocks_of_workers(
    desk, post, pictures, sink, monkeypatch, here
):
    late = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: late)
    desk.submit(pictures, sink, chunk_size=20)
    embed = here.batcher.embed

    def slow(*args, **options):
        time.sleep(0.05)
        return embed(*args, **options)

    here.batcher.embed = slow
    post.deliver_all()
    assert report(sink)["seconds"] >= 0.05


def test_what_is_there_and_what_is_missing_add_up(desk, pictures, sink, monkeypatch):
    write = shards.Parquet.write

    def without_the_third(self, shard):
        rows = [
            ImageMissing("") if item.id == "003.png" else row
            for item, row in zip(shard.chunk.items, shard.rows, strict=True)
        ]
        write(self, replace(shard, rows=rows))

    monkeypatch.setattr(shards.Parquet, "write", without_the_third)
    desk.run(pictures, sink)
    told, status = report(sink), desk.status()
    assert (told["vectors"], told["missing"], told["missing_ids"]) == (19, 1, ["003.png"])
    assert (status.done, status.reason) == (19, "1 items are neither in the sink nor recorded")


def test_an_item_that_the_sink_refuses_is_a_recorded_failure(desk, pictures, sink, monkeypatch):
    write, refused = shards.Parquet.write, {"003.png": ItemError("its id is too long")}

    def without_the_third(self, shard):
        pairs = zip(shard.chunk.items, shard.rows, strict=True)
        write(self, replace(shard, rows=[refused.get(item.id, row) for item, row in pairs]))
        return refused

    monkeypatch.setattr(shards.Parquet, "write", without_the_third)
    desk.run(pictures, sink)
    status = desk.status()
    assert (status.state, status.done, status.failed) == (JobState.COMPLETE, 19, 1)
    assert [told["message"] for told in report(sink)["failed_items"]] == ["its id is too long"]


def test_a_cancelled_job_is_done_no_further(desk, post, pictures, sink):
    desk.submit(pictures, sink)
    post.deliver()
    desk.do(CANCEL, "by hand", 1)
    assert set(post.deliver_all()) == {"stopped"}
    desk.tend()
    assert post.sent == []


def test_a_job_that_is_cancelled_while_it_is_checked_gets_no_report_that_says_complete(
    desk, pictures, sink, monkeypatch
):
    def compared(*given, **more):
        desk.do(CANCEL, "by hand", 1)
        return check.compare(*given, **more)

    monkeypatch.setattr(job_module, "compare", compared)
    desk.run(pictures, sink)
    assert desk.status().state is JobState.CANCELLED
    assert not Path(sink.where, "_job-job", "report.json").exists()


def test_while_redis_is_away_the_message_goes_back_to_its_queue(desk, post, pictures, sink, here):
    desk.submit(pictures, sink)
    here.redis = redis.Redis(port=1, retry=None)
    with pytest.raises(Reject):
        post.deliver()
    here.redis.close()


def test_a_stop_in_the_midst_of_a_slice_costs_a_chunk_none_of_its_tries(
    desk, post, pictures, sink, monkeypatch
):
    desk.submit(pictures, sink)
    post.deliver()
    sent, stopped = list(post.sent), []

    def canceller():
        stopped.append(Reason.SHUTDOWN)
        return lambda: Reason.SHUTDOWN

    with monkeypatch.context() as patch:
        patch.setattr(embedding, "canceller", canceller)
        patch.setattr(pool, "cancelled", lambda: next(iter(stopped), None))
        with pytest.raises(Reject) as rejected:
            post.deliver()
    assert rejected.value.requeue
    assert desk.store.hget(desk.keys.job("job"), "trouble") is None
    post.sent = sent
    assert set(post.deliver_all()) == {"done"}


def test_a_chunk_whose_place_was_taken_goes_back_before_it_is_begun_and_never_later(
    desk, post, pictures, sink, monkeypatch
):
    def give_way():
        raise Reject("others have its place", requeue=True)

    asked = []
    monkeypatch.setattr(embedding, "SLICE", 8)
    desk.submit(pictures, sink, chunk_size=20)
    post.deliver()
    [chunk] = post.sent
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "give_way", give_way)
        with pytest.raises(Reject):
            post.deliver()
    post.sent.append(chunk)
    monkeypatch.setattr(embedding, "give_way", lambda: asked.append("before its first slice"))
    post.deliver_all()
    assert desk.status().state is JobState.COMPLETE
    assert len(asked) == 1


def test_texts_are_embedded_and_those_that_are_none_recorded(desk, sink, tmp_path, caplog):
    (tmp_path / "t.jsonl").write_text('{"text": "a dog"}\n{"text": " "}\n{"text": "\\ud83d"}\n')
    desk.run(Place(kind="texts", where=str(tmp_path / "t.jsonl")), sink)
    assert [row["error"] for row in rows(sink)] == [None, "text_invalid", "text_invalid"]
    assert not [record for record in caplog.records if record.exc_info]


def test_texts_of_like_length_are_embedded_together_and_stored_in_their_order(
    here, desk, sink, tmp_path, monkeypatch
):
    slices, embed = [], here.batcher.embed

    def seen(model, kind, items, *rest, **given):
        slices.append([len(item.text) for _, item in items])
        return embed(model, kind, items, *rest, **given)

    monkeypatch.setattr(embedding, "SLICE", 3)
    monkeypatch.setattr(here.batcher, "embed", seen)
    lengths = [5, 80, 7, 90, 6, 70]
    lines = (json.dumps({"text": "a" * length}) for length in lengths)
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    desk.run(Place(kind="texts", where=str(tmp_path / "t.jsonl")), sink)
    assert slices == [[90, 80, 70], [7, 6, 5]]
    assert [row["id"] for row in rows(sink)] == [f"t.jsonl:{n}" for n in range(1, 7)]


def test_chunks_that_begin_together_share_a_sink(desk, post, pictures, sink, monkeypatch):
    desk.submit(pictures, sink)
    post.deliver()
    duty._open.clear()  # as after a start
    made, make, together = [], job_module.open_sink, Barrier(4)

    def slowly(*arguments):
        time.sleep(0.05)  # as a database that is far away
        made.append(make(*arguments))
        return made[-1]

    def chunk(what):
        together.wait()
        return duty.opened(runtime.here(), "job").sink

    monkeypatch.setattr(job_module, "open_sink", slowly)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(chunk, range(4))) == set(made)
    assert len(made) == 1


def test_a_device_that_is_lost_while_redis_is_away_ends_its_worker(
    keys, post, pictures, sink, tmp_path, valkey_of_my_own
):
    def work(*_):
        valkey_of_my_own.stop()
        raise DeviceLost("it fell off the bus")

    settings = Settings.read(redis_url=valkey_of_my_own.url)
    with (
        redis_client(settings, patience_s=0) as store,
        at_work(store, keys, tmp_path) as parts,
    ):
        Desk(store, keys, post).submit(pictures, sink)
        post.deliver()
        with pytest.raises(Reject):
            duty.do(post, "job", "0", JobState.RUNNING, sent_at=time.time(), work=work)
    assert parts.ends == ["it fell off the bus"]


def test_a_failure_that_is_told_with_half_a_character_is_recorded(
    desk, pictures, sink, monkeypatch
):
    def fetch(self, item):
        raise ItemError("it is called \ud83d")

    monkeypatch.setattr(Folder, "fetch", fetch)
    desk.run(pictures, sink)
    assert desk.status().failed == 20
    assert report(sink)["failed_items"][0]["message"] == r"it is called \ud83d"


def test_texts_that_were_cut_are_counted_over_all_rounds(desk, post, sink, tmp_path):
    texts = ["a dog", " ", "a dog " * 100, "a cat " * 100]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    desk.submit(Place(kind="texts", where=str(tmp_path / "t.jsonl")), sink)
    for _ in range(2):
        post.deliver_all()
        assert (report(sink)["cut_texts"], desk.status().cut) == (2, 2)
        assert desk.do(RETRY_FAILED)


@pytest.mark.parametrize(
    ("gone", "script"), [(1, VERIFY), (3, RETRY_FAILED)], ids=["check", "retry"]
)
def test_texts_that_were_cut_are_counted_once_when_one_of_a_chunk_is_done_again(
    desk, tmp_path, gone, script
):
    texts = ["a dog", " ", "a dog " * 100, "a cat " * 100]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    place = Place(kind="lancedb", where=str(tmp_path / "lance"), options={"table": "t"})
    desk.run(Place(kind="texts", where=str(tmp_path / "t.jsonl")), place)
    lancedb.connect(place.where).open_table("t").delete(f"id = 't.jsonl:{gone}'")
    desk.rerun(script)
    assert lancedb.connect(place.where).open_table("t").count_rows() == 3
    assert (desk.status().state, desk.status().cut) == (JobState.COMPLETE, 2)


def test_a_retry_adds_to_the_cut_texts_of_markers_that_do_not_say_which(desk, sink, tmp_path):
    texts = ["a dog", " ", "a dog " * 100, "a cat " * 100]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    desk.run(Place(kind="texts", where=str(tmp_path / "t.jsonl")), sink)
    [file] = tmp_path.rglob("chunks/*/*.json")
    told = json.loads(file.read_text())
    del told["cut_rows"]
    file.write_text(json.dumps(told))
    desk.rerun(RETRY_FAILED)
    assert desk.status().cut == 2


def test_a_chunk_that_a_check_wants_again_keeps_its_losses(desk, post, pictures, tmp_path):
    place = Place(kind="lancedb", where=str(tmp_path / "lance"), options={"table": "t"})
    desk.submit(pictures, place, id="before")  # its vector of what cannot be read any more stays
    post.deliver_all()
    (tmp_path / "pictures" / "003.png").write_bytes(b"")
    desk.run(pictures, place)
    lancedb.connect(place.where).open_table("t").delete("id = '004.png'")
    desk.rerun(VERIFY)
    status = desk.status()
    assert (status.state, status.done, status.failed) == (JobState.COMPLETE, 19, 1)


def test_markers_of_other_versions_are_read_by_the_fields_that_both_know(tmp_path):
    papers = Papers(tmp_path)
    loss = Loss(row=1, id="b", code="image_missing", message="gone")
    papers.mark(Marker(0, 2, (loss,), 0, "gpu0@a", 1.0, {}, cut=1, cut_rows=(0,)))
    [file] = tmp_path.rglob("*.json")
    told = json.loads(file.read_text())
    del told["cut_rows"]  # as the first that counted them wrote it
    file.write_text(json.dumps(told | {"of_a_newer_one": 7}))
    marker = papers.marker(0)
    assert (marker.losses, marker.cut, marker.cut_rows) == ((loss,), 1, ())


def test_a_chunk_that_is_to_be_done_again_has_no_marker_that_earlier_versions_take_for_its_end(
    tmp_path,
):
    papers = Papers(tmp_path)
    loss = Loss(row=1, id="b", code="image_missing", message="gone")
    for number, (losses, rows) in enumerate((((), ()), ((), (3,)), ((loss,), ()))):
        marker = Marker(number, 4, losses, 0, "gpu0@a", 1.0, {}, cut=len(rows), cut_rows=rows)
        papers.mark(marker)
        papers.reopen(number)
    assert papers.marker(0) is None
    assert (papers.marker(1).round, papers.marker(1).cut_rows) == (REOPENED, [3])
    assert (papers.marker(2).round, papers.marker(2).losses) == (REOPENED, (loss,))


def test_who_tries_failed_items_again_is_told_to_have_done_no_others(
    here, desk, pictures, sink, tmp_path
):
    (tmp_path / "pictures" / "003.png").write_bytes(b"")
    desk.run(pictures, sink)
    desk.rerun(RETRY_FAILED)
    assert desk.status().workers == {here.node: 20 + 1}


def test_a_table_whose_compaction_was_overtaken_is_compacted_at_the_end(
    desk, pictures, tmp_path, monkeypatch
):
    monkeypatch.setattr(lance, "COMPACTED_EVERY", 1000)
    place = Place(kind="lancedb", where=str(tmp_path / "lance"), options={"table": "t"})
    desk.run(pictures, place)
    table = lancedb.connect(place.where).open_table("t")
    assert table.stats()["fragment_stats"]["num_fragments"] == 1
    assert table.count_rows() == 20


def test_shares_of_two_jobs_take_turns(desk, post, pictures, tmp_path):
    for job in ("job", "job2"):
        place = Place(kind="parquet", where=str(tmp_path / job))
        desk.submit(pictures, place, id=job, chunk_size=2, window=2)
    order = []
    while post.sent:
        if post.sent[0][0] == names.JOB_CHUNK:
            order.append(post.sent[0][1]["job"])
        post.deliver()
    halves = order[: len(order) // 2], order[len(order) // 2 :]
    assert all(abs(half.count("job") - half.count("job2")) <= 2 for half in halves)


def test_a_migration_says_how_much_moved_and_switches_there_and_back(desk, pictures, tmp_path):
    old = Place(kind="parquet", where=str(tmp_path / "old"))
    new = Place(kind="parquet", where=str(tmp_path / "new"))
    desk.run(pictures, old, id="first")
    source = Place(kind="collection", where=old.where, options={"store": "parquet"})
    migration = {"alias": "live", "old": old.model_dump()}
    desk.run(source, new, model="fake/b", migration=migration)
    assert desk.status().state is JobState.COMPLETE

    moved = report(new)["moved"]
    assert (moved["sample"], moved["pool"]) == (20, 20)
    assert 0.0 <= moved["overlap_at_10"] <= 1.0
    assert (tmp_path / "new" / "_job-job" / "moved.png").exists()
    live = tmp_path / "live"
    told = []
    for to in ("old", "new", "old"):
        changed, sentence = switched(duty.opened(runtime.here(), "job"), to)
        assert changed
        assert live.resolve() == tmp_path / to
        told.append(sentence)
    assert told[1] == f"live leads to {tmp_path}/new now, before to {tmp_path}/old"
    assert np.isfinite([row["vector"] for row in rows(new)]).all()


@pytest.mark.parametrize("opened", [True, False])
def test_a_migration_waits_for_no_source_only_to_draw_it(
    desk, post, tmp_path, monkeypatch, caplog, opened
):
    """Also not on a worker that has not opened it before: some drivers connect at once."""

    def away(*_):
        raise StoreDown("it is away")

    pictures = folder_of(tmp_path / "pictures", count=2)
    old, new = (Place(kind="parquet", where=str(tmp_path / name)) for name in ("old", "new"))
    desk.run(pictures, old, id="first")
    desk.submit(pictures, new, migration={"alias": "live", "old": old.model_dump()})
    while names.JOB_CHECK not in [name for name, _, _ in post.sent]:
        post.deliver()
    monkeypatch.setattr(Folder, "fetch", away)
    if not opened:
        monkeypatch.setattr(job_module, "open_source", away)
        monkeypatch.setattr(duty, "_open", {})
    post.deliver_all()
    assert desk.status().state is JobState.COMPLETE
    assert report(new)["moved"]["sample"] == 2
    assert (tmp_path / "new" / "_job-job" / "moved.png").exists()
    assert caplog.text.count("not all pictures of what moved are drawn: it is away") == 1


def test_a_migration_waits_for_no_slow_source_only_to_draw_it(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(neighbours, "DRAWING_S", -1)
    pictures = folder_of(tmp_path / "pictures", count=2)
    old, new = (Place(kind="parquet", where=str(tmp_path / name)) for name in ("old", "new"))
    desk.run(pictures, old, id="first")
    desk.run(pictures, new, migration={"alias": "live", "old": old.model_dump()})
    assert desk.status().state is JobState.COMPLETE
    with Image.open(tmp_path / "new" / "_job-job" / "moved.png") as sheet:
        colours = sheet.convert("RGB").getcolors()
    assert {colour for _, colour in colours} == {
        ImageColor.getrgb(neighbours.GREY),
        (255, 255, 255),
    }


@pytest.mark.parametrize(("kind", "folder"), [("parquet", "new"), ("lancedb", "new.lance")])
def test_no_name_is_led_to_a_collection_that_has_gone_since_it_was_complete(
    desk, pictures, tmp_path, kind, folder
):
    def place(name):
        if kind == "parquet":
            return Place(kind=kind, where=str(tmp_path / name))
        return Place(kind=kind, where=str(tmp_path), options={"table": name})

    desk.submit(pictures, place("old"), id="first")
    migration = {"alias": "live", "old": place("old").model_dump()}
    desk.run(pictures, place("new"), migration=migration)
    assert desk.status().state is JobState.COMPLETE
    (tmp_path / folder).rename(tmp_path / "elsewhere")
    duty._open.clear()  # another process is asked
    with pytest.raises(JobRefused, match=r"is no folder that a job wrote|there is no table new"):
        switched(duty.opened(runtime.here(), "job"), "new")
    assert not list(tmp_path.glob("live*"))


def test_a_migration_whose_old_collection_has_none_of_its_items_reports_no_neighbours(
    desk, pictures, tmp_path
):
    old = Place(kind="parquet", where=str(tmp_path / "old"))
    new = Place(kind="parquet", where=str(tmp_path / "new"))
    desk.run(folder_of(tmp_path / "others", 1), old, id="first")
    desk.run(pictures, new, migration={"alias": "live", "old": old.model_dump()})
    assert desk.status().state is JobState.COMPLETE
    assert report(new)["moved"] is None
    assert "neighbours" not in (tmp_path / "new" / "_job-job" / "report.html").read_text()


@pytest.mark.parametrize("step", ["planned", "reopen"])
def test_a_plan_or_a_check_whose_job_was_paused_meanwhile_begins_again_once_it_is_resumed(
    desk, post, pictures, sink, monkeypatch, step
):
    real = getattr(JobLedger, step)

    def after_a_pause(ledger, *given, **more):
        ledger.pause("by hand")
        return real(ledger, *given, **more)

    desk.submit(pictures, sink)
    with monkeypatch.context() as patch:
        patch.setattr(JobLedger, step, after_a_pause)
        while desk.status().state is not JobState.PAUSED:
            if desk.status().state is JobState.CHECKING:
                for file in Path(sink.where).glob("part-*"):
                    file.unlink()
            post.deliver()
    desk.do(RESUME)
    assert set(post.deliver_all()) == {"done"}
    assert desk.status().state is JobState.COMPLETE


def test_a_migration_whose_old_collection_cannot_be_read_is_not_complete_without_a_comparison(
    desk, post, pictures, sink, tmp_path
):
    old = Place(kind="parquet", where=str(tmp_path / "old"))
    desk.run(pictures, old, id="first")
    desk.submit(pictures, sink, migration={"alias": "live", "old": old.model_dump()})
    while desk.status().state is not JobState.CHECKING:
        post.deliver()
    Path(old.where).rename(tmp_path / "elsewhere")
    post.deliver_all()
    assert desk.status().state is JobState.PAUSED
    assert "no folder that a job wrote" in desk.status().reason


def test_a_migration_can_be_tried_and_checked_again_when_its_old_collection_has_gone(
    desk, post, pictures, sink, tmp_path
):
    old = Place(kind="parquet", where=str(tmp_path / "old"))
    desk.run(pictures, old, id="first")
    Path(pictures.where, "999.png").write_bytes(b"no picture")
    desk.run(pictures, sink, migration={"alias": "live", "old": old.model_dump()})
    Path(old.where).rename(tmp_path / "elsewhere")
    for script in (RETRY_FAILED, VERIFY):
        desk.do(script)
        assert set(post.deliver_all()) == {"done"}
        assert (desk.status().state, desk.status().done) == (JobState.COMPLETE, 20)
    assert report(sink)["moved"] is None


@pytest.mark.parametrize(
    ("old", "reason"), [("nowhere", "is no folder that a job wrote"), ("old", "move it aside")]
)
def test_what_a_switch_will_lack_ends_a_migration_before_it_begins(
    desk, pictures, tmp_path, old, reason
):
    desk.run(pictures, Place(kind="parquet", where=str(tmp_path / "old")), id="first")
    new = Place(kind="parquet", where=str(tmp_path / "new"))
    place = {"kind": "parquet", "where": str(tmp_path / old)}
    assert desk.run(pictures, new, migration={"alias": "old", "old": place}) == ["refused"]
    assert reason in desk.status().reason
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "1", "ref": "", "features": [1.0]}, "'vector'; it has id, ref, features"),
        ({"key": "1", "vector": [1.0]}, "'id'; it has key, vector"),
    ],
)
def test_an_old_table_whose_vectors_nobody_could_compare_ends_a_migration_before_it_begins(
    desk, pictures, tmp_path, row, said
):
    lancedb.connect(tmp_path).create_table("old", [row])
    old = {"kind": "lancedb", "where": str(tmp_path), "options": {"table": "old"}}
    new = Place(kind="lancedb", where=str(tmp_path), options={"table": "new"})
    assert desk.run(pictures, new, migration={"alias": "live", "old": old}) == ["refused"]
    assert f"has no column {said}" in desk.status().reason


@pytest.mark.parametrize(
    ("kind", "where", "options"), [("parquet", "live", {}), ("qdrant", "q", {"collection": "live"})]
)
def test_a_sink_that_takes_the_name_of_its_migration_ends_it_before_it_begins(
    desk, pictures, tmp_path, kind, where, options
):
    new = Place(kind=kind, where=str(tmp_path / where), options=options)
    old = {"kind": "parquet", "where": str(tmp_path / "old")}
    desk.run(pictures, Place(**old), id="first")
    assert desk.run(pictures, new, migration={"alias": "live", "old": old}) == ["refused"]
    assert "the sink needs a name of its own" in desk.status().reason


def test_a_job_that_is_no_migration_has_nothing_to_switch(desk, pictures, sink):
    desk.submit(pictures, sink)
    with pytest.raises(BadRequest, match="is no migration"):
        switched(duty.opened(runtime.here(), "job"), "new")


def test_a_migration_that_is_not_complete_is_not_switched(desk, pictures, sink, tmp_path):
    old = {"kind": "parquet", "where": str(tmp_path / "old")}
    desk.submit(pictures, sink, migration={"alias": "live", "old": old})
    with pytest.raises(BadRequest, match="is planning: switch when it is complete"):
        switched(duty.opened(runtime.here(), "job"), "new")


def killing(colour):
    """A model that takes its process down over one picture."""
    return Entry("fake/killing", backend="fake", options={"lose_on": colour})


def delivered(here, desk, post):
    """Has everything done, by as many processes as that takes; gives how many died."""
    while post.sent:
        try:
            post.deliver()
        except Reject:
            here.start_again()
            desk.tend()
    return len(here.ends)


def test_a_picture_that_alone_takes_two_workers_down_is_a_recorded_failure_and_its_mates_are_done(
    store, keys, tmp_path, post, pictures, sink
):
    with at_work(store, keys, tmp_path, entries=[killing("#0d0d0d")]) as here:
        desk = Desk(store, keys, post)
        desk.submit(pictures, sink, model="fake/killing")
        assert delivered(here, desk, post) == 3
        status = desk.status()
        assert (status.state, status.done, status.failed) == (JobState.COMPLETE, 19, 1)
        assert report(sink)["failure_codes"] == {"quarantined": 1}
        [kept] = store.hvals(keys.quarantine)
        evidence = Evidence.model_validate_json(kept)
        assert evidence.id == "job/1#5"
        assert evidence.items[0].endswith("013.png")
        assert [crash.place for crash in evidence.crashes] == [(0, 8), (5, 6), (5, 6)]
        assert not store.keys(keys.started("*"))


def test_a_chunk_whose_workers_die_of_no_item_pauses_the_job_and_resumes_by_hand(
    here, desk, post, pictures, sink, store, keys
):
    desk.submit(pictures, sink)
    post.deliver()  # the plan
    for at in range(duty.CRASHES):
        note = Crash(worker="w@here", at=at).model_dump_json()
        store.hset(keys.started("job/0"), f"w@here {at}", note)
    assert post.deliver() == "paused"
    assert "no item is to blame" in desk.status().reason
    post.deliver_all()
    desk.rerun(RESUME)
    assert desk.status().state is JobState.COMPLETE
