import asyncio
import gc
import importlib.util
import itertools
import json
import os
import pickle
import queue
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import redis
from celery.worker.state import revoked
from kombu.exceptions import OperationalError

from api_client import Client, embedding, requests, talks, vigil
from api_client.aio import AsyncClient
from api_client.client import Seats
from api_client.desk import Desk
from api_client.results import ItemsFailed, matrix
from api_client.steps import Pause
from api_client.talks import Answer, Call, Line
from api_client.testing import MODELS, NODE, FakeClient, FakeWorker
from api_client.vigil import FRESH_S, SEARCH_EVERY, STALE_S, Roll, Vigil
from api_client.wire import names
from api_client.wire.codec import pack_answer, pack_record
from api_client.wire.errors import (
    BadRequest,
    Cancelled,
    ClipyardError,
    ImageMissing,
    ImageUnreadable,
    LoadFailed,
    NoAnswer,
    NoBroker,
    NoWorker,
    UnknownModel,
)
from api_client.wire.jobs import JobSpec, Place
from api_client.wire.messages import EmbedBatch, Embedded, Load, Managed, ModelStatus, WorkerStatus
from api_client.wire.names import Keys
from api_client.wire.settings import Settings
from tests.flow.processes import until

TEXTS = [f"text {i}" for i in range(9)]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(talks, "SLICE_S", 0.05)


def test_rows_come_in_the_order_of_many_messages(stage, client):
    told = []
    with stage.worker():
        rows = client.embed_texts(TEXTS, progress=told.append)
        backwards = client.embed_texts(TEXTS[::-1], batch_size=9)
    assert rows.shape == (9, 16)
    assert np.array_equal(rows, backwards[::-1])
    assert told == [2, 2, 2, 2, 1]
    assert np.allclose(np.linalg.norm(rows, axis=1), 1)


def test_texts_of_like_length_travel_together_and_come_back_in_order(stage, client):
    texts = ["a" * length for length in (3, 50, 1, 40, 2, 60)]
    with stage.worker():
        items = client.embed_texts_detailed(texts)
        alone = [client.embed_texts(text)[0] for text in texts]
    assert [item.vector.tolist() for item in items] == [row.tolist() for row in alone]
    lengths = [[len(text) for text in request.texts] for request in stage.requests[:3]]
    assert sorted(lengths) == [[2, 1], [40, 3], [60, 50]]


def test_pictures_go_by_path_url_and_value(stage, client, tmp_path):
    not_utf8 = tmp_path / "caf\udce9.jpg"
    not_utf8.write_bytes(b"bytes")
    with stage.worker():
        rows = client.embed_images(["a.jpg", "https://x/b.jpg", b"bytes", b"bytes", not_utf8])
    assert np.array_equal(rows[2], rows[3])
    assert np.array_equal(rows[2], rows[4])
    assert len({row.tobytes() for row in rows}) == 3


def test_no_items_are_no_rows_of_the_models_dimension(stage, client):
    stage.show_worker()
    assert client.embed_images([]).shape == (0, 16)
    assert client.embed_texts([], model="fake/large").shape == (0, 64)
    assert client.embed_texts([], model="auto").shape == (0, 16)
    assert client.embed_images_detailed([]) == []


def test_one_bad_item_costs_one_item(stage, client):
    stage.failing["text 3"] = ImageMissing("gone")
    with stage.worker():
        items = client.embed_texts_detailed(TEXTS)
        with pytest.raises(ItemsFailed, match="1 of 9 items failed, the first at 3: gone"):
            client.embed_texts(TEXTS)
    assert [item.vector is None for item in items] == [i == 3 for i in range(9)]


def test_a_picture_that_cannot_be_had_here_costs_one_item(stage, client, tmp_path):
    pictures = [b"one", tmp_path / "caf\udce9.jpg", np.zeros((0, 2, 3), np.uint8), b"two"]
    with stage.worker():
        items = client.embed_images_detailed(pictures)
        submitted = client.submit_images(pictures).wait(timeout=20)
    for found in (items, submitted):
        assert [type(item.error) for item in found[1:3]] == [ImageMissing, ImageUnreadable]
        assert [item.vector is None for item in found] == [False, True, True, False]
    assert "caf" in str(items[1].error)


def test_a_whole_refusal_is_raised_as_what_it_was(stage, client):
    with stage.worker(), pytest.raises(UnknownModel, match="no model 'x/y'"):
        client.embed_texts(TEXTS, model="x/y")


def test_a_stream_reads_its_source_a_window_ahead(stage, client):
    read = []

    def source():
        for i in range(100):
            read.append(i)
            yield f"{i}.jpg"

    with stage.worker():
        stream = client.stream_images(source())
        next(stream)
        window = stage.settings.in_flight * stage.settings.chunk_size
        assert len(read) <= window + stage.settings.chunk_size
        stream.close()


def test_a_message_has_the_time_of_those_of_its_call_that_are_before_it(stage, client):
    # With a large model on a CPU the eighth was given up while the first ones were at work.
    with stage.worker():
        client.embed_texts(TEXTS[:1] * 6, timeout=1000)
    first, *others = sorted(request.deadline for request in stage.requests)
    assert [deadline - first for deadline in others] == pytest.approx([1000, 2000], abs=500)


def test_a_redis_that_is_silent_is_given_up_on_soon_and_told_nothing_twice(
    valkey_of_my_own, prefix, connect, monkeypatch
):
    pauses: list[float] = []

    async def pause(seconds):
        pauses.append(seconds)

    monkeypatch.setattr("redis.retry.sleep", pauses.append)
    monkeypatch.setattr("redis.asyncio.retry.sleep", pause)
    monkeypatch.setattr("api_client.wire.broker.SILENT_S", 0.05)
    for client in ("client", "aio"):  # time for one more try
        monkeypatch.setattr(f"api_client.{client}.PATIENCE_S", 0.2)
    client = connect(Settings.read(redis_url=valkey_of_my_own.url, key_prefix=prefix))

    def is_answered():
        with suppress(NoBroker):  # so hasty a client may give up on a server that is only busy
            return client.jobs() == []

    until(is_answered)  # what a connection begins with has been said
    with valkey_of_my_own.silent():
        with pytest.raises(NoBroker, match="is it running"):
            client.submit_texts(["a"], model="fake/vision")
        with pytest.raises(NoBroker, match="is it running"):  # over a new connection
            client.jobs()
    assert not pauses
    until(is_answered)
    queue = Keys(prefix).queue(names.EMBED, names.INTERACTIVE)
    with redis.Redis.from_url(valkey_of_my_own.url) as store:
        assert store.llen(queue) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.embed_texts(["a"], model="fake/small"),
        lambda c: list(c.stream_images(["a.jpg"], model="fake/small")),
        lambda c: c.submit_texts(["a"], model="fake/small"),
        lambda c: c.load("fake/small", workers=[NODE]),
    ],
)
def test_a_redis_that_was_lost_is_not_waited_for_again_to_withdraw(
    stage, connect, monkeypatch, call
):
    def lose(*_, **__):
        yield lambda client: client.ping()
        raise NoBroker("lost")

    withdrawn = []
    monkeypatch.setattr(Line, "wait", lose)
    monkeypatch.setattr(Line, "submit", lose)
    monkeypatch.setattr(Line, "withdraw", lambda _, ids: iter(withdrawn.append(ids) or ()))
    stage.show_worker()
    with pytest.raises(NoBroker, match="lost"):
        call(connect(stage.settings))
    assert not withdrawn


