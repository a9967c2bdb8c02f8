from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families as parsed

from api_client.gateway.app import build
from api_client.gateway.metrics import _fleet, _jobs
from api_client.gateway.settings import GatewaySettings
from api_client.status import Depth, Fleet
from api_client.wire import metrics
from api_client.wire.errors import ClipyardError
from api_client.wire.jobs import JobSpec, JobState, JobStatus, Place

PLACE = Place(kind="list", where="/list")
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


def test_workers_are_told_where_jobs_cannot_be(http, fake, monkeypatch):
    async def jobs():
        raise ClipyardError("what Redis holds as the list of jobs is none")

    monkeypatch.setattr(fake, "jobs", jobs)
    assert samples(http.get("/metrics").text)["clipyard_workers", ("state", "ready")] >= 1


def test_every_metric_of_the_gateway_is_served(http):
    text = http.get("/metrics").text
    mine = [one.name for one in metrics.METRICS if one.side is metrics.Side.GATEWAY]
    assert [name for name in mine if f"# HELP {name} " not in text] == []


def test_jobs_are_counted_by_state_and_the_items_of_those_that_are_not_over():
    def job(state, **fields):
        spec = JobSpec(id="j", source=PLACE, model="m", sink=PLACE)
        return JobStatus(spec=spec, state=state, **fields)

    known = [
        job(JobState.RUNNING, items=100, done=20, failed=5),
        job(JobState.PAUSED, items=10),
        job(JobState.CHECKING, items=3, done=4),  # which hides none of the others' items
        job(JobState.COMPLETE, items=7, done=7),
    ]
    states, left = _jobs(known)
    assert {s.labels["state"]: s.value for s in states.samples} == {
        "running": 1,
        "paused": 1,
        "checking": 1,
        "complete": 1,
    }
    assert {s.labels["outcome"]: s.value for s in left.samples} == {
        "done": 24,
        "failed": 5,
        "waiting": 85,
    }


def test_the_oldest_message_of_all_direct_queues_is_told():
    depths = {
        "embed": Depth(bulk=2, bulk_since=90.0),
        "gpu0@a.dq2": Depth(interactive=1, interactive_since=70.0),
        "gpu1@a.dq2": Depth(interactive=1, interactive_since=80.0),
        "control": Depth(),
    }
    *_, ages = _fleet(Fleet(depths=depths), now=100.0)
    told = {tuple(sample.labels.values()): sample.value for sample in ages.samples}
    assert {labels for labels, age_s in told.items() if age_s == 0} == {
        ("embed", "interactive"),
        ("direct", "bulk"),
        ("control", "interactive"),
        ("control", "bulk"),
    }
    assert (told["embed", "bulk"], told["direct", "interactive"]) == (10, 30)


def test_the_metrics_are_behind_the_token_like_everything_else(fake):
    settings = GatewaySettings.read(redis_url="redis://127.0.0.1:1/0", gateway_tokens=(TOKEN,))
    with TestClient(build(fake, settings), base_url="http://127.0.0.1") as http:
        assert http.get("/metrics").status_code == 401
        known = {"Authorization": f"Bearer {TOKEN}"}
        assert http.get("/metrics", headers=known).status_code == 200
