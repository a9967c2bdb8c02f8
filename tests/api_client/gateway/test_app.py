import base64
import gc
import io
import re
import tempfile
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from starlette.requests import Request

from api_client.gateway import plain, rag
from api_client.gateway.app import build
from api_client.gateway.refusals import refusal_of
from api_client.status import Fleet, Worker
from api_client.testing import MODELS, NODE, FakeAsyncClient, FakeClient
from api_client.wire.errors import (
    BY_CODE,
    BackendAway,
    BackendFailed,
    ImageForbidden,
    ImageGone,
    ImageTooLarge,
    ImageUnreachable,
    ImageUnreadable,
    LoadFailed,
    NoBroker,
    NotSigned,
)
from api_client.wire.messages import CatalogueEntry, Kind, ModelStatus
from api_client.wire.version import VERSION

HERE = "http://127.0.0.1"
RAG = "/api/rag/embedding"
WORDS = CatalogueEntry(id="words", name="", family="fake", dimension=0, kinds=(Kind.TEXT,))
EYES = CatalogueEntry(id="eyes", name="", family="fake", dimension=8, kinds=(Kind.IMAGE,))


def png():
    out = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(out, "PNG")
    return out.getvalue()


def data_uri():
    return "data:image/png;base64," + base64.b64encode(png()).decode()


def test_a_text_is_encoded_from_the_body_and_from_the_query(http):
    wanted = FakeClient().embed_texts(["red apple"])[0]
    by_body = http.post("/encode/text", json={"text": "red apple"})
    by_query = http.post("/encode/text", params={"text": "red apple"})
    assert by_body.json().keys() == {"embedding"}
    assert np.allclose(by_body.json()["embedding"], wanted)
    assert by_query.json() == by_body.json()
    assert http.post("/encode/text").status_code == 400
    assert http.post("/encode/text?text=a", json={"text": "b"}).status_code == 400


@pytest.mark.parametrize("query", ["text=a&text=b", "text=a&model=fake/a&model=fake/b"])
def test_a_query_field_that_comes_twice_is_not_understood(http, query):
    answer = http.post(f"/encode/text?{query}")
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].endswith(": send it once")


def test_a_query_of_many_fields_is_read_once():
    query = "&".join(f"{number:x}" for number in range(100_000))
    plain._asked_once(Request({"type": "http", "query_string": query.encode()}))


@pytest.mark.parametrize("twice", ["file", "text"])
def test_a_form_field_that_comes_twice_is_not_understood(http, twice):
    fields = [("file", ("a.png", png())), ("text", (None, "red"))]
    fields += [field for field in fields if field[0] == twice]
    answer = http.post("/similarity", files=fields)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == f"{twice}: send it once"


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/encode/text", {"json": {"text": "a", "model": "fake/large"}}),
        ("/encode/image", {"files": {"file": png()}, "data": {"model": "fake/large"}}),
        ("/similarity?text=a", {"files": {"file": png()}, "data": {"model": "fake/large"}}),
    ],
)
def test_a_model_that_is_named_in_the_body_is_not_answered_by_another(http, path, sent):
    answer = http.post(path, **sent)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"] == "model: name it in the address, as ?model="


def test_no_model_may_be_named_in_the_body(http):
    assert http.post("/encode/text", json={"text": "a", "model": None}).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        {"files": {"file": (None, "a.png")}},
        {"files": {"image": png()}},
        {"content": png()},
        {"data": {f"field{i}": "" for i in range(1001)}},  # that many are not even read
    ],
    ids=["a word", "another name", "no form", "a form without files"],
)
def test_a_picture_that_is_no_upload_is_told_how_to_be_one(http, sent):
    answer = http.post("/encode/image", **sent)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].endswith("as curl -F file=@a.jpg does")


def test_an_upload_where_json_is_due_leaves_no_file_open(http):
    answer = http.post("/encode/text", files={"file": ("a.png", png())})
    assert answer.json()["error"]["message"].startswith("send the body as JSON")
    gc.collect()  # tells of one


def test_an_uploaded_picture_is_encoded(http):
    answer = http.post("/encode/image", files={"file": ("a.png", png())})
    assert np.allclose(answer.json()["embedding"], FakeClient().embed_images([png()])[0])


