import json
from uuid import uuid4

import pytest

from api_client import Client, Settings
from api_client.quarantine import cli, talks
from api_client.wire import names
from api_client.wire.errors import BadRequest, NoAnswer, NotSigned
from api_client.wire.quarantine import Crash, Evidence
from api_client.wire.signing import FIELD, signed


def evidence(id, task, payload):
    crashes = (Crash(worker="gpu0@a", at=1.0),)
    return Evidence(id=id, task=task, at=2.0, crashes=crashes, queue="embed", payload=payload)


@pytest.fixture
def lonely(valkey_url, prefix):
    """A client, and nobody who would answer it."""
    settings = Settings.read(redis_url=valkey_url, key_prefix=prefix, answer_timeout_s=0.05)
    with Client(settings) as client:
        yield client


@pytest.mark.parametrize(
    ("task", "payload"),
    [
        (names.EMBED_BATCH, {"texts": ["a"]}),
        (names.JOB_SWITCH, {"job": "20261128-120000-abcdef", "to": "new"}),
    ],
)
def test_one_that_is_sent_again_and_not_answered_can_be_sent_once_more(
    lonely, store, keys, task, payload
):
    store.hset(keys.quarantine, "r", evidence("r", task, payload).model_dump_json())
    for _ in range(2):
        with pytest.raises(NoAnswer):
            lonely._hold(talks.again(lonely._desk.line, "r"))
    assert [it.id for it in lonely._hold(talks.held(lonely._desk.line))] == ["r"]


def test_what_is_not_there_is_neither_sent_again_nor_dropped(lonely):
    for talk in (talks.again, talks.forgotten, talks.one):
        with pytest.raises(BadRequest, match="clipyard quarantine list"):
            lonely._hold(talk(lonely._desk.line, "r\n\u00e9"))


@pytest.mark.parametrize(
    ("task", "payload", "told"),
    [
        (names.LOAD, {"model": "m", "kind": 1}, "^kind: Extra inputs are not permitted$"),
        ("clipyard.new", {}, "^r asks for 'clipyard.new', which this version does not send again"),
    ],
)
def test_what_only_newer_workers_know_is_not_sent_again(lonely, store, keys, task, payload, told):
    store.hset(keys.quarantine, "r", evidence("r", task, payload).model_dump_json())
    with pytest.raises(BadRequest, match=told):
        lonely._hold(talks.again(lonely._desk.line, "r"))


def test_what_nobody_with_the_key_has_sent_is_not_signed_for_him(valkey_url, prefix, store, keys):
    settings = Settings.read(
        redis_url=valkey_url, key_prefix=prefix, signing_key="k" * 16, answer_timeout_s=0.05
    )
    sent = {"model": "m", "deadline": 1.0}
    signature = signed(sent, task=names.SWITCH, request="r", settings=settings)[FIELD]
    with Client(settings) as client:
        for payload, refusal in ((sent, NoAnswer), (sent | {"reach": "fleet"}, NotSigned)):
            kept = evidence("r", names.SWITCH, payload).model_copy(update={"signature": signature})
            store.hset(keys.quarantine, "r", kept.model_dump_json())
            with pytest.raises(refusal):
                client._hold(talks.again(client._desk.line, "r"))


def test_an_id_in_the_list_stays_on_one_line(lonely, store, keys, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(cli, "a_client", lambda: lonely)
    id = str(uuid4())
    store.hset(keys.quarantine, id, evidence(id, names.EMBED_BATCH, None).model_dump_json())
    cli.list_()
    assert id in capsys.readouterr().out


def test_what_a_newer_worker_has_written_is_read(lonely, store, keys):
    newer = evidence("r", names.LOAD, {"model": "m"}).model_dump() | {"since": "the next version"}
    newer["crashes"][0]["signal"] = 9
    store.hset(keys.quarantine, "r", json.dumps(newer))
    for talk in (talks.held(lonely._desk.line), talks.one(lonely._desk.line, "r")):
        assert lonely._hold(talk)
