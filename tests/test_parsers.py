"""Everything that strangers can hand us ends in a value or in our own error, never in another.

What is drawn begins with what is right, and is then changed a little: else it came no further than
the first look.
`python -m tests.fuzz --parsers` lets atheris look for inputs, guided by what it reaches.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api_client.gateway.app import build
from api_client.gateway.passes import Pass
from api_client.gateway.settings import GatewaySettings
from api_client.testing import FakeAsyncClient
from api_client.wire import codec
from api_client.wire.errors import BadRequest, BadSettings, ClipyardError, JobRefused, NotSigned
from api_client.wire.jobs import JobSpec, Place, unsealed
from api_client.wire.messages import (
    EmbedBatch,
    Embedded,
    Load,
    Managed,
    ModelStatus,
    Request,
    Switch,
    Unload,
    WorkerStatus,
)
from api_client.wire.settings import Settings
from api_client.wire.signing import FIELD, opened
from worker.catalogue import Catalogue
from worker.delivery.answers import checked
from worker.reembed import manifest
from worker.reembed.doors import Doors
from worker.reembed.papers import Papers
from worker.reembed.sources import open_source
from worker.settings import WorkerSettings

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["path", "blob", "url", "image", "float16", "bulk"])
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
DEEP = "[" * 20_000
FOLDER = Path(tempfile.gettempdir(), f"clipyard-parsers-{os.getpid()}")
few = settings(
    max_examples=int(os.environ.get("CLIPYARD_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
SIGNING = Settings.read(signing_key="k" * 16)
CORPUS = Path(__file__).parent / "wire" / "corpus"
RECORDED = json.loads((CORPUS / "v1.json").read_text())
RECORDS = json.loads((CORPUS / "records.json").read_text())
MARKER = {"chunk": 0, "items": 3, "losses": [], "round": 0, "worker": "w", "at": 1, "stages": {}}
# What was tried, and what of it let an input in.
tried: set[str] = set()
let_in: set[str] = set()


@contextmanager
def in_or_refused(what: str, refusal: type[Exception]) -> Iterator[None]:
    tried.add(what)
    with suppress(refusal):
        yield
        let_in.add(what)


def laid_down(name: str, content: bytes) -> Path:
    """A file that whoever runs next may write over."""
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / name
    file.write_bytes(content)
    return file


@pytest.fixture(autouse=True, scope="module")
def _cleared() -> Iterator[None]:
    yield
    shutil.rmtree(FOLDER, ignore_errors=True)
    assert tried - let_in == set()


def near(
    valid: Mapping[str, Any], *names: str, values: st.SearchStrategy[Any] = JSON
) -> st.SearchStrategy[dict[str, Any]]:
    """What is right, with a few of its fields changed, or of these; or some of the fields alone."""
    known = st.sampled_from(sorted({*valid, *names, "unknown"}))
    changes = st.dictionaries(known, values, max_size=2)
    some = st.dictionaries(known, values, max_size=5)
    return st.just({**valid}) | changes.map(lambda few: {**valid, **few}) | some


def objects(valid: Mapping[str, Any], *names: str) -> st.SearchStrategy[bytes]:
    """JSON objects `near` to one; or other JSON; or anything."""
    return (near(valid, *names) | JSON).map(lambda it: json.dumps(it).encode()) | st.binary()


@given(kind=st.sampled_from([EmbedBatch, Load, Switch, Unload]), data=st.data())
@few
def test_a_request(kind: type[Request], data: st.DataObject) -> None:
    recorded = [fields for name, fields in RECORDED["requests"] if name == kind.__name__]
    payload = data.draw(near(data.draw(st.sampled_from(recorded)), *kind.model_fields))
    with pytest.raises(NotSigned):
        opened({FIELD: data.draw(JSON), **payload}, task="t", request="1", settings=SIGNING)
    with in_or_refused("a request", BadRequest):
        request = checked(kind, payload)
        assert payload.keys() <= kind.model_fields.keys()
        assert checked(kind, request.model_dump(mode="json")) == request


BODY = st.binary(min_size=8, max_size=8) | st.binary(max_size=64)  # one row of two is 8 bytes


@given(
    header=st.sampled_from(RECORDED["answers"]) | JSON,
    length=st.none() | st.integers(0, 2**32 - 1),
    body=BODY,
)
@example(header=None, length=None, body=DEEP.encode())
@few
def test_an_answers_frame(header: Any, length: int | None, body: bytes) -> None:
    text = body if header is None else json.dumps(header).encode()
    frame = (len(text) if length is None else length).to_bytes(4, "little") + text + body
    with in_or_refused("an answer's frame", ValueError):
        codec.unpack_answer(frame)


@given(data=st.data())
@few
def test_the_header_of_an_answer(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([Embedded, Managed]))
    name = kind.__name__.lower()
    [recorded] = [header[name] for header in RECORDED["answers"] if name in header]
    text = json.dumps({name: data.draw(near(recorded, *kind.model_fields))}).encode()
    with in_or_refused("an answer's header", ValueError):
        codec.unpack_answer(len(text).to_bytes(4, "little") + text + data.draw(BODY))


@given(data=st.data())
@example(data=None)
@few
def test_a_status_record(data: st.DataObject | None) -> None:
    fields: dict[bytes, bytes] = {b"pid": DEEP.encode()}
    kind: type[ModelStatus | WorkerStatus] = WorkerStatus
    if data is not None:
        kind = data.draw(st.sampled_from([ModelStatus, WorkerStatus]))
        recorded = RECORDS["model" if kind is ModelStatus else "worker"]
        values = JSON.map(json.dumps) | st.text()
        drawn = data.draw(near(recorded, *kind.model_fields, values=values))
        fields = {name.encode(): value.encode(errors="ignore") for name, value in drawn.items()}
    with in_or_refused("a record", ClipyardError):
        codec.unpack_record(kind, fields)


@given(data=st.data())
@few
def test_the_environment(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(["slots", *WorkerSettings.model_fields]))
    words = st.text(st.characters(exclude_characters="\0", codec="utf-8"))
    text = data.draw(st.integers(1, 99).map(str) | JSON.map(json.dumps) | words)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"CLIPYARD_{field.upper()}", text)
        with in_or_refused("the environment", BadSettings):
            WorkerSettings.read()


@given(content=objects({"slots": 2}, "clipyard_slots", "image_roots", "clip_batch_size"))
@example(content=DEEP.encode())
@few
def test_the_settings_file(content: bytes) -> None:
    file = laid_down(f"{abs(hash(content))}.json", content)  # files are read once per name
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPYARD_CONFIG", str(file))
        with in_or_refused("the settings file", BadSettings):
            WorkerSettings.read()


TOML_VALUES = st.sampled_from(
    [
        '"text"',
        "1",
        "-1",
        "1.5",
        "nan",
        "true",
        "[]",
        '["image"]',
        '["x"]',
        "{}",
        "[1]",
        "1979-05-27",
    ]
)
ENTRY_FIELDS = (
    "backend", "architecture", "checkpoint", "dimension", "input_size", "kinds", "aliases",
    "memory_gb", "options", "sha256", "id",
)  # fmt: skip


ENTRY = {"backend": '"fake"', "dimension": "8", "kinds": '["text"]'}


@given(
    content=near(ENTRY, *ENTRY_FIELDS, values=TOML_VALUES).map(
        lambda fields: "\n".join(['["a/b"]', *(f"{k} = {v}" for k, v in fields.items())]).encode()
    )
    | st.binary()
    | TOML_VALUES.map(lambda value: f"a = {value}".encode())
)
@example(content=b"a = " + DEEP.encode())
@few
def test_a_catalogue(content: bytes) -> None:
    file = laid_down("catalogue.toml", content)
    with in_or_refused("a catalogue", BadSettings):
        for entry in Catalogue.read(file):
            entry.public()


@given(
    text=objects(json.loads(RECORDS["job"]["spec"]), *JobSpec.model_fields),
    signature=st.none() | st.binary(max_size=64),
)
@example(text=b'{"version": 1, "options": ' + DEEP.encode(), signature=None)
@few
def test_a_job(text: bytes, signature: bytes | None) -> None:
    with in_or_refused("a job", BadRequest):
        assert isinstance(JobSpec.read(text), JobSpec)
    with in_or_refused("a job without a signature", BadRequest):
        unsealed("a", text, signature, Settings.read())
    with pytest.raises(NotSigned):
        unsealed("a", text, signature, SIGNING)


@given(content=objects({"items": 3, "chunks": 1, "chunk_size": 1024, "index": "0" * 64}))
@example(content=DEEP.encode())
@few
def test_a_manifest(content: bytes) -> None:
    with in_or_refused("a manifest", JobRefused):
        manifest.read(laid_down("manifest.json", content).parent)


@given(content=objects(MARKER))
@example(content=DEEP.encode())
@few
def test_a_marker(content: bytes) -> None:
    chunks = FOLDER / "chunks" / "00000"
    chunks.mkdir(parents=True, exist_ok=True)
    laid_down("chunks/00000/00000000.json", content)
    with in_or_refused("a marker", LookupError):
        if Papers(FOLDER).marker(0) is None:
            raise LookupError


@given(
    kind=st.sampled_from(["texts", "list", "webdataset"]),
    ending=st.sampled_from(["jsonl", "csv", "tsv", "parquet", "txt", "tar"]),
    content=objects({"path": "a.png", "text": "a cat"})
    | st.text().map(lambda text: text.encode(errors="replace")),
)
@example(kind="texts", ending="jsonl", content=DEEP.encode())
@few
def test_a_list_of_a_job(kind: str, ending: str, content: bytes) -> None:
    file = laid_down(f"list.{ending}", content)
    doors = Doors(WorkerSettings.read(image_roots=(FOLDER,)))
    with in_or_refused("a list", JobRefused):
        for item in open_source(Place(kind=kind, where=str(file)), doors).walk():
            item.line()


LIMITS = st.lists(
    st.builds("{}={}".format, st.sampled_from(["rpm", "ipm"]), st.integers(-1, 10**9)), max_size=3
).map(" ".join)


@given(entry=(LIMITS | st.text()).map(lambda words: f"{'t' * 16} {words}") | st.text())
@example(entry=f"{'t' * 16} rpm=600 ipm=20000")
@few
def test_a_token_with_its_limits(entry: str) -> None:
    with in_or_refused("a token with limits" if "=" in entry else "a token", BadSettings):
        assert all(Pass.parse(entry).limits.values())


GATEWAY = TestClient(
    build(FakeAsyncClient(), GatewaySettings.read(redis_url="redis://127.0.0.1:1/0")),
    base_url="http://127.0.0.1",
    raise_server_exceptions=False,
)
PATHS = (
    "/v1/embeddings", "/encode/text", "/encode/image", "/similarity",
    "/api/rag/embedding/reload/vision", "/api/rag/embedding/unload/vision",
)  # fmt: skip
PART = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n%s\r\n--x--\r\n'


@given(
    path=st.sampled_from(PATHS),
    content_type=st.sampled_from(
        ["application/json", "multipart/form-data; boundary=x", "text/plain", "x"]
    ),
    body=objects(
        {"input": "a cat"},
        "model",
        "encoding_format",
        "dimensions",
        "modality",
        "text",
        "model_id",
    )
    | st.binary().map(lambda content: PART % content),
    query=st.dictionaries(st.sampled_from(["text", "model"]), st.text()),
)
@example(path=PATHS[0], content_type="application/json", body=DEEP.encode(), query={})
@few
def test_a_body_at_the_gateway(
    path: str, content_type: str, body: bytes, query: dict[str, str]
) -> None:
    answer = GATEWAY.post(path, content=body, params=query, headers={"Content-Type": content_type})
    assert answer.status_code < 500
    tried.add("a body")
    if answer.status_code < 400:
        let_in.add("a body")
    else:
        assert answer.json()["error"].keys() == {"code", "message"}