@pytest.mark.parametrize("where", ["params", "data"])
def test_similarity_takes_a_text_and_an_upload(http, where):
    answer = http.post("/similarity", files={"file": png()}, **{where: {"text": "red"}})
    fake = FakeClient()
    wanted = fake.similarity(fake.embed_texts(["red"])[0], fake.embed_images([png()])[0])
    assert answer.json() == {"similarity": pytest.approx(float(wanted), abs=1e-6)}


@pytest.mark.parametrize("asked", [{}, {"model": "auto"}])
def test_a_text_follows_the_model_of_the_picture_also_where_it_was_switched_meanwhile(
    settings, asked
):
    class Switched(FakeAsyncClient):
        async def _hold(self, talk):
            answer = await super()._hold(talk)
            await super()._hold(self._desk.switch("fake/large", None, None))
            return answer

    fake = FakeClient()
    red, picture = fake.embed_texts(["red"])[0], fake.embed_images([png()])[0]
    with TestClient(build(Switched(), settings), base_url=HERE) as http:
        fit = http.post("/similarity", files={"file": png()}, params={"text": "red", **asked})
    assert fit.json() == {"similarity": pytest.approx(float(fake.similarity(red, picture)))}
    with TestClient(build(Switched(), settings), base_url=HERE) as http:
        sent = {"input": ["red", data_uri()], **asked}
        rows = http.post("/v1/embeddings", json=sent).json()["data"]
    assert np.allclose([row["embedding"] for row in rows], [red, picture])


def test_of_auto_a_model_that_only_sees_is_not_chosen_where_a_text_follows(settings):
    models = (*MODELS, EYES)
    with TestClient(build(FakeAsyncClient(models=models[::-1]), settings), base_url=HERE) as http:
        fit = http.post("/similarity?model=auto&text=red", files={"file": png()})
        both = http.post("/v1/embeddings", json={"input": ["red", data_uri()], "model": "auto"})
        alone = http.post("/v1/embeddings", json={"input": data_uri(), "model": "auto"})
    assert fit.is_success
    assert (both.json()["model"], alone.json()["model"]) == ("fake/large", "eyes")


def test_similarity_of_two_spaces_is_refused(settings):
    class Updated(FakeAsyncClient):  # a worker of another version answered
        async def embed_texts_detailed(self, texts, **options):
            items = await super().embed_texts_detailed(texts, **options)
            return [replace(item, fingerprint="another") for item in items]

    with TestClient(build(Updated(), settings), base_url=HERE) as http:
        answer = http.post("/similarity?text=red", files={"file": png()})
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "space_mismatch")


def test_an_uploaded_picture_needs_no_disk(http, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/no/such/folder")
    assert http.post("/encode/image", files={"file": bytes(2**21)}).is_success


@pytest.mark.parametrize(
    ("sent", "other"),
    [("a", "embed_images_detailed"), ("http://a/b.jpg", "embed_texts_detailed")],
)
def test_inputs_of_one_kind_are_one_call(http, fake, monkeypatch, sent, other):
    monkeypatch.setattr(fake, other, None)
    assert http.post("/v1/embeddings", json={"input": [sent]}).is_success


def test_openai_embeddings_of_texts_and_pictures_keep_their_order(http):
    inputs = ["one", data_uri(), "two", "https://example.com/cat.jpg"]
    answer = http.post("/v1/embeddings", json={"input": inputs, "model": "fake/large"}).json()
    fake = FakeClient()
    texts = fake.embed_texts(["one", "two"], model="fake/large")
    images = fake.embed_images([png(), "https://example.com/cat.jpg"], model="fake/large")
    rows = [row["embedding"] for row in answer["data"]]
    assert np.allclose(rows, [texts[0], images[0], texts[1], images[1]])
    assert [row["index"] for row in answer["data"]] == [0, 1, 2, 3]
    assert (answer["model"], answer["object"]) == ("fake/large", "list")


def test_a_text_that_was_cut_is_told(http, fake):
    whole = fake.embed_texts_detailed

    async def second_is_cut(*args, **options):
        first, second = await whole(*args, **options)
        return [first, replace(second, truncated=True)]

    fake.embed_texts_detailed = second_is_cut
    rows = http.post("/v1/embeddings", json={"input": ["a", "b"]}).json()["data"]
    assert [row["truncated"] for row in rows] == [False, True]


@pytest.mark.parametrize("modality", [None, "image"])
@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        ("https://example.com/cat.jpg\n", "https://example.com/cat.jpg"),
        (" https://example.com/cat.jpg", "https://example.com/cat.jpg"),
        ("data:image/png;base64," + base64.encodebytes(bytes(100)).decode(), bytes(100)),
        (" DATA:;BASE64," + base64.encodebytes(bytes(100)).decode(), bytes(100)),
    ],
)
def test_lines_do_not_make_a_text_of_a_picture(http, modality, sent, meant):
    [row] = http.post("/v1/embeddings", json={"input": sent, "modality": modality}).json()["data"]
    assert np.allclose(row["embedding"], FakeClient().embed_images([meant])[0])


