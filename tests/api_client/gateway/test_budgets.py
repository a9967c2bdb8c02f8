"""Two gateways at one Redis: what a token has spent at one, it has spent at the other."""

import logging

import pytest
from fastapi.testclient import TestClient

from api_client.gateway.app import build
from api_client.gateway.passes import Pass, Unit
from api_client.gateway.settings import GatewaySettings
from api_client.testing import FakeAsyncClient
from api_client.wire.errors import BadSettings

HURRIED, GREEDY, FREE = "hurried-token-1234", "greedy-token-12345", "free-token-1234567"
TOKENS = f"{HURRIED} rpm=3, {GREEDY} ipm=6\n{FREE}"
PNG = {"file": b"any bytes"}


@pytest.fixture
def gateways(valkey_url, prefix):
    settings = GatewaySettings.read(
        redis_url=valkey_url, key_prefix=prefix, gateway_tokens=TOKENS, gateway_items=8
    )
    with (
        TestClient(build(FakeAsyncClient(), settings)) as here,
        TestClient(build(FakeAsyncClient(), settings)) as there,
    ):
        yield here, there


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


def embed(gateway, token, items=1):
    body = {"input": ["a word"] * items}
    return gateway.post("/v1/embeddings", json=body, headers=bearer(token))


def minutes_later(store, keys, token, unit, *, seconds):
    store.incrbyfloat(keys.budget(Pass.parse(token).name, unit), -seconds)


def test_requests_over_the_limit_are_told_when_to_come_back(gateways, store, keys):
    here, there = gateways
    assert [embed(one, HURRIED).status_code for one in (here, there, here)] == [200] * 3
    refused = embed(there, HURRIED)
    assert refused.status_code == 429
    wait_s = refused.headers["retry-after"]
    assert 10 < int(wait_s) <= 20  # less the time that the test has taken
    assert refused.json()["error"] == {
        "code": "rate_limit_exceeded",
        "message": f"this token may send 3 requests a minute; ask again in {wait_s} s",
    }
    assert here.get("/v1/models", headers=bearer(HURRIED)).status_code == 429
    assert here.get("/healthz", headers=bearer(HURRIED)).status_code == 200
    assert embed(here, GREEDY).status_code == embed(here, FREE).status_code == 200
    minutes_later(store, keys, HURRIED, Unit.REQUESTS, seconds=20)
    assert [embed(one, HURRIED).status_code for one in (here, there)] == [200, 429]


def test_items_are_counted_on_every_path_and_a_refused_request_costs_none(gateways, store, keys):
    here, there = gateways
    assert embed(here, GREEDY, items=2).status_code == 200
    similarity = there.post("/similarity?text=a", files=PNG, headers=bearer(GREEDY))
    assert similarity.status_code == 200
    refused = embed(there, GREEDY, items=3)
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 10
    for path, sent in (("/encode/text?text=a", {}), ("/encode/image", {"files": PNG})):
        assert here.post(path, headers=bearer(GREEDY), **sent).status_code == 200
    assert embed(here, GREEDY).status_code == 429
    minutes_later(store, keys, GREEDY, Unit.ITEMS, seconds=60)
    assert embed(here, GREEDY, items=6).status_code == 200


def test_a_clock_that_is_set_back_costs_no_more_than_a_minute(gateways, store, keys):
    here, _ = gateways
    embed(here, HURRIED)
    minutes_later(store, keys, HURRIED, Unit.REQUESTS, seconds=-3600)
    refused = embed(here, HURRIED)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) <= 60


def test_more_items_than_a_minute_allows_are_no_matter_of_waiting(gateways):
    refused = embed(gateways[0], GREEDY, items=7)
    assert refused.status_code == 400
    assert "6 items a minute" in refused.json()["error"]["message"]


def test_redis_holds_no_token_and_forgets_a_budget_that_is_whole_again(
    gateways, store, prefix, caplog
):
    caplog.set_level(logging.DEBUG)
    embed(gateways[0], HURRIED)
    embed(gateways[0], GREEDY, items=2)
    embed(gateways[0], FREE, items=2)
    found = list(store.scan_iter(f"{prefix}:*", count=1000))
    assert len(found) == 2
    assert all(0 < store.ttl(key) <= 20 for key in found)
    told = f"{found} {caplog.text}"
    assert not any(token in told for token in (HURRIED, GREEDY, FREE))


def test_a_limit_beyond_all_use_lets_everything_in(valkey_url, prefix):
    settings = GatewaySettings.read(
        redis_url=valkey_url, key_prefix=prefix, gateway_tokens=f"{FREE} rpm=1000000000"
    )
    with TestClient(build(FakeAsyncClient(), settings)) as gateway:
        assert embed(gateway, FREE).status_code == 200


def test_without_redis_a_limited_token_is_told_that_nobody_can_answer():
    settings = GatewaySettings.read(redis_url="redis://127.0.0.1:1/0", gateway_tokens=TOKENS)
    with TestClient(build(FakeAsyncClient(), settings)) as alone:
        assert embed(alone, HURRIED).json()["error"]["code"] == "no_broker"
        assert embed(alone, FREE).status_code == 200
        assert alone.get("/metrics", headers=bearer(HURRIED)).status_code == 200


@pytest.mark.parametrize(
    "words",
    [
        "rpm",
        "rpm=",
        "rpm=0",
        "rpm=-1",
        "tpm=5",
        "rpm=1.5",
        pytest.param(f"rpm={'9' * 5000}", id="long"),
        "a b",
        HURRIED,
    ],
)
def test_a_limit_that_is_none_is_refused_without_quoting_the_token(words):
    settings = GatewaySettings.read(
        redis_url="redis://127.0.0.1:1/0", gateway_tokens=f"{FREE} {words}"
    )
    with pytest.raises(BadSettings, match="rpm=600 ipm=20000") as refused:
        settings.guarded()
    assert FREE not in str(refused.value)
    assert HURRIED not in str(refused.value)
    assert FREE not in repr(Pass.parse(FREE))


def test_a_token_that_not_every_caller_can_send_is_refused_without_quoting_it():
    settings = GatewaySettings.read(
        redis_url="redis://127.0.0.1:1/0", gateway_tokens="schlüssel-schlüssel"
    )
    with pytest.raises(BadSettings, match="beyond ASCII") as refused:
        settings.guarded()
    assert "schl" not in str(refused.value)
