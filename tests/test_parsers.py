"""Everything that strangers can hand us ends in a value or in our own error, never in another."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from api_client.wire import codec
from api_client.wire.errors import BadRequest, BadSettings
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
from worker.catalogue import Catalogue
from worker.delivery.answers import checked
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
DEEP = "[" * 200_000
few = settings(
    max_examples=int(os.environ.get("CLIPYARD_EXAMPLES", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def fields_of(kind: type[Request]) -> st.SearchStrategy[dict[str, Any]]:
    names = st.sampled_from([*kind.model_fields, "unknown"])
    return st.dictionaries(names, JSON, max_size=5)


@pytest.mark.parametrize("kind", [EmbedBatch, Load, Switch, Unload])
@given(data=st.data())
@few
def test_a_request(kind: type[Request], data: st.DataObject) -> None:
    payload = data.draw(fields_of(kind))
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
    with suppress(ValueError):
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


@given(
    content=(
        st.dictionaries(
            st.sampled_from(["clipyard_slots", "slots", "image_roots", "clip_batch_size"]), JSON
        )
        | JSON
    ).map(lambda v: json.dumps(v).encode())
    | st.binary()
)
@example(content=DEEP.encode())
@few
def test_the_settings_file(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / f"{abs(hash(content))}.json"  # files are read once per name
    file.write_bytes(content)
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
def test_a_catalogue(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "catalogue.toml"
    file.write_bytes(content)
    with suppress(BadSettings):
        for entry in Catalogue.read(file):
            entry.public()