@pytest.mark.parametrize("words", ["https://example.com is a site", "data:image/png, say some"])
def test_a_sentence_that_begins_with_an_address_is_a_text(http, words):
    [row] = http.post("/v1/embeddings", json={"input": words}).json()["data"]
    assert np.allclose(row["embedding"], FakeClient().embed_texts([words])[0])


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "AVIF"])
def test_a_picture_in_bare_base64_is_not_taken_for_a_text(http, format):
    file = io.BytesIO()
    Image.effect_noise((20, 20), 50).save(file, format)
    for write in (base64.b64encode, base64.encodebytes):  # the latter in lines
        bare = write(file.getvalue()).decode()
        answer = http.post("/v1/embeddings", json={"input": bare})
        assert answer.status_code == 400
        assert "data:image/...;base64,..." in answer.json()["error"]["message"]
    assert http.post("/v1/embeddings", json={"input": bare, "modality": "text"}).is_success


@pytest.mark.parametrize("wrap", [lambda one: one, lambda one: ["a text", one]])
def test_an_object_as_other_services_take_them_hears_what_to_send(http, wrap):
    answer = http.post("/v1/embeddings", json={"input": wrap({"image": "https://a/b.jpg"})})
    assert answer.status_code == 422
    assert "data:image/...;base64,..." in answer.json()["error"]["message"]


def test_an_address_is_a_text_where_the_caller_says_so(http):
    asked = {"input": "https://example.com/cat.jpg", "modality": "text"}
    [row] = http.post("/v1/embeddings", json=asked).json()["data"]
    assert np.allclose(row["embedding"], FakeClient().embed_texts([asked["input"]])[0])


def test_base64_is_little_endian_float32(http):
    asked = {"input": "a", "encoding_format": "base64", "dimensions": 16}
    [row] = http.post("/v1/embeddings", json=asked).json()["data"]
    vector = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
    assert np.array_equal(vector, FakeClient().embed_texts(["a"])[0])