@pytest.mark.parametrize("error", [redis.ConnectionError("theirs"), OperationalError("theirs")])
@pytest.mark.parametrize(
    "call", [lambda c, them: c.embed_images(them), lambda c, them: list(c.stream_images(them))]
)
def test_what_the_callers_own_source_raises_comes_out_as_it_is(client, call, error):
    def source():
        yield "a.jpg"
        raise error

    with pytest.raises(type(error)) as raised:
        call(client, source())
    assert raised.value is error


@pytest.fixture
def be_away(monkeypatch):
    """For so many seconds, as a stream sees it; with what is done meanwhile."""
    away_s = [0.0]
    clock = SimpleNamespace(time=lambda: time.time() + away_s[0], monotonic=time.monotonic)
    for module in (embedding, requests):
        monkeypatch.setattr(module, "time", clock)

    def be_away(seconds):
        away_s[0] += seconds

    return be_away


@pytest.mark.parametrize("who", ["taker", "progress", "source"])
@pytest.mark.parametrize("seconds", [70, 1000])  # past the deadlines; past what answers live
def test_what_expired_while_somebody_was_away_is_asked_anew(stage, client, be_away, who, seconds):
    pictures = [f"{letter}.jpg" for letter in "abcdefgh"]
    answers = stage.keys.answer("*")
    returns = iter([False])

    def away(*_):
        if next(returns, True):  # from then on
            return
        until(lambda: len(stage.store.keys(answers)) >= (1 if who == "source" else 3))
        stage.store.delete(*stage.store.keys(answers))
        be_away(seconds)

    def source():
        yield from pictures[:6]
        away()
        yield from pictures[6:]

    options = {"progress": away} if who == "progress" else {}
    with stage.worker():
        given = source() if who == "source" else pictures
        stream = iter(client.stream_images(given, timeout=20, **options))
        items = [next(stream), next(stream)]
        if who == "taker":
            away()
        items += stream
    assert np.array_equal(matrix(items), FakeClient().embed_images(pictures))
    if who != "source":
        assert len(set(stage.published)) == 6  # the two that had gone twice


def test_what_is_late_only_while_nobody_takes_items_keeps_its_turn(
    stage, connect, monkeypatch, be_away
):
    frame, is_asked = FakeWorker.frame, threading.Event()

    def late(self, request, blobs):
        if request.images[0].path.endswith("c.jpg"):
            is_asked.wait(20)
        return frame(self, request, blobs)

    monkeypatch.setattr(FakeWorker, "frame", late)
    pictures = [f"{letter}.jpg" for letter in "abcdefgh"]
    with stage.worker():
        stream = iter(connect(stage.settings).stream_images(pictures, timeout=900))
        items = [next(stream), next(stream)]
        be_away(stage.settings.answer_ttl_s * 0.6)
        threading.Timer(0.2, is_asked.set).start()
        items += stream
    assert len(items) == 8
    assert len(stage.published) == 4


@pytest.mark.parametrize(("seconds", "on_the_way"), [(0, 3), (200, 2), (400, 1)])
def test_as_many_are_on_the_way_as_their_answers_outlast(
    stage, client, be_away, seconds, on_the_way
):
    read = []

    def source():
        for number in range(20):
            read.append(number)
            yield f"{number}.jpg"

    with stage.worker():
        stream = iter(client.stream_images(source()))
        for _ in range(2):
            next(stream), next(stream)
            be_away(seconds)
        next(stream)
        del stream
    assert len(read) == 2 * (2 + on_the_way + 1)  # it reads a message ahead


def test_messages_that_follow_a_choice_ask_for_no_other_kind_and_tell_of_it(stage, client):
    with stage.worker():
        items = client.embed_images_detailed(list("abcdef"), model="auto", also="text")
    first, *others = [(request.model, request.also) for request in stage.requests]
    assert first == ("auto", "text")
    assert others == [(items[0].model, None)] * 2
    assert [item.chosen for item in items] == ["fake/small embeds images and texts"] * 6


def test_an_impossible_stream_is_refused_before_it_is_read(client):
    with pytest.raises(BadRequest, match="batch_size"):
        client.stream_images(["a.jpg"], batch_size=0)


def test_models_are_managed_and_seen(stage, client):
    with stage.worker():
        assert [answer.changed for answer in client.load("fake/large")] == [True]
        assert [answer.changed for answer in client.reload("fake/large")] == [True]
        assert len(client.load("fake/large", workers=iter([NODE]))) == 1
        assert client.switch("fake/large")[0].model == "fake/large"
        assert client.unload("fake/large")[0].changed
        assert not client.unload(scope="everything")[0].changed
        with pytest.raises(UnknownModel):
            client.load("x/y")
        assert client.current_model() == "fake/small"
        assert [entry.id for entry in client.models()] == ["fake/small", "fake/large"]
        assert client.dimension() == 16
        assert client.model_info("fake/large").input_size == 64
        assert client.pressure() == "normal"
        assert not client.is_loaded("fake/small")
        with pytest.raises(UnknownModel, match="x/y"):
            client.dimension("x/y")


def test_what_a_worker_is_asked_for_is_what_the_call_said(stage, connect):
    client = connect(stage.settings, asked_by="ann")
    with stage.worker():
        client.load("fake/large", keep_alive_s=60)
        client.switch("fake/large")
        client.switch("fake/large", workers=[NODE])
        client.unload("fake/large")
        client.unload(scope="family", family="fake")
        begun = time.time()
        for options in ({}, {"timeout": 300}):
            client.submit_texts(["a"], **options).wait(timeout=20)
    load, fleet, one, unload, family, *texts = stage.requests
    assert (load.model, load.keep_alive_s) == ("fake/large", 60)
    assert [switch.reach for switch in (fleet, one)] == ["fleet", "worker"]
    assert (unload.model, unload.scope) == ("fake/large", "one")
    assert (family.model, family.scope, family.family) == (None, "family", "fake")
    assert {request.asked_by for request in stage.requests} == {"ann"}
    patience_s = [text.deadline - begun for text in texts]
    assert patience_s == pytest.approx([stage.settings.answer_ttl_s, 300], abs=60)


