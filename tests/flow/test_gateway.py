"""The gateway in front of a real worker."""

import base64
import io

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from api_client.aio import AsyncClient
from api_client.gateway.app import build
from api_client.gateway.settings import GatewaySettings
from tests.flow.processes import until

RAG = "/api/rag/embedding"


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def http(running):
    settings = GatewaySettings.read(redis_url=running.url)
    app = build(AsyncClient(settings, asked_by="gateway"), settings)
    with TestClient(app, base_url="http://localhost") as http:
        yield http


def test_vectors_are_the_clients_own(http, client):
    uri = "data:image/png;base64," + base64.b64encode(png("red")).decode()
    rows = http.post("/v1/embeddings", json={"input": ["words", uri]}).json()["data"]
    wanted = [client.embed_texts(["words"])[0], client.embed_images([png("red")])[0]]
    assert np.allclose([row["embedding"] for row in rows], wanted, atol=1e-6)
    one = http.post("/encode/image", files={"file": png("red")}).json()["embedding"]
    assert np.allclose(one, wanted[1], atol=1e-6)
    fit = http.post("/similarity?text=words", files={"file": png("red")}).json()["similarity"]
    assert fit == pytest.approx(float(client.similarity(*wanted)), abs=1e-5)


@pytest.mark.parametrize("model", ["fake/vision", "auto"])
def test_dimensions_are_those_of_the_vectors_where_no_entry_tells_them(http, client, model):
    asked = {"input": "words", "model": model}
    seen = http.post("/v1/embeddings", json=asked).json()
    size = len(seen["data"][0]["embedding"])
    for dimensions, status in ((size, 200), (size + 1, 400)):
        if model != "auto":  # which takes what is loaded
            client.unload(model)  # loaded, it would tell its own
        answer = http.post("/v1/embeddings", json=asked | {"dimensions": dimensions})
        assert answer.status_code == status
    assert f"{seen['model']} have {size}" in answer.json()["error"]["message"]


def test_a_model_is_loaded_seen_and_unloaded(http, client):
    assert http.post(f"{RAG}/vision/load/fake/vision").json()["success"]
    assert client.is_loaded("fake/vision")
    status = http.get(f"{RAG}/vision/status").json()
    assert "fake/vision" in [entry["model_id"] for entry in status["available_models"]]
    assert http.post(f"{RAG}/reload/vision", json={"model_id": "fake/vision"}).json()["success"]
    assert http.get(f"{RAG}/status").status_code == 200
    assert http.post(f"{RAG}/vision/unload/fake/vision").json()["unloaded"]
    assert not client.is_loaded("fake/vision")


def test_it_is_ready_and_healthy(http):
    until(lambda: http.get("/readyz").status_code != 503)  # the worker has first to look at itself
    assert http.get("/readyz").json()["workers"] == 1
    assert http.get(f"{RAG}/health").json()["summary"]["healthy"] == 2


@pytest.mark.parametrize(
    ("path", "sent", "status", "code"),
    [
        ("/encode/image", {"files": {"file": b"no picture"}}, 400, "image_unreadable"),
        ("/encode/image", {"files": {"file": b""}}, 400, "image_unreadable"),
        ("/encode/image?model=fake/text", {"files": {"file": png("red")}}, 400, "bad_request"),
        ("/encode/text?model=fake/broken&text=a", {}, 500, "load_failed"),
        ("/encode/text?model=no/such&text=a", {}, 404, "unknown_model"),
        ("/v1/embeddings", {"json": {"input": "http://10.0.0.1/a.png"}}, 403, "image_forbidden"),
        (f"{RAG}/vision/load/..%2F..%2Fetc%2Fpasswd", {}, 404, "unknown_model"),
    ],
)
def test_what_a_worker_refuses_is_told_by_code(http, path, sent, status, code):
    answer = http.post(path, **sent)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert "sand" not in answer.text  # why a load failed is for the log