def test_models_are_listed_for_openai(http):
    listed = http.get("/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["fake/small", "fake/large", "fake/words"]
    assert http.get("/v1/models/fake/large").json()["owned_by"] == "fake"
    assert http.get("/v1/models/no/such").status_code == 404


def test_models_are_listed_by_kind(http):
    listed = http.get(f"{RAG}/models").json()
    assert [entry["model_id"] for entry in listed["vision_embeddings"]] == [
        "fake/small",
        "fake/large",
    ]
    [words] = listed["text_embeddings"]
    assert words["supported_features"] == ["text_embedding"]


def test_a_model_is_loaded_switched_and_unloaded_by_an_id_with_a_slash(http):
    loaded = http.post(f"{RAG}/vision/load/fake/large").json()
    assert (loaded["success"], loaded["model_id"]) == (True, "fake/large")
    switched = http.post(f"{RAG}/vision/switch/fake/large").json()
    assert switched.keys() == {"success", "model_id", "message"}
    gone = http.post(f"{RAG}/vision/unload/fake%2Flarge").json()
    assert (gone["unloaded"], gone["model_id"]) == (True, "fake/large")


def test_an_id_may_hold_an_at_sign(http):
    refused = http.post(f"{RAG}/vision/load/ViT-L-14@336px/openai")
    assert refused.status_code == 404
    assert "'ViT-L-14@336px/openai'" in refused.json()["error"]["message"]


def test_a_type_is_unloaded_and_reloaded(http):
    http.post("/encode/text", json={"text": "a"})
    gone = http.post(f"{RAG}/unload/vision").json()
    assert gone == {"unloaded": True, "model_type": "vision", "message": gone["message"]}
    assert not http.post(f"{RAG}/unload/text").json()["unloaded"]
    back = http.post(f"{RAG}/reload/vision", json={"model_id": "fake/small"}).json()
    assert back == {"success": True, "model_id": "fake/small", "message": back["message"]}
    assert http.post(f"{RAG}/reload/text", json={"model_id": "fake/small"}).status_code == 400
    assert http.post(f"{RAG}/unload/sound").status_code == 422


@pytest.mark.parametrize("path", ["vision/load/words", "vision/switch/fake/words"])
def test_a_text_model_is_not_brought_as_a_vision_model(http, path):
    refused = http.post(f"{RAG}/{path}")
    assert refused.status_code == 400
    assert refused.json()["error"]["message"].endswith("words is no vision model")
    assert http.get(f"{RAG}/vision/status").json()["current_model"]["model_id"] == "fake/small"


@pytest.mark.parametrize("model_type", ["vision", "text"])
def test_whether_a_model_that_nobody_lists_can_be_reloaded_is_the_workers_answer(http, model_type):
    refused = http.post(f"{RAG}/reload/{model_type}", json={"model_id": "fake/other"})
    assert refused.status_code == 404
    assert "known are fake/small" in refused.json()["error"]["message"]


def test_status_has_the_shape_that_callers_know(http):
    http.post("/encode/text", json={"text": "a"})
    http.post("/encode/text?model=fake/words", json={"text": "a"})
    status = http.get(f"{RAG}/status").json()
    vision = status["vision_embeddings"]
    assert vision["loaded"] is True
    assert vision["model_info"] == {"model_id": "fake/small", "dimension": 16, "metric": "cosine"}
    assert vision["memory_usage"].keys() == {"vram_mb", "ram_mb"}
    assert vision["memory_pressure_level"] == "normal"
    assert vision["last_used"] > 0
    words = status["text_embeddings"]["words"]
    assert words["loaded"] is True
    assert words["model_info"]["dimension"] == 8
    assert status["memory_pressure"] == {"text_embeddings": "normal"}
    tracked = status["tracker_status"]["clip_vision_embedding"]
    assert tracked["model_type"] == "vision_embedding"
    assert tracked["usage_count"] == 1
    assert tracked["is_loaded"] is True
    assert {"last_used", "vram_timeout", "ram_timeout"} <= tracked.keys()


def test_status_tells_of_the_rest_though_nobody_lists_the_current_model():
    status = rag.status_of(Fleet(current="clip/typo"), [WORDS])
    vision = status.vision_embeddings
    assert (vision.model_info.model_id, vision.model_info.dimension) == ("clip/typo", 0)
    assert status.text_embeddings.keys() == {"words"}


def test_a_model_that_needed_no_entry_tells_its_dimension_once_it_is_loaded():
    held = ModelStatus(id=WORDS.id, type="text", state="device", dimension=7)
    at = {"name": "gpu0@a", "device": "cuda:0", "pid": 1, "started_at": 0.0, "beat_at": 0.0}
    fleet = Fleet(workers=(Worker(**at, state="ready", held=(held,)),), current="clip/a")
    status = rag.status_of(fleet, [WORDS])
    assert status.text_embeddings["words"].model_info.dimension == 7


def test_health_has_the_shape_that_callers_know(http):
    health = http.get(f"{RAG}/health").json()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", health["timestamp"])
    clip = health["services"]["clip_embedding_service"]
    assert clip.keys() == {"status", "model_loaded", "memory_usage", "last_used"}
    assert health["services"]["embedding_service"]["loaded_models"] == []
    assert health["summary"] == {"total_services": 2, "healthy": 2, "degraded": 0, "unhealthy": 0}


@pytest.mark.parametrize("ready", [0, 1, 2])
def test_health_tells_who_serves_and_models_of_pictures_from_those_of_texts(ready):
    clip = ModelStatus(id="clip/a", state="device", device_bytes=2**21, last_used=5.0)
    words = ModelStatus(id="text/b", type="text", state="host", host_bytes=2**20)
    at = {"device": "cpu", "pid": 1, "started_at": 1, "beat_at": 1, "held": (clip, words)}
    states = ["ready"] * ready + ["broken"] * (2 - ready)
    fleet = Fleet(workers=tuple(Worker(name=f"w{n}", state=s, **at) for n, s in enumerate(states)))
    told = rag.health_of(fleet, now=datetime.now(UTC))
    vision, texts = told.services.clip_embedding_service, told.services.embedding_service
    status = ("unhealthy", "degraded", "healthy")[ready]
    assert vision.status == texts.status == status
    assert (vision.model_loaded, vision.last_used) == (True, 5.0)
    assert texts.loaded_models == ["text/b"]
    assert (vision.memory_usage.vram_mb, texts.memory_usage.ram_mb) == (4.0, 2.0)
    counts = told.summary.model_dump(exclude={"total_services"})
    assert {name for name, number in counts.items() if number} == {status}


def test_vision_status_has_the_shape_that_callers_know(http):
    status = http.get(f"{RAG}/vision/status").json()
    assert status["current_model"]["model_id"] == "fake/small"
    assert status["current_model"]["loaded"] is False
    assert status["available_models"][0]["supported_features"] == [
        "image_embedding",
        "text_embedding",
    ]


def test_a_model_that_is_being_loaded_is_not_loaded_yet(http, fake):
    loading = ModelStatus(id="fake/small", state="loading")
    at = {"name": NODE, "device": "memory", "pid": 1, "started_at": 1, "beat_at": 1}
    fleet = Fleet(workers=(Worker(**at, state="ready", held=(loading,)),), current="fake/small")

    async def status():
        return fleet

    fake.status = status
    assert not http.get(f"{RAG}/vision/status").json()["current_model"]["loaded"]
    assert not http.get(f"{RAG}/status").json()["vision_embeddings"]["loaded"]
    assert http.get(f"{RAG}/status").json()["tracker_status"] == {}
    health = http.get(f"{RAG}/health").json()
    assert not health["services"]["clip_embedding_service"]["model_loaded"]


def test_the_process_is_alive_and_a_worker_is_ready(http):
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ready", "workers": 1}
    assert [http.head(path).status_code for path in ("/healthz", "/readyz")] == [200, 200]


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("/v1/embeddings", {"content": b"{"}, 422),
        ("/v1/embeddings", {"content": b"\xff\xfe"}, 422),
        ("/v1/embeddings", {"json": []}, 422),
        ("/v1/embeddings", {"json": {}}, 422),
        ("/v1/embeddings", {"json": {"input": 3}}, 422),
        ("/v1/embeddings", {"json": {"input": []}}, 422),
        ("/v1/embeddings", {"json": {"input": [1, 2, 3]}}, 422),
        ("/v1/embeddings", {"json": {"input": ["a", ""]}}, 422),
        ("/v1/embeddings", {"json": {"input": ["a", " \n"]}}, 422),
        ("/v1/embeddings", {"json": {"input": "a", "model": ""}}, 422),
        ("/v1/embeddings", {"json": {"input": "a", "model": "x" * 201}}, 422),
        ("/v1/embeddings", {"json": {"input": "a", "model": "../../etc/passwd"}}, 404),
        ("/v1/embeddings", {"json": {"input": "a", "model": "no/such"}}, 404),
        ("/v1/embeddings", {"json": {"input": "a", "encoding_format": "xml"}}, 422),
        ("/v1/embeddings", {"json": {"input": "a", "dimensions": 15}}, 400),
        ("/v1/embeddings", {"json": {"input": "a", "dimensions": 15, "model": "auto"}}, 400),
        ("/v1/embeddings", {"json": {"input": "a", "dimensions": 0}}, 422),
        ("/v1/embeddings", {"json": {"input": "x" * 100_001}}, 400),
        ("/v1/embeddings", {"json": {"input": ["a"] * 2049}}, 400),
        ("/v1/embeddings", {"json": {"input": "data:image/png;base64,!!"}}, 400),
        ("/v1/embeddings", {"json": {"input": "data:image/png,plain"}}, 400),
        ("/v1/embeddings", {"json": {"input": "/etc/passwd", "modality": "image"}}, 400),
        ("/v1/embeddings", {"json": {"input": "file:///etc/passwd"}}, 400),
        ("/v1/embeddings", {"json": {"input": "S3://bucket/cat.jpg"}}, 400),
        ("/encode/text", {"json": {"text": ""}}, 422),
        ("/encode/text", {"json": {"text": 5}}, 422),
        ("/encode/text", {"params": {"text": "a", "model": "no/such"}}, 404),
        ("/encode/image", {}, 422),
        ("/encode/image", {"data": {"file": "no file"}}, 422),
        (
            "/encode/image",
            {"content": b"--x", "headers": {"content-type": "multipart/form-data"}},
            400,
        ),
        ("/similarity", {"files": {"file": b"x"}}, 400),
        ("/similarity", {"files": {"file": b"x"}, "params": {"text": " "}}, 422),
        (f"{RAG}/reload/vision", {"json": {}}, 422),
        (f"{RAG}/reload/vision", {"json": {"model_id": "no/such"}}, 404),
        (f"{RAG}/vision/load/..%2F..%2Fetc%2Fpasswd", {}, 404),
        (f"{RAG}/vision/load/" + "x" * 201, {}, 422),
        (f"{RAG}/vision/load/", {}, 422),
        (f"{RAG}/no/such", {}, 404),
        ("/healthz", {}, 405),
    ],
)
def test_a_bad_request_gets_a_code_and_a_sentence(http, path, sent, status):
    answer = http.post(path, **sent)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error.keys() == {"code", "message"}
    assert error["code"]
    assert error["message"]