def test_the_catalogue_of_a_newer_worker_is_read(stage, client):
    stage.show_worker()
    entry = MODELS[0].model_dump(mode="json") | {"new": 1}
    stage.store.hset(stage.keys.catalogue, entry["id"], json.dumps(entry))
    assert client.dimension(entry["id"]) == entry["dimension"]


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda c: c.load(""), "model"),
        (lambda c: c.load(None), "model"),
        (lambda c: c.load("x" * 201), "model"),
        (lambda c: c.switch(7), "model"),
        (lambda c: c.load("auto"), "'auto'; name one"),
        (lambda c: c.reload("auto"), "'auto'; name one"),
        (lambda c: c.switch("auto"), "'auto'; name one"),
        (lambda c: c.unload("auto"), "'auto'; name one"),
        (lambda c: c.reembed("/photos", sink="/vectors", model="auto"), "'auto'; name one"),
        (lambda c: c.is_loaded("auto"), "'auto'; name one"),
        (lambda c: c.memory_use("auto"), "'auto'; name one"),
        (lambda c: c.model_info("auto"), "'auto'; name one"),
        (lambda c: c.dimension("auto"), "'auto'; name one"),
        (lambda c: c.unload(""), "model"),
        (lambda c: c.unload("a/b", scope="vision"), "scope"),
        (lambda c: c.unload(scope="some"), "scope"),
        (lambda c: c.load("a/b", workers="cpu0@host"), "workers"),
        (lambda c: c.load("a/b", workers=[]), "workers"),
        (lambda c: c.load("a/b", workers=[""]), "workers"),
        (lambda c: c.load("a/b", workers=3), "workers"),
        (lambda c: c.load("a/b", timeout=-1), "timeout"),
        (lambda c: c.load("a/b", timeout=float("nan")), "timeout"),
        (lambda c: c.load("a/b", timeout="5"), "timeout"),
        (lambda c: c.load("a/b", timeout=10**400), "timeout"),
        (lambda c: c.load("a/b", keep_alive_s="long"), "keep_alive_s"),
        (lambda c: c.load("a/b", keep_alive_s=float("nan")), "keep_alive_s"),
        (lambda c: c.load("a/b", keep_alive_s=float("inf")), "keep_alive_s"),
        (lambda c: c.embed_texts(["a"], keep_alive_s=10**400), "keep_alive_s"),
        (lambda c: c.set_knobs({"slots": 0}), "slots"),
        (lambda c: c.set_knobs({"no_such": 1}), "'no_such' .*; there are slots, vision_vram"),
        (lambda c: c.set_knobs({"slot": 1}), "'slot' .*; nearest: slots"),
        (lambda c: c.set_knobs([("slots", 1)]), "knobs"),
        (lambda c: c.is_loaded(b"a/b"), "model"),
        (lambda c: c.memory_use(3), "model"),
        (lambda c: c.embed_texts(["a"], timeout=float("inf")), "timeout"),
        (lambda c: c.embed_texts(["a"], timeout=1e12), "timeout"),
        (lambda c: c.embed_texts(["a"], priority="urgent"), "priority"),
        (lambda c: c.embed_texts(["a"], progress=3), "progress"),
        (lambda c: c.embed_texts(["a"], keep_alive_s=float("nan")), "keep_alive_s"),
        (lambda c: c.embed_texts(None), "texts"),
        (lambda c: c.embed_texts(b"abc"), "texts"),
        (lambda c: c.embed_images("a.jpg"), "images"),
        (lambda c: c.embed_images(3), "images"),
        (lambda c: c.embed_images(np.zeros((3, 2, 2, 3), np.uint8)), "images"),
        (lambda c: c.submit_images([]), "nothing to submit"),
        (lambda c: c.submit_texts([""]), r"texts\[0\]"),
        (lambda c: c.handle("no id"), "no id"),
        (lambda c: c.handle("../../etc.1"), "is no id"),
    ],
)
def test_an_impossible_argument_is_named_before_anything_is_sent(stage, client, call, argument):
    def ours():
        return sorted(stage.store.scan_iter(f"{stage.settings.key_prefix}:*"))

    stage.show_worker()
    before = ours()
    with pytest.raises(BadRequest, match=argument):
        call(client)
    assert ours() == before


def test_what_was_submitted_is_fetched_by_id_and_more_than_once(stage, connect):
    with stage.worker():
        submitted = connect(stage.settings).submit_texts(TEXTS).id
        handle = connect(stage.settings).handle(submitted)
        first = matrix(handle.wait(timeout=20))
        assert np.array_equal(matrix(handle.wait(timeout=20)), first)
        assert np.array_equal(connect(stage.settings).embed_texts(TEXTS), first)


@pytest.mark.parametrize(
    ("large_bytes", "timeout", "kept_s"), [(1, 20, 21), (1, 2000, 120), (2**20, 20, 600)]
)
def test_a_large_answer_that_was_taken_stays_while_it_could_be_computed_again(
    stage, connect, monkeypatch, large_bytes, timeout, kept_s
):
    answers = f"{stage.settings.key_prefix}:answer:*"
    before = set(stage.store.scan_iter(answers))
    monkeypatch.setattr(talks, "LARGE_BYTES", large_bytes)
    with stage.worker():
        connect(stage.settings).embed_texts(TEXTS[:2], timeout=timeout)
    kept = {stage.store.ttl(answer) for answer in {*stage.store.scan_iter(answers)} - before}
    assert kept
    assert kept_s - 10 < min(kept) <= max(kept) <= kept_s


def test_an_answer_in_hand_is_given_though_redis_is_lost_just_then(stage, connect, monkeypatch):
    lost, together = [], talks.together

    def cut(client):
        lost.append(client)
        raise redis.ConnectionError("cut")

    def lose(*parts):
        is_last = "_pick_up" in getattr(parts[0], "__qualname__", "")
        return cut if is_last else together(*parts)

    monkeypatch.setattr(talks, "together", lose)
    with stage.worker():
        assert connect(stage.settings).embed_images([b"bytes"]).shape == (1, 16)
    assert lost


MANAGED = Managed(worker=NODE, model=None, changed=False, message="done")
EMBEDDED = Embedded(model="m", dimension=2, fingerprint="f", items=1)


