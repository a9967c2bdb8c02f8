"""Everything that strangers can hand us ends in a value or in our own error, never in another.

`python -m tests.fuzz --parsers` lets atheris look for inputs, guided by what it reaches.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
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


def objects(*names: str) -> st.SearchStrategy[bytes]:
    """JSON objects with some of these fields; or other JSON; or anything."""
    fields = st.dictionaries(st.sampled_from([*names, "unknown"]), JSON, max_size=5)
    return (fields | JSON).map(lambda value: json.dumps(value).encode()) | st.binary()


def fields_of(kind: type[Request]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from([*kind.model_fields, "unknown"])
    return st.dictionaries(names, JSON, max_size=5)


@given(kind=st.sampled_from([EmbedBatch, Load, Switch, Unload]), data=st.data())
@few
def test_a_request(kind: type[Request], data: st.DataObject) -> None:
    payload = data.draw(fields_of(kind))
    with pytest.raises(NotSigned):
        opened({FIELD: data.draw(JSON), **payload}, task="t", request="1", settings=SIGNING)
    with suppress(BadRequest):
        request = checked(kind, payload)
        assert payload.keys() <= kind.model_fields.keys()
        assert checked(kind, request.model_dump(mode="json")) == request


@given(header=JSON, length=st.none() | st.integers(0, 2**32 - 1), body=st.binary(max_size=64))
@example(header=None, length=None, body=DEEP.encode())
@few
def test_an_answers_frame(header: Any, length: int | None, body: bytes) -> None:
    text = body if header is None else json.dumps(header).encode()
    frame = (len(text) if length is None else length).to_bytes(4, "little") + text + body
    with suppress(ValueError):
        codec.unpack_answer(frame)


@given(data=st.data())
@few
def test_the_header_of_an_answer(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([Embedded, Managed]))
    fields = data.draw(st.dictionaries(st.sampled_from([*kind.model_fields]), JSON))
    text = json.dumps({kind.__name__.lower(): fields}).encode()
    with suppress(ValueError):
        codec.unpack_answer(len(text).to_bytes(4, "little") + text + data.draw(st.binary()))


@given(data=st.data())
@example(data=None)
@few
def test_a_status_record(data: st.DataObject | None) -> None:
    fields: dict[bytes, bytes] = {b"pid": DEEP.encode()}
    kind: type[ModelStatus | WorkerStatus] = WorkerStatus
    if data is not None:
        kind = data.draw(st.sampled_from([ModelStatus, WorkerStatus]))
        names = st.sampled_from([*kind.model_fields, "unknown"])
        values = JSON.map(json.dumps) | st.text()
        drawn = data.draw(st.dictionaries(names, values))
        fields = {name.encode(): value.encode(errors="ignore") for name, value in drawn.items()}
    with suppress(ClipyardError):
        codec.unpack_record(kind, fields)


@given(data=st.data())
@few
def test_the_environment(data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(list(WorkerSettings.model_fields)))
    text = data.draw(
        JSON.map(json.dumps) | st.text(st.characters(exclude_characters="\0", codec="utf-8"))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"CLIPYARD_{field.upper()}", text)
        with suppress(BadSettings):
            WorkerSettings.read()


@given(content=objects("clipyard_slots", "slots", "image_roots", "clip_batch_size"))
@example(content=DEEP.encode())
@few
def test_the_settings_file(content: bytes) -> None:
    file = laid_down(f"{abs(hash(content))}.json", content)  # files are read once per name
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPYARD_CONFIG", str(file))
        with suppress(BadSettings):
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
ENTRY_FIELDS = st.sampled_from(
    ["backend", "architecture", "checkpoint", "dimension", "input_size", "kinds", "aliases",
     "memory_gb", "options", "sha256", "unknown", "id"]
)  # fmt: skip


@given(
    content=st.dictionaries(ENTRY_FIELDS, TOML_VALUES).map(
        lambda fields: "\n".join(['["a/b"]', *(f"{k} = {v}" for k, v in fields.items())]).encode()
    )
    | st.binary()
    | TOML_VALUES.map(lambda value: f"a = {value}".encode())
)
@example(content=b"a = " + DEEP.encode())
@few
def test_a_catalogue(content: bytes) -> None:
    file = laid_down("catalogue.toml", content)
    with suppress(BadSettings):
        for entry in Catalogue.read(file):
            entry.public()


@given(text=objects(*JobSpec.model_fields), signature=st.none() | st.binary(max_size=64))
@example(text=b'{"version": 1, "options": ' + DEEP.encode(), signature=None)
@few
def test_a_job(text: bytes, signature: bytes | None) -> None:
    with suppress(BadRequest):
        assert isinstance(JobSpec.read(text), JobSpec)
    with suppress(BadRequest):
        unsealed("a", text, signature, Settings.read())
    with pytest.raises(NotSigned):
        unsealed("a", text, signature, SIGNING)


@given(content=objects("items", "chunks", "chunk_size", "index"))
@example(content=DEEP.encode())
@few
def test_a_manifest(content: bytes) -> None:
    with suppress(JobRefused):
        manifest.read(laid_down("manifest.json", content).parent)


@given(content=objects("chunk", "items", "losses", "round", "worker", "at", "stages"))
@example(content=DEEP.encode())
@few
def test_a_marker(content: bytes) -> None:
    chunks = FOLDER / "chunks" / "00000"
    chunks.mkdir(parents=True, exist_ok=True)
    laid_down("chunks/00000/00000000.json", content)
    Papers(FOLDER).marker(0)


@given(
    kind=st.sampled_from(["texts", "list", "webdataset"]),
    ending=st.sampled_from(["csv", "tsv", "jsonl", "parquet", "txt", "tar"]),
    content=objects("path", "text") | st.text().map(lambda text: text.encode(errors="replace")),
)
@example(kind="texts", ending="jsonl", content=DEEP.encode())
@few
def test_a_list_of_a_job(kind: str, ending: str, content: bytes) -> None:
    file = laid_down(f"list.{ending}", content)
    doors = Doors(WorkerSettings.read(image_roots=(FOLDER,)))
    with suppress(JobRefused):
        for item in open_source(Place(kind=kind, where=str(file)), doors).walk():
            item.line()


@given(entry=st.text() | st.text().map(lambda words: f"{'t' * 16} {words}"))
@few
def test_a_token_with_its_limits(entry: str) -> None:
    with suppress(BadSettings):
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
    body=objects("input", "model", "encoding_format", "dimensions", "modality", "text", "model_id")
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
    if answer.status_code >= 400:
        assert answer.json()["error"].keys() == {"code", "message"}