def test_of_too_many_items_none_is_looked_at_beyond_the_limit(http):
    answer = http.post("/v1/embeddings", json={"input": ["a"] * 2049 + [""]})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("input has more than 2048 items")


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (["a", " ", "b"], r"input\[1\] is blank; send at least one word"),
        ("", "input: String should have at least 1 character"),
        ([], "input: List should have at least 1 item"),
        ([[1, 2]], r"input\[0\]: .* check_embedding_ctx_length=False"),
        ([1, 2], r"input\[0\]: .* check_embedding_ctx_length=False"),
        (None, "input: Input should be a valid string"),
    ],
)
def test_what_is_not_understood_is_said_of_what_was_sent(http, sent, told):
    answer = http.post("/v1/embeddings", json={"input": sent})
    assert answer.status_code == 422
    assert re.match(told, answer.json()["error"]["message"])


@pytest.mark.parametrize(
    ("path", "sent", "told"),
    [
        ("/v1/embeddings", {}, "body: Field required"),
        ("/v1/embeddings", {"json": {}}, "input: Field required"),
        ("/encode/text?text=%20", {}, "text is blank"),
        ("/encode/image", {}, "file: send the picture in a form"),
        (f"{RAG}/vision/load/", {}, "model_id: String should have"),
        (
            "/encode/text",
            {"content": '{"text" "a"}', "headers": {"content-type": "application/json"}},
            "the body is no JSON: Expecting ':' delimiter at character 8",
        ),
        (
            "/encode/text",
            {"content": b'{"text": "caf\xe9"}', "headers": {"content-type": "application/json"}},
            "the body cannot be read: 'utf-8' codec can't decode byte 0xe9 in position 13",
        ),
        (
            "/encode/text",
            {"content": "[" * 100_000, "headers": {"content-type": "application/json"}},
            "the body is nested too deeply",
        ),
        (  # what curl says of a body unless told otherwise
            "/encode/text",
            {
                "content": '{"text": "a"}',
                "headers": {"content-type": "application/x-www-form-urlencoded"},
            },
            "send the body as JSON, with Content-Type: application/json",
        ),
    ],
)
def test_a_place_is_named_as_its_caller_wrote_it(http, path, sent, told):
    answer = http.post(path, **sent)
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith(told)