@pytest.mark.parametrize(
    ("ask", "frame", "told"),
    [
        ("embed_texts", pack_answer(MANAGED), "it has no vectors"),
        ("load", pack_answer(EMBEDDED, np.zeros((1, 2))), "it says of no worker what was done"),
        ("embed_texts", pack_answer(EMBEDDED), "an answer's body is not 1 x 2 of float32"),
        ("load", b"\x02\0\0\0{}", "an answer's header names none of "),
    ],
)
def test_an_answer_of_another_kind_is_one_sentence_of_ours(monkeypatch, ask, frame, told):
    monkeypatch.setattr(FakeWorker, "frame", lambda *_: frame)
    with FakeClient() as client, pytest.raises(ClipyardError) as refused:
        getattr(client, ask)("fake/small")
    assert f"is none ({told}" in str(refused.value)


def test_a_stranger_among_the_workers_or_models_hides_none_of_them(stage, client):
    stage.show_worker()
    ids = [entry.id for entry in client.models()]
    stage.store.hset(stage.keys.catalogue, "fake/new", '{"kinds": ["sound"]}')
    stage.store.sadd(stage.keys.workers, "text@a", "time@a", b"\xff@a")
    stage.store.set(stage.keys.worker("text@a"), "text")
    stage.store.hset(stage.keys.worker("time@a"), "started_at", "soon")
    assert [entry.id for entry in client.models()] == ids
    assert [worker.name for worker in client.status().workers] == [NODE]
    client.reembed("/photos", sink="/vectors", model="m")  # which asks who is alive
    assert not client.jobs()[0].trouble


@pytest.mark.parametrize("key", ["workers", "catalogue"])
def test_what_is_no_list_of_workers_or_models_ends_in_a_sentence(stage, client, key):
    stage.store.set(getattr(stage.keys, key), "text")
    with pytest.raises(ClipyardError):
        client.model_info("fake/small")


def test_a_submitted_call_that_is_cancelled_says_so_and_is_never_begun(stage, connect):
    stage.show_worker()
    handle = connect(stage.settings).submit_images([b"one", b"two", b"three"])
    handle.cancel()
    with pytest.raises(Cancelled):
        connect(stage.settings).handle(handle.id).wait(timeout=20)
    assert not list(stage.store.scan_iter(f"{stage.settings.key_prefix}:blobs:*"))


def test_pictures_expire_also_when_their_client_is_killed_between_two_of_them(stage, client):
    request = EmbedBatch(texts=("a",), deadline=time.time() + 60)
    call = Call(names.EMBED_BATCH, request, blobs={0: b"a", 1: b"b"})
    with stage.store.pipeline(transaction=False) as pipe:
        client._desk.line.letter(call)(pipe)
        del pipe.command_stack[2:]
        pipe.execute()
    assert 0 < stage.store.ttl(stage.keys.blobs(call.id)) <= 60 + stage.settings.answer_ttl_s


def test_a_handle_says_when_there_is_no_answer_in_time(stage, client, quick):
    stage.show_worker()
    handle = client.submit_texts(["a"])
    # Workers drop what is past its deadline by their clocks: of that its caller hears nothing else.
    with pytest.raises(NoAnswer, match="`clipyard doctor` says of the clocks"):
        handle.wait(timeout=0.2)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_address_alone_is_no_settings_and_not_shown(kind):
    with pytest.raises(BadRequest) as told:
        kind("redis://:secret@redis/0")
    assert str(told.value) == (
        "settings is str; pass Settings.read(redis_url=...), or nothing, and set CLIPYARD_REDIS_URL"
    )


def test_what_pickles_a_client_or_a_handle_hears_what_to_send_instead(stage, client, quick):
    stage.show_worker()
    handle = client.submit_texts(["a"])
    for one, hint in ((client, "make one in each"), (handle, "give its id away")):
        with pytest.raises(TypeError, match=hint):
            pickle.dumps(one)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_of_the_environment_is_made_anew_where_it_is_sent(monkeypatch, kind):
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "redis://:secret@127.0.0.1:1")
    sent = pickle.dumps(kind(asked_by="me"))
    assert b"secret" not in sent
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "redis://127.0.0.1:2")
    desk = pickle.loads(sent)._desk
    assert desk.line.settings.url() == "redis://127.0.0.1:2"
    assert desk._asked_by == "me"


def test_nobody_alive_is_said_soon(stage, connect, quick):
    with pytest.raises(NoWorker, match="clipyard up"):
        connect(stage.settings).embed_texts(["a"])
    for call in ("switch", "load", "reload"):
        with pytest.raises(NoWorker):
            getattr(connect(stage.settings), call)("a/b")


def show(stage, node, *, holds=None, state="ready"):
    """A worker of two slots, and the model that it holds."""
    status = WorkerStatus(
        name=node,
        device="cpu",
        pid=1,
        started_at=1.0,
        beat_at=1.0,
        state=state,
        slots=2,
        models=(holds,) if holds else (),
    )
    stage.store.sadd(stage.keys.workers, node)
    stage.store.hset(stage.keys.worker(node), mapping=pack_record(status))
    if holds:
        held = ModelStatus(id=holds, state="device", dimension=16)
        stage.store.hset(stage.keys.model(node, holds), mapping=pack_record(held))


@pytest.mark.parametrize("state", ["stopping", "broken"])
def test_a_model_is_loaded_by_one_that_stays_and_works_if_there_is_one(stage, client, quick, state):
    show(stage, "a@here", holds="fake/small", state=state)
    with pytest.raises(NoAnswer, match=r"^a@here: no answer"):
        client.load("fake/small", timeout=0.1)
    show(stage, "b@there")
    with pytest.raises(NoAnswer, match=r"^b@there: no answer"):
        client.load("fake/small", timeout=0.1)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.switch("a/b", timeout=0.1),
        lambda c: c.unload("a/b", timeout=0.1),
        lambda c: c.set_knobs({"slots": 1}, timeout=0.1),
    ],
)
def test_what_all_are_asked_goes_past_those_that_stop_if_anybody_stays(stage, connect, quick, call):
    store, keys, client = stage.store, stage.keys, connect(stage.settings)
    show(stage, "a@stopping", state="stopping")
    with pytest.raises(NoAnswer, match=r"^a@stopping: no answer"):
        call(client)
    store.delete(keys.queue(names.direct_queue("a@stopping"), names.INTERACTIVE))
    show(stage, "b@there")
    with pytest.raises(NoAnswer, match=r"^b@there: no answer"):
        call(client)
    assert not store.exists(keys.queue(names.direct_queue("a@stopping"), names.INTERACTIVE))


