"""Old and new side by side, against messages that were recorded and are never edited."""

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis

from api_client.doctor import fleet_findings
from api_client.status import Fleet, Worker, read_fleet
from api_client.wire import codec, messages
from api_client.wire.errors import BadRequest
from api_client.wire.jobs import JobState, JobStatus
from api_client.wire.messages import Embedded, Failure, Timings
from api_client.wire.names import Keys
from api_client.wire.quarantine import Evidence
from worker.delivery import answers

CORPUS = Path(__file__).with_name("corpus")
RECORDED = json.loads((CORPUS / "v1.json").read_text())
RECORDS = json.loads((CORPUS / "records.json").read_text())  # as they lay in Redis on 2026-11-28
REQUESTS = [pytest.param(kind, fields, id=kind) for kind, fields in RECORDED["requests"]]


def frame(header: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(4, "little") + text + body


@pytest.mark.parametrize(("kind", "fields"), REQUESTS)
@pytest.mark.parametrize("now", [1, 2])
def test_workers_of_this_and_the_next_version_take_a_recorded_request(
    monkeypatch: pytest.MonkeyPatch, kind: str, fields: dict[str, Any], now: int
) -> None:
    monkeypatch.setattr(answers, "WIRE_VERSION", now)
    request = answers.checked(getattr(messages, kind), fields)
    assert request.wire == 1


@pytest.mark.parametrize(("kind", "fields"), REQUESTS)
def test_a_client_that_asks_for_nothing_new_says_what_was_recorded(
    kind: str, fields: dict[str, Any]
) -> None:
    request = getattr(messages, kind).model_validate(fields)
    assert request.model_dump(mode="json", exclude_defaults=True) == fields


@pytest.mark.parametrize("header", RECORDED["answers"], ids=lambda header: next(iter(header)))
def test_a_client_reads_recorded_answers(header: dict[str, Any]) -> None:
    row = np.ones((1, 2), np.float32)
    body = row.tobytes() if "embedded" in header else b""
    answer, vectors = codec.unpack_answer(frame(header, body))
    told = answer.model_dump(mode="json", exclude_defaults=True)
    assert {type(answer).__name__.lower(): told} == header
    assert vectors is None if "embedded" not in header else np.array_equal(vectors, row)


def test_a_worker_that_has_nothing_new_to_tell_answers_as_recorded() -> None:
    answer = Embedded(
        model="m",
        dimension=2,
        fingerprint="f",
        items=2,
        failures={1: Failure(code="image_missing", message="there is no file 'a'")},
        worker="gpu0@host",
        timings=Timings(load_s=0.5),
    )
    packed = codec.pack_answer(answer, np.ones((1, 2), np.float32))
    length = int.from_bytes(packed[:4], "little")
    assert json.loads(packed[4 : 4 + length]) == RECORDED["answers"][0]


def test_an_old_client_reads_what_it_knows_of_a_newer_workers_answer() -> None:
    header = {"embedded": RECORDED["answers"][0]["embedded"] | {"new": 1, "timings": {"new_s": 2}}}
    answer, _ = codec.unpack_answer(frame(header, np.ones((1, 2), np.float32).tobytes()))
    assert isinstance(answer, Embedded)
    assert answer.worker == "gpu0@host"


def test_an_old_client_reads_what_it_knows_of_a_newer_workers_records() -> None:
    complaint = {"about": "a fan", "found": "full", "mend": "room", "new": 1}
    fields = {"device": "cpu", "pid": 1, "started_at": 1, "beat_at": 1, "state": "ready"}
    record = {"name": "a", **fields, "complaints": [complaint], "new": 2}
    told = {name: json.dumps(value) for name, value in record.items()}
    status = codec.unpack_record(messages.WorkerStatus, told)
    assert status.complaints[0].found == "full"
    fleet = Fleet(workers=(Worker(**dict(status)),))
    [finding] = [one for one in fleet_findings(fleet, now=1) if one.mend]
    assert (finding.check, finding.found, finding.mend) == ("worker", "a: full", "room")


def test_an_event_of_a_kind_that_only_newer_workers_know_is_left_out(
    store: redis.Redis, keys: Keys
) -> None:
    for kind in ("loaded", "frozen", "lifted"):
        told = {"kind": kind, "worker": "a", "model": "m", "reason": "r"}
        store.xadd(keys.events, {name: json.dumps(value) for name, value in told.items()})
    assert [event.kind for event in read_fleet(store, keys).events] == ["lifted", "loaded"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("worker", messages.WorkerStatus), ("model", messages.ModelStatus), ("event", messages.Event)],
)
def test_every_field_of_a_recorded_record_is_read(name: str, kind: type[messages.Message]) -> None:
    recorded = RECORDS[name]
    read = codec.unpack_record(kind, recorded).model_dump(mode="json")
    assert {field: read[field] for field in recorded} == {
        field: json.loads(value) for field, value in recorded.items()
    }


def test_an_old_client_reads_a_move_whose_cause_it_does_not_know() -> None:
    told = codec.pack_record(messages.Event(kind="lifted", model="m", reason="r", cause="whim"))
    assert codec.unpack_record(messages.Event, told).cause == "whim"


@pytest.mark.parametrize(
    ("name", "kind"), [("catalogue", messages.CatalogueEntry), ("evidence", Evidence)]
)
def test_a_recorded_entry_of_catalogue_or_quarantine_is_read(
    name: str, kind: type[messages.Message]
) -> None:
    read = kind.model_validate(RECORDS[name]).model_dump(mode="json", exclude_unset=True)
    assert read == RECORDS[name]


def test_the_recorded_books_of_a_job_are_read() -> None:
    books = {name.encode(): value.encode() for name, value in RECORDS["job"].items()}
    status = JobStatus.of("recorded", books)
    assert (status.state, status.done, status.failed) == (JobState.COMPLETE, 2, 1)
    assert status.workers == {"w1@h": 3}


def test_a_worker_takes_a_message_that_lay_in_the_queue_while_it_was_updated() -> None:
    nameless, payload, _ = json.loads(base64.b64decode(RECORDS["message"]["body"]))
    request = answers.checked(messages.EmbedBatch, payload, nameless=tuple(nameless))
    assert request.texts == ("a red circle",)


def test_a_newer_client_is_told_to_update_the_workers_first() -> None:
    with pytest.raises(BadRequest, match="update the workers before the clients"):
        answers.checked(messages.Load, {"model": "m", "wire": messages.WIRE_VERSION + 1, "new": 1})


def test_a_field_that_is_unknown_is_refused_and_a_message_is_bounded() -> None:
    with pytest.raises(BadRequest, match="new"):
        answers.checked(messages.Load, {"model": "m", "new": 1})
    texts = ["x" * messages.MAX_TEXT_CHARS] * (messages.MAX_BATCH_CHARS // 10**5 + 1)
    with pytest.raises(BadRequest, match="smaller batches"):
        answers.checked(messages.EmbedBatch, {"texts": texts})