@pytest.mark.parametrize(
    ("error", "status", "leaks"),
    [
        (NoBroker("cannot reach Redis at redis://10.0.0.7:6379/0"), 503, "10.0.0.7"),
        (LoadFailed("cannot read /srv/models/secret.safetensors"), 500, "/srv"),
        (BackendAway("Ollama at http://inner-host:11434 is away"), 503, "inner-host"),
        (BackendFailed("internal error on gpu0@inner-host"), 500, "inner-host"),
        (NotSigned("CLIPYARD_SIGNING_KEY of gpu0@inner-host does not fit"), 500, "inner-host"),
        (RuntimeError("at 0x7f password=hunter2"), 500, "hunter2"),
    ],
)
def test_our_own_troubles_are_told_without_their_details(http, fake, error, status, leaks):
    async def fails(*_, **__):
        raise error

    fake.embed_texts = fails
    answer = http.post("/encode/text", json={"text": "a"})
    assert answer.status_code == status
    assert answer.json()["error"].keys() == {"code", "message"}
    assert leaks not in answer.text


@pytest.mark.parametrize("error", [LoadFailed("no such file"), RuntimeError()])
def test_a_path_cannot_write_lines_of_its_own_into_the_log(http, fake, caplog, error):
    async def fails(*_, **__):
        raise error

    fake.load = fails
    http.post(f"{RAG}/vision/load/x%0Dall is well")
    [said] = [one.getMessage() for one in caplog.records if "vision/load" in one.getMessage()]
    assert said.isprintable()