@pytest.mark.parametrize(
    ("refusal", "refusing", "told"),
    [
        (LoadFailed("no sand"), "b", "b@there: no sand; done by a@there, c@there"),
        (LoadFailed("no sand"), "abc", "a@there: no sand"),
        (BadRequest("no family x"), "b", "b@there: no family x; done by a@there, c@there"),
        (BadRequest("no family x"), "abc", "no family x"),
    ],
)
def test_of_several_workers_the_one_that_refuses_is_named_and_those_that_did_it(
    refusal, refusing, told
):
    def said(call):
        yield from ()
        worker = call.queue.removesuffix(names.direct_queue(""))
        if worker[0] in refusing:
            raise refusal
        return Answer(Managed(worker=worker, model="m", changed=True, message="loaded m"), None)

    def nothing(_):
        yield from ()

    line = SimpleNamespace(settings=None, send=nothing, wait=said, let_go=nothing)
    desk = Desk(line, asked_by="test")
    asking = desk._ask(names.LOAD, Load(model="m"), ["a@there", "b@there", "c@there"])
    with pytest.raises(type(refusal)) as refused:
        next(asking)
    assert str(refused.value) == told


@pytest.mark.parametrize("asked", [["all"], ["all", "b@there"], ["a@here", "b@there", "a@here"]])
def test_a_model_is_loaded_once_by_every_worker_if_all_are_asked(stage, client, quick, asked):
    with pytest.raises(NoWorker):
        client.load("fake/small", workers=asked, timeout=0.1)
    fleet = ["a@here", "b@there"]
    for name in fleet:
        show(stage, name)
    with pytest.raises(NoAnswer):
        client.load("fake/small", workers=asked, timeout=0.1)
    queues = [stage.keys.queue(names.direct_queue(name), names.INTERACTIVE) for name in fleet]
    assert [stage.store.llen(queue) for queue in queues] == [1, 1]


def test_a_model_is_read_again_wherever_it_is_or_where_the_call_says(stage, client, quick):
    there = {"a@one": "fake/small", "b@two": "fake/small", "c@idle": None}
    for name, model in there.items():
        show(stage, name, holds=model)
    queues = [stage.keys.queue(names.direct_queue(name), names.INTERACTIVE) for name in there]
    for workers, asked in ((None, [1, 1, 0]), (["c@idle"], [1, 1, 1])):
        with pytest.raises(NoAnswer):
            client.reload("fake/small", workers=workers, timeout=0.1)
        assert [stage.store.llen(queue) for queue in queues] == asked
    with pytest.raises(NoAnswer):
        client.unload("fake/small", workers=["b@two"], timeout=0.1)
    assert [stage.store.llen(queue) for queue in queues] == [1, 2, 1]


@pytest.mark.parametrize("name", ["fake/small", "small"])
def test_a_model_is_loaded_where_it_is_already_by_whichever_name(stage, client, quick, name):
    store, keys = stage.store, stage.keys
    entry = MODELS[0].model_copy(update={"aliases": ("small",)})
    store.hset(keys.catalogue, entry.id, entry.model_dump_json())
    show(stage, "a@idle")
    show(stage, "b@holding", holds=entry.id)
    with pytest.raises(NoAnswer, match=r"^b@holding: no answer"):
        client.load(name, timeout=0.1)
    queues = map(names.direct_queue, ("a@idle", "b@holding"))
    assert [store.llen(keys.queue(one, names.INTERACTIVE)) for one in queues] == [0, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda c, **kw: c.load("a/b", **kw),
        lambda c, **kw: c.reload("a/b", **kw),
        lambda c, **kw: c.switch("a/b", **kw),
        lambda c, **kw: c.unload("a/b", **kw),
        lambda c, **kw: c.set_knobs({"slots": 1}, **kw),
    ],
)
def test_a_worker_that_nobody_knows_is_asked_nothing(stage, client, call):
    with pytest.raises(NoWorker):
        call(client, workers=["nobody@host"])
    stage.show_worker()
    with pytest.raises(BadRequest, match=f"no worker is called 'nobody@host'; there are {NODE}"):
        call(client, workers=[NODE, "nobody@host"])
    queue = stage.keys.queue(names.direct_queue(NODE), names.INTERACTIVE)
    assert not stage.store.exists(queue)


def test_what_a_worker_is_asked_while_it_is_away_waits_for_it(stage, client, quick):
    with stage.worker():
        pass
    stage.store.delete(stage.keys.workers, stage.keys.worker(NODE))  # its farewell
    with pytest.raises(NoAnswer):
        client.load("fake/large", workers=[NODE], timeout=0.1)
    assert stage.store.llen(stage.keys.queue(names.direct_queue(NODE), names.INTERACTIVE)) == 1


@pytest.fixture
def asking(stage, connect, quick):
    """A call under way that nobody answers yet; its rows, once `join` has returned."""
    stage.show_worker()
    client = connect(stage.settings)
    rows = []
    thread = threading.Thread(target=lambda: rows.append(client.embed_texts(["a"], timeout=60)))
    thread.start()

    def join():
        thread.join(30)
        return rows

    yield join
    thread.join(30)


def hold(stage, message):
    """As a worker does."""
    stage.store.hset(stage.keys.held, json.loads(message)["properties"]["delivery_tag"], message)


def test_a_message_that_a_worker_took_to_its_grave_is_sent_again(stage, asking):
    queue = stage.keys.queue(names.EMBED, names.INTERACTIVE)
    _, taken = stage.store.brpop(queue, 20)
    hold(stage, taken)  # the broker will deliver it, much later
    while not stage.store.llen(queue):
        stage.show_worker()
    with stage.worker():
        assert len(asking()) == 1


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.embed_texts(TEXTS[:4], timeout=20),
        lambda client: client.handle(client.submit_texts(TEXTS[:4], timeout=60).id).wait(20),
    ],
)
def test_of_several_that_it_took_each_is_sent_again(stage, connect, quick, monkeypatch, ask):
    looked, look = threading.Event(), vigil.alive

    def alive(keys):
        crew = yield from look(keys)
        looked.set()
        return crew

    monkeypatch.setattr(vigil, "alive", alive)
    monkeypatch.setattr(vigil, "FRESH_S", 0.0)
    stage.show_worker()
    queues = [stage.keys.queue(names.EMBED, step) for step in (names.INTERACTIVE, names.BULK)]
    with ThreadPoolExecutor(1) as pool:
        items = pool.submit(ask, connect(stage.settings))
        for _ in range(2):
            hold(stage, stage.store.brpop(queues, 20)[1])
        assert looked.wait(20)
        stage.show_worker()
        with stage.worker():
            assert len(items.result(30)) == 4


def done(talk, store, found=None):
    """A talk, taken to its end; what came of it."""
    try:
        while True:
            found = talk.send(found)(store)
    except StopIteration as end:
        return end.value


def enlist(store, keys, worker):
    store.sadd(keys.workers, worker)
    store.hset(keys.worker(worker), "started_at", "1")


