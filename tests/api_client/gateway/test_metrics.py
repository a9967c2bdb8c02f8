from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families as parsed

from api_client.gateway.app import build
from api_client.gateway.settings import GatewaySettings

TOKEN = "0123456789abcdef"


def samples(text):
    return {
        (s.name, *sorted(s.labels.items())): s.value for one in parsed(text) for s in one.samples
    }


def test_requests_are_counted_by_route_and_strangers_guesses_under_other(http):
    http.get("/healthz")
    http.get("/wp-login.php")
    seen = samples(http.get("/metrics").text)
    name = "clipyard_gateway_requests_total"
    assert seen[name, ("route", "/healthz"), ("status", "200")] == 1
    assert seen[name, ("route", "other"), ("status", "404")] == 1
    assert seen["clipyard_gateway_request_seconds_count", ("route", "/healthz")] == 1


def test_workers_and_queues_are_looked_at_when_somebody_scrapes(http):
    seen = samples(http.get("/metrics").text)
    assert seen["clipyard_workers", ("state", "ready")] >= 1


def test_the_metrics_are_behind_the_token_like_everything_else(fake):
    settings = GatewaySettings.read(redis_url="redis://127.0.0.1:1/0", gateway_tokens=(TOKEN,))
    with TestClient(build(fake, settings), base_url="http://127.0.0.1") as http:
        assert http.get("/metrics").status_code == 401
        known = {"Authorization": f"Bearer {TOKEN}"}
        assert http.get("/metrics", headers=known).status_code == 200