def test_what_nobody_foresaw_has_its_id_and_is_counted_as_it_was_answered(http, fake):
    async def fails(*_, **__):
        raise RuntimeError

    fake.embed_texts = fails
    answer = http.post("/encode/text?text=a", headers={"X-Request-ID": "order-7"})
    assert answer.headers["X-Request-ID"] == "order-7"
    assert '_total{route="/encode/text",status="500"} 1.0' in http.get("/metrics").text


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ImageUnreadable("not an image"), 400),
        (ImageForbidden("host not allowed"), 403),
        (ImageTooLarge("too many pixels"), 413),
        (ImageGone("the bytes of this image are gone; send them again"), 503),
        (ImageUnreachable("the host did not answer in time"), 503),
    ],
)
def test_a_refused_picture_says_why(settings, error, status):
    client = FakeAsyncClient(failing={"https://x/a.png": error})
    with TestClient(build(client, settings), base_url=HERE) as http:
        answer = http.post("/v1/embeddings", json={"input": ["words", "https://x/a.png"]})
    assert answer.status_code == status
    assert answer.json() == {"error": {"code": error.code, "message": f"input 1: {error}"}}


@pytest.mark.parametrize("picture", ["data:image/png;base64,!!", "file:///a.png"])
def test_of_several_inputs_the_first_that_is_no_picture_is_named(http, picture):
    for inputs, place in (([picture], ""), (["words", picture, picture], "input 1: ")):
        answer = http.post("/v1/embeddings", json={"input": inputs})
        assert answer.status_code == 400
        assert answer.json()["error"]["message"].startswith(f"{place}a picture")


@pytest.mark.parametrize("kind", [kind for kind in BY_CODE.values() if kind.retryable])
def test_what_may_succeed_later_is_not_called_the_callers_fault(kind):
    assert refusal_of(kind("later"))[1].status >= 500


def test_the_openapi_page_describes_every_path_and_refusal(http):
    page = http.get("/openapi.json").json()
    assert page["info"]["version"] == VERSION
    assert {f"{RAG}/vision/load/{{model_id}}", "/encode/text", "/v1/embeddings"} <= set(
        page["paths"]
    )
    for path, operations in page["paths"].items():
        for operation in operations.values():
            assert operation["description"], path
            refused = [code for code in operation["responses"] if code[0] in "45"]
            assert refused
            for code in refused:
                [schema] = operation["responses"][code]["content"].values()
                assert schema["schema"]["$ref"].endswith("/ErrorBody")


def test_a_callers_request_id_comes_back_and_one_is_made_for_those_without(http):
    assert (
        http.get("/healthz", headers={"X-Request-ID": "order-7"}).headers["X-Request-ID"]
        == "order-7"
    )
    made = http.get("/healthz", headers={"X-Request-ID": "not a good one"}).headers["X-Request-ID"]
    assert len(made) == 36