@pytest.mark.parametrize("is_first", [True, False])
def test_a_message_that_a_worker_holds_is_not_sent_again(valkey_url, prefix, store, keys, is_first):
    line = Line(Settings.read(redis_url=valkey_url, key_prefix=prefix))
    request = EmbedBatch(texts=("a",), deadline=time.time() + 60)
    call = Call(names.EMBED_BATCH, request, is_first=is_first)
    done(line.send(call), store)
    queue = keys.queue(names.EMBED, names.INTERACTIVE)
    tag = json.loads(store.rpop(queue))["properties"]["delivery_tag"]
    vigil = Vigil(Roll(keys), since=time.time())
    enlist(store, keys, NODE)

    def is_lost():
        return [done(vigil.look(call.id, queue=queue), store) for _ in range(2 * SEARCH_EVERY)]

    store.hset(keys.held, tag, "what is not read")
    assert not any(is_lost())
    store.hdel(keys.held, tag)
    tenth = json.dumps({"id": f"{call.id}0"})  # of a call whose first this could be
    store.lpush(queue, tenth)
    store.hset(keys.held, f"{call.id}0 again", tenth)
    assert is_lost()[-1]
    store.hset(keys.held, "an older client's tag", json.dumps({"id": call.id}))
    assert not any(is_lost())
    line.close()


def test_a_worker_that_comes_back_is_a_reason_to_send_again_once(store, keys):
    now = [0.0]
    vigil = Vigil(Roll(keys, clock=lambda: now[0]), since=time.time())

    def is_lost():
        now[0] += STALE_S
        return done(vigil.look("r1", queue=None), store)

    enlist(store, keys, NODE)
    assert not is_lost()
    store.hset(keys.worker(NODE), "started_at", str(time.time() + 5))
    assert [is_lost() for _ in range(3)] == [True, False, False]


def test_calls_of_one_client_that_wait_together_look_at_the_workers_together(store, keys):
    now = [0.0]
    roll = Roll(keys, clock=lambda: now[0])

    def called():
        return {name for name, _ in done(roll.call(), store)}

    enlist(store, keys, "a")
    assert called() == {b"a"}
    enlist(store, keys, "b")
    assert called() == {b"a"}
    now[0] += FRESH_S
    under_way = roll.call()
    next(under_way)
    assert called() == {b"a"}
    now[0] += STALE_S  # nothing is heard of that one
    assert called() == {b"a", b"b"}


def test_calls_that_began_together_wait_a_moment_for_the_first_look_of_one_of_them(store, keys):
    roll = Roll(keys)
    enlist(store, keys, "a")
    first, second = roll.call(), roll.call()
    seen = next(first)(store)
    assert isinstance(next(second), Pause)
    crew = done(first, store, seen)
    assert crew
    assert done(second, None) == crew  # it asks nobody


def test_a_worker_that_came_back_before_the_first_look_may_have_taken_it_too(stage, client, quick):
    stage.show_worker()
    stage.store.hset(stage.keys.worker(NODE), "started_at", str(time.time() + 5))
    queue = stage.keys.queue(names.EMBED, names.INTERACTIVE)
    with ThreadPoolExecutor(1) as pool:
        rows = pool.submit(client.embed_texts, ["a"], timeout=60)
        _, taken = stage.store.brpop(queue, 20)
        hold(stage, taken)
        _, again = stage.store.brpop(queue, 20)
        stage.store.lpush(queue, again)
        with stage.worker():
            assert len(rows.result(30)) == 1


def test_a_message_that_is_nowhere_is_sent_again_under_its_id(stage, asking):
    queue = stage.keys.queue(names.EMBED, names.INTERACTIVE)
    _, lost = stage.store.brpop(queue, 20)
    _, again = stage.store.brpop(queue, 20)
    stage.store.lpush(queue, again)
    with stage.worker():
        assert len(asking()) == 1
    assert [json.loads(one)["headers"][names.FIRST] for one in (lost, again)] == [True, False]
    assert stage.published[0][1].encode() in lost


def test_a_submitted_message_that_is_nowhere_is_sent_again_by_whoever_waits(stage, client, quick):
    stage.show_worker()
    with Client(stage.settings) as gone:
        id = gone.submit_texts(["a", "b", "c"], timeout=60).id
    queue = stage.keys.queue(names.EMBED, names.BULK)
    _, lost = stage.store.brpop(queue, 20)
    with ThreadPoolExecutor(1) as pool:
        items = pool.submit(client.handle(id).wait, 60)
        until(lambda: stage.store.llen(queue) == 2)
        [again] = stage.store.lrange(queue, 0, 0)
        with stage.worker():
            assert len(items.result(30)) == 3
    first = id.replace(".2", ".0")
    both = [json.loads(one) for one in (lost, again)]
    told = [one["headers"] for one in both]
    assert [(one["id"], one[names.FIRST]) for one in told] == [(first, False)] * 2
    tags = {one["properties"]["delivery_tag"] for one in both}
    assert len(tags) == 2  # else whoever acknowledges one gives up the other
    assert all(tag.startswith(f"{first} ") for tag in tags)
    # A Redis whose clock jumps by less than that loses neither.
    assert stage.store.ttl(stage.keys.sent(first)) > stage.settings.answer_ttl_s


@pytest.mark.parametrize("by_id", [False, True])
def test_a_message_that_is_late_anyway_is_not_sent_again(stage, connect, quick, monkeypatch, by_id):
    monkeypatch.setattr(vigil, "SEARCH_EVERY", 1)
    stage.show_worker()
    client = connect(stage.settings)
    handle = client.submit_texts(["a"], timeout=0.05)
    handle = client.handle(handle.id) if by_id else handle
    queue = stage.keys.queue(names.EMBED, names.INTERACTIVE)
    assert stage.store.brpop(queue, 20)  # whoever takes it drops it
    with pytest.raises(NoAnswer):
        handle.wait(0.5)
    assert not stage.store.llen(queue)


def test_a_message_that_waits_its_turn_is_not_sent_again(stage, client, quick):
    stage.show_worker()
    with pytest.raises(NoAnswer):
        client.embed_texts(["a"], timeout=1.0)
    assert stage.store.llen(stage.keys.queue(names.EMBED, names.INTERACTIVE)) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.embed_texts(["a"]),
        lambda c: c.load("a/b", workers=[NODE]),
        lambda c: c.job("j").switch(),
    ],
)
def test_a_call_waits_as_long_as_the_setting_says_and_names_it(stage, connect, call):
    stage.show_worker()
    client = connect(stage.settings.model_copy(update={"answer_timeout_s": 0.05}))
    with pytest.raises(NoAnswer, match="CLIPYARD_ANSWER_TIMEOUT_S"):
        call(client)


