"""Redis goes, and comes back, under a gateway that runs."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from api_client.aio import AsyncClient
from api_client.gateway.app import build
from api_client.gateway.settings import GatewaySettings
from api_client.wire import names

TOKEN = "a-token-of-some-length"


@pytest.fixture
def valkey_url(valkey_of_my_own):
    return valkey_of_my_own.url


@pytest.fixture
def http(stage, monkeypatch):
    """With a token whose budget is kept in Redis as well."""
    monkeypatch.setattr("api_client.aio.PATIENCE_S", 0.3)
    settings = GatewaySettings.read(
        redis_url=stage.settings.url(),
        key_prefix=stage.settings.key_prefix,
        gateway_tokens=[f"{TOKEN} rpm=600"],
    )
    app = build(AsyncClient(settings), settings)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with TestClient(app, base_url="http://127.0.0.1", headers=headers) as http:
        yield http


def test_while_redis_is_away_everybody_is_told_and_when_it_is_back_it_is_used(
    http, stage, valkey_of_my_own, caplog
):
    stage.show_worker()

    def ask():
        return http.post("/encode/text", json={"text": "a"})

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ask)
        while not stage.store.llen(stage.keys.queue(names.EMBED, names.INTERACTIVE)):
            assert not waiting.done()
            time.sleep(0.01)
        valkey_of_my_own.stop()
        answers = [waiting.result(), ask(), *map(http.get, ("/readyz", "/v1/models"))]
    for answer in answers:
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_broker")
        assert answer.headers["Retry-After"]
    assert http.get("/healthz").status_code == 200
    valkey_of_my_own.start()
    with stage.worker():
        assert ask().status_code == 200
    assert [one for one in caplog.records if one.exc_info] == []