def take_a_seat(seats, *, interrupted_at):
    """Whether there was such a moment."""
    events = itertools.count(1)

    def interrupt(_frame, event, _arg):
        if event in ("call", "c_return") and next(events) == interrupted_at:
            raise KeyboardInterrupt

    sys.setprofile(interrupt)
    try:
        with seats:
            pass
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def test_ctrl_c_at_any_moment_costs_no_seat():
    seats = Seats(1)

    def interrupt_at_each():
        moments = itertools.count(1)
        while take_a_seat(seats, interrupted_at=next(moments)):
            with seats:
                pass

    taking = threading.Thread(target=interrupt_at_each, daemon=True)
    taking.start()
    taking.join(30)
    assert not taking.is_alive()
    assert seats.qsize() == 1


def test_a_client_that_withdrew_something_leaves_no_connection_open(stage):
    def open_ones():
        return {row["id"] for row in stage.store.client_list()}

    before = open_ones()
    made = stage.store.info()["total_connections_received"]
    with Client(stage.settings) as client:
        for _ in range(3):
            client.submit_texts(["a"], model="a/b").cancel()
    assert stage.store.info()["total_connections_received"] == made + 1
    until(lambda: open_ones() <= before)


def test_a_worker_is_told_of_what_is_withdrawn(stage, client):
    with stage.worker():
        client.embed_texts(["a"])  # it listens by then
        handle = client.submit_texts(["a"], model="fake/small")
        handle.cancel()
        until(lambda: f"{handle.id.partition('.')[0]}.0" in revoked)


def test_what_is_past_its_deadline_is_not_withdrawn_as_well(stage, connect, quick, monkeypatch):
    stage.show_worker()
    withdrawn = []
    monkeypatch.setattr(talks.Line, "notice", lambda line, ids: withdrawn.extend(ids))
    with pytest.raises(NoAnswer):
        connect(stage.settings).embed_images([b"bytes"], timeout=0.2)
    assert withdrawn == []
    assert not list(stage.store.scan_iter(f"{stage.settings.key_prefix}:blobs:*"))


def test_an_abandoned_stream_withdraws_what_it_sent(stage, client):
    with stage.worker():
        stream = client.stream_images([b"bytes"] * 100, batch_size=1)
        next(stream)
        assert list(stage.store.scan_iter(stage.keys.blobs("*")))
        stream.close()
        assert not list(stage.store.scan_iter(stage.keys.blobs("*")))


def test_seats_are_the_interpreters_own_where_gevent_puts_another_queue(monkeypatch):
    monkeypatch.setattr(queue, "SimpleQueue", queue._PySimpleQueue)
    file = sys.modules[Seats.__module__].__file__
    patched = importlib.util.spec_from_file_location("api_client.patched", file)
    module = importlib.util.module_from_spec(patched)
    patched.loader.exec_module(module)
    seats = module.Seats(1)
    with pytest.raises(KeyError), seats:
        raise KeyError
    assert seats.qsize() == 1


READS_ONE = """
from api_client import Client
stream = Client().stream_images(["a.jpg"] * 100, batch_size=1)
next(stream)
"""


FORKS = """
import os
from api_client import Client
client = Client()
stream = client.stream_images(["a.jpg"] * 9, batch_size=1)
next(stream)
if not (child := os.fork()):
    client.close()
    os._exit(0)
os.waitpid(child, 0)
print(sum(1 for _ in stream))
"""


BEGINS_IN_A_FORK = """
import os
from api_client import Client
client = Client()
stream = client.stream_images([b"bytes"] * 9, batch_size=1)
if not (child := os.fork()):
    next(stream)
    client.close()
    os._exit(0)
os.waitpid(child, 0)
"""


def program(script, stage):
    here = {
        "CLIPYARD_REDIS_URL": stage.settings.url(),
        "CLIPYARD_KEY_PREFIX": stage.settings.key_prefix,
    }
    with stage.worker():
        ended = subprocess.run(
            [sys.executable, "-c", script], env=os.environ | here, capture_output=True, text=True
        )
    return ended.returncode, ended.stdout, ended.stderr


def test_a_program_may_end_with_a_stream_unread(stage):
    assert program(READS_ONE, stage) == (0, "", "")


def test_a_fork_that_closes_its_client_withdraws_nothing_of_what_it_was_forked_from(stage):
    assert program(FORKS, stage) == (0, "8\n", "")
    answers = [*stage.store.scan_iter(f"{stage.settings.key_prefix}:answer:*")]
    assert {stage.store.llen(key) for key in answers} == {1}  # no refusal behind an answer


def test_a_stream_that_a_fork_begins_is_its_own_to_withdraw(stage):
    assert program(BEGINS_IN_A_FORK, stage) == (0, "", "")
    assert not [*stage.store.scan_iter(f"{stage.settings.key_prefix}:blobs:*")]


def test_a_stream_that_is_broken_off_leaves_no_connection_open(stage, connect):
    prefix = stage.settings.key_prefix
    named = Settings.read(
        redis_url=f"{stage.settings.url()}?client_name={prefix}", key_prefix=prefix, chunk_size=1
    )
    client = connect(named)
    with stage.worker():
        stream = client.stream_images(f"{i}.jpg" for i in range(100))
        next(stream)
        client.close()
        stream.close()  # as when it is collected
        assert [one for one in stage.store.client_list() if one["name"] == prefix] == []


def test_a_call_under_way_as_its_client_is_closed_leaves_no_connection_open(stage):
    prefix, queue = stage.settings.key_prefix, stage.keys.queue(names.EMBED, names.INTERACTIVE)
    named = Settings.read(
        redis_url=f"{stage.settings.url()}?client_name={prefix}", key_prefix=prefix
    )
    stage.show_worker()
    client = Client(named)
    with ThreadPoolExecutor() as threads:
        call = threads.submit(client.embed_texts, ["a"])
        until(lambda: stage.store.llen(queue))
        client.close()
        with stage.worker():
            assert len(call.result()) == 1
    assert [one for one in stage.store.client_list() if one["name"] == prefix] == []


def break_off(client):
    picture = np.zeros((8, 8, 3), np.uint8)
    stream = client.stream_images([picture] * 99, batch_size=1)
    next(stream)
    stream.close()
    return weakref.ref(picture)


def test_a_client_keeps_nothing_of_a_stream_that_was_broken_off(stage, client):
    with stage.worker():
        kept = break_off(client)
        gc.collect()
        assert kept() is None


def test_a_client_that_is_closed_as_a_stream_reads_its_source_reads_and_sends_no_more(stage):
    client, read = Client(stage.settings), []

    def source():
        for number in range(99):
            read.append(number)
            if number == 3:
                client.close()
            yield f"{number}.jpg"

    with pytest.raises(Cancelled, match="closed"):
        list(client.stream_images(source(), batch_size=1))
    assert len(read) == 4
    queue = stage.keys.queue(names.EMBED, names.BULK)
    withdrawn = [*stage.store.scan_iter(stage.keys.answer("*"))]
    assert stage.store.llen(queue) <= len(withdrawn) <= 4


def test_streams_that_wait_leave_a_connection_for_their_withdrawal(stage):
    few = Settings.read(
        redis_url=f"{stage.settings.url()}?max_connections=2", key_prefix=stage.settings.key_prefix
    )
    client, queue = Client(few), stage.keys.queue(names.EMBED, names.INTERACTIVE)
    stage.show_worker()
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(next, client.stream_images(["a.jpg"])) for _ in range(2)]
        until(lambda: stage.store.llen(queue))
        client.close()
        for one in waiting:
            with pytest.raises(Cancelled, match="closed"):
                one.result(20)
    # By their ids: one whose connection was closed under it may have been sent twice.
    sent = {json.loads(one)["headers"]["id"] for one in stage.store.lrange(queue, 0, -1)}
    assert all(stage.store.exists(stage.keys.answer(one)) for one in sent)


def test_a_stream_ends_with_its_client_and_leaves_no_item_out(stage, client):
    with stage.worker():
        stream = client.stream_images(f"{i}.jpg" for i in range(100))
        next(stream)
        client.close()
        next(stream)  # of the same message
        with pytest.raises(Cancelled, match="closed"):
            next(stream)


@pytest.fixture
def impatient(monkeypatch):
    for module in ("client", "aio"):
        monkeypatch.setattr(f"api_client.{module}.PATIENCE_S", 0.3)


def test_redis_away_is_said_and_forgotten_when_it_is_back(valkey_of_my_own, connect, impatient):
    client = connect(Settings.read(redis_url=valkey_of_my_own.url, answer_timeout_s=20))
    assert client.models() == []
    valkey_of_my_own.stop()
    for call in (client.models, lambda: client.embed_texts(["a"], model="a/b")):
        with pytest.raises(NoBroker, match="CLIPYARD_REDIS_URL"):
            call()
    valkey_of_my_own.start()
    assert client.models() == []
    with pytest.raises(NoWorker):
        client.embed_texts(["a"], model="a/b")


@pytest.fixture
def uncollected():
    """What stands in a circle stays."""
    gc.disable()
    yield
    gc.enable()


def embed_in_vain(client):
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(NoBroker):
        client.embed_images([picture], model="a/b")
    return weakref.ref(picture)


async def embed_in_vain_there(client):
    picture = np.zeros((8, 8, 3), np.uint8)
    with suppress(NoBroker):  # which keeps nothing of it
        await client.embed_images([picture], model="a/b")
    return weakref.ref(picture)


def test_a_call_that_cannot_reach_redis_keeps_none_of_its_pictures(impatient, uncollected):
    nowhere = Settings.read(redis_url="redis://127.0.0.1:1/0")

    async def awaited():
        async with AsyncClient(nowhere) as client:
            kept = await embed_in_vain_there(client)
            await asyncio.sleep(0)  # the loop itself lets go of it with its next turn
            return kept()

    with Client(nowhere) as client:
        assert embed_in_vain(client)() is None
    assert asyncio.run(awaited()) is None


@pytest.mark.parametrize(
    ("login", "told"), [(":secret@", "refuses the login"), ("", "wants a login; correct")]
)
def test_a_wrong_password_or_none_is_no_broker(valkey_url, connect, impatient, login, told):
    url = f"redis://{login}{valkey_url.rpartition('@')[2]}"
    with pytest.raises(NoBroker, match=told) as refused:
        connect(Settings.read(redis_url=url)).models()
    assert "secret" not in str(refused.value)


def test_a_strangers_list_of_workers_hides_none_that_is_named(
    store, keys, connect, valkey_url, prefix
):
    store.set(keys.workers, "a stranger's")
    client = connect(Settings.read(redis_url=valkey_url, key_prefix=prefix))
    with pytest.raises(NoWorker):
        client.unload("m", workers=["gpu0@a"])


def test_a_redis_that_answers_and_cannot_be_used_is_no_broker(valkey_url, connect):
    told = r"/99 cannot be used \(.*DB index is out of range\); has it this database, and is it ver"
    with pytest.raises(NoBroker, match=told) as refused:
        connect(Settings.read(redis_url=f"{valkey_url.removesuffix('/0')}/99")).status()
    assert ":***@" in str(refused.value)


@pytest.mark.parametrize(
    "call",
    [lambda c: c.models(), lambda c: c.status(), lambda c: c.embed_texts(["a secret"], model="m")],
)
def test_a_login_that_may_not_do_it_is_told_so(store, valkey_url, prefix, connect, call):
    store.acl_setuser(prefix, enabled=True, passwords=["+pw"], keys=["other:*"], commands=["+@all"])
    url = f"redis://{prefix}:pw@{valkey_url.rpartition('@')[2]}"
    with pytest.raises(NoBroker, match=r"login .*permissions.* CLIPYARD_KEY_PREFIX") as refused:
        call(connect(Settings.read(redis_url=url, key_prefix=prefix)))
    store.acl_deluser(prefix)
    assert "secret" not in str(refused.value)
    assert ":pw@" not in str(refused.value)


def test_a_login_of_an_acl_file_that_was_printed_too_long_ago_is_told_so(
    store, valkey_url, prefix, connect, keys
):
    place = Place(kind="folder", where="/p")
    spec = JobSpec(id="j", source=place, model="m", sink=place).model_dump_json()
    store.hset(keys.job("j"), mapping={"spec": spec, "state": "paused", "paused_from": "running"})
    commands = ["+@all", "-hkeys"]  # which a script asks for, so Redis answers in other words
    store.acl_setuser(prefix, enabled=True, passwords=["+pw"], keys=["*"], commands=commands)
    url = f"redis://{prefix}:pw@{valkey_url.rpartition('@')[2]}"
    with pytest.raises(NoBroker, match=r"hkeys.* printed by this version") as refused:
        connect(Settings.read(redis_url=url, key_prefix=prefix)).job("j").resume()
    store.acl_deluser(prefix)
    assert ":pw@" not in str(refused.value)


@pytest.mark.parametrize("id", [None, b"x", "\udce9"])
def test_what_is_no_id_of_a_submitted_call_is_refused(client, id):
    with pytest.raises(BadRequest, match="is no id of a submitted call"):
        client.handle(id)
