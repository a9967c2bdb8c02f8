"""What is counted, read back by Prometheus' own parser; and what stands about it in files."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import numpy as np
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families as parsed

from api_client.wire import metrics
from api_client.wire.errors import ModelBusy
from api_client.wire.messages import (
    Cause,
    Embedded,
    Event,
    EventKind,
    Failure,
    Kind,
    Managed,
    Timings,
)
from worker.metrics import Meter

REPOSITORY = Path(__file__).parents[2]
ALERTS = REPOSITORY / "deploy" / "prometheus" / "alerts.yml"
GRAFANA = REPOSITORY / "deploy" / "grafana" / "clipyard.json"
BARE = {one.name.removesuffix("_total") for one in metrics.METRICS}  # of `_created`
PARTS = {metrics.Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
SERIES = {one.name + part for one in metrics.METRICS for part in PARTS.get(one.kind, ("",))}


def samples(text):
    return {
        (s.name, *sorted(s.labels.items())): s.value for one in parsed(text) for s in one.samples
    }


@pytest.fixture
def meter():
    return Meter()


@pytest.fixture
def value(meter):
    def value(metric, **labels):
        seen = samples(generate_latest(meter.registry).decode())
        return seen.get((metric if isinstance(metric, str) else metric.name, *labels.items()))

    return value


def test_items_are_counted_by_model_and_by_what_became_of_them(meter, value):
    failures = {1: Failure(code="image_missing", message="gone")}
    timings = Timings(queue_s=0.5, load_s=0.001, decode_s=0.02, forward_s=0.2)
    answer = Embedded(
        model="m", dimension=2, fingerprint="f", items=3, failures=failures, timings=timings
    )
    meter.answered("clipyard.embed_batch", (answer, np.empty((2, 2), np.float32)), encode_s=0.01)
    assert value(metrics.ITEMS, code="ok", model="m") == 2
    assert value(metrics.ITEMS, code="image_missing", model="m") == 1
    assert value(metrics.REQUESTS, code="ok", task="clipyard.embed_batch") == 1
    for found, count in (("hit", 1), ("miss", 0)):
        assert value(metrics.LEASES_TAKEN, found=found, model="m") == count
    for stage, seconds in [("queue", 0.5), ("forward", 0.2), ("encode", 0.01)]:
        assert value("clipyard_stage_seconds_sum", model="m", stage=stage) == seconds


def test_a_stage_of_two_minutes_is_told_from_one_of_half_a_minute(meter, value):
    answer = Embedded(
        model="m", dimension=2, fingerprint="f", items=1, timings=Timings(queue_s=100, forward_s=40)
    )
    meter.answered("clipyard.embed_batch", (answer, np.empty((1, 2), np.float32)), encode_s=0.01)

    def within(stage, seconds):
        return value("clipyard_stage_seconds_bucket", le=seconds, model="m", stage=stage)

    assert (within("forward", "30.0"), within("forward", "60.0")) == (0, 1)
    assert (within("queue", "60.0"), within("queue", "120.0")) == (0, 1)


def test_a_refused_request_counts_under_its_code(meter, value):
    meter.answered("clipyard.unload", ModelBusy("in use"), encode_s=0.0)
    meter.answered(
        "clipyard.load", Managed(worker="w", model="m", changed=True, message=""), encode_s=0
    )
    assert value(metrics.REQUESTS, code="model_busy", task="clipyard.unload") == 1
    assert value(metrics.REQUESTS, code="ok", task="clipyard.load") == 1


def test_a_move_is_counted_by_its_cause_whoever_asked(meter, value):
    told = {"kind": EventKind.LIFTED, "model": "m", "reason": "r", "asked_by": "sweep"}
    meter.happened(Event(**told))
    meter.happened(Event(**told, cause=Cause.FORESIGHT))
    for cause, count in (("request", 1), ("foresight", 1), ("sweep", None)):
        assert value(metrics.MOVES, cause=cause, event="lifted") == count


def test_passes_are_counted_and_only_those_that_worked_have_a_size(meter, value):
    meter.ran(Kind.IMAGE, 32, "ok")
    meter.ran(Kind.IMAGE, 64, "out_of_memory")
    assert value(metrics.BATCHES, kind="image", outcome="out_of_memory") == 1
    assert value("clipyard_batch_rows_sum", kind="image") == 32


def test_the_first_shortage_of_memory_is_an_increase(meter, value):
    for kind in Kind:
        assert value(metrics.BATCHES, kind=kind.value, outcome="out_of_memory") == 0
    assert value(metrics.MOVES, cause="request", event="out_of_memory") == 0
    assert value(metrics.MOVES, cause="start", event="out_of_memory") == 0


def test_items_of_bulk_jobs_are_counted_by_what_became_of_them_and_their_stages_timed(meter, value):
    stages = {"read_s": 0.5, "write_s": 2.0}
    meter.chunk("m", done=2, failures=["image_missing", "image_missing"], stages=stages)
    assert value(metrics.JOB_ITEMS, code="ok", model="m") == 2
    assert value(metrics.JOB_ITEMS, code="image_missing", model="m") == 2
    assert value("clipyard_job_stage_seconds_sum", model="m", stage="write") == 2.0


def test_vectors_that_were_kept_count_as_hits(meter, value):
    meter.looked_up("m", hits=3, misses=1)
    assert value(metrics.CACHE_LOOKUPS, found="hit", model="m") == 3
    assert value(metrics.CACHE_LOOKUPS, found="miss", model="m") == 1


def test_sweeps_that_did_not_come_are_missed_once_the_next_one_does(meter, value):
    for after_s in (61.0, 59.0, 241.0):
        meter.swept(after_s=after_s, interval_s=60.0)
    assert (value(metrics.SWEEPS), value(metrics.SWEEPS_MISSED)) == (3, 3)


def test_a_port_that_is_taken_costs_the_metrics_not_the_worker(meter, caplog):
    other = Meter()
    other.listen("127.0.0.1", 0)
    try:
        meter.listen("127.0.0.1", other._server.server_port)
        assert "no metrics at 127.0.0.1" in caplog.text
        meter.close()
    finally:
        other.close()


def test_a_working_fleet_is_scraped(fleet, metrics_port, caller):
    names = [worker.name for worker in caller.status().workers]
    caller.load("fake/vision", workers=names)
    caller.embed_texts(["hello", "there"], model="fake/vision")
    embedded = metrics.ITEMS.name, ("code", "ok"), ("model", "fake/vision")
    texts = [_page(metrics_port), _page(metrics_port + 1)]
    for one in metrics.METRICS:
        assert one.side is not metrics.Side.WORKER or f"# HELP {one.name} " in texts[0], one.name
    pages = [samples(text) for text in texts]
    assert sum(page.get(embedded, 0) for page in pages) >= 2
    for page in pages:
        assert {key[0].removesuffix("_created") for key in page} <= SERIES | BARE
        assert (metrics.MODEL_BYTES.name, ("model", "fake/vision"), ("tier", "device")) in page
    waited = "clipyard_stage_seconds_sum", ("model", "fake/vision"), ("stage", "queue")
    assert sum(page.get(waited, 0) for page in pages) > 0


def _page(port):
    return httpx.get(f"http://127.0.0.1:{port}/metrics").text


def test_the_page_about_metrics_says_what_the_code_says():
    assert (REPOSITORY / "docs" / "metrics.md").read_text() == metrics.document()


def test_every_metric_has_a_help_text_and_a_unit_or_a_total():
    for one in metrics.METRICS:
        assert one.help.endswith(".")
        assert one.name.endswith("_total") == (one.kind is metrics.Kind.COUNTER)


def test_what_each_gateway_tells_of_the_whole_fleet_is_not_added_up():
    panels = json.loads(GRAFANA.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    fleet = [metrics.WORKERS, metrics.QUEUE, metrics.QUEUE_AGE_S, metrics.JOBS, metrics.JOB_LEFT]
    for one in fleet:
        assert [q.partition(" ")[0] for q in queries if f"({one.name})" in q] == ["max"]


def test_every_query_of_the_dashboard_and_the_alerts_names_existing_series():
    panels = json.loads(GRAFANA.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    for query in (*queries, ALERTS.read_text()):
        named = set(re.findall(r"\bclipyard_[a-z_]+", query))
        assert named
        assert named <= SERIES


promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="Debian's package prometheus has it"
)


@promtool
def test_prometheus_takes_the_alert_rules_and_what_we_serve(meter):
    subprocess.run(["promtool", "check", "rules", ALERTS], check=True, capture_output=True)
    text = generate_latest(meter.registry)
    subprocess.run(["promtool", "check", "metrics"], input=text, check=True, capture_output=True)


@promtool
def test_the_beat_is_missed_by_the_interval_that_is_set_and_not_where_sweeps_are_off(tmp_path):
    intervals = {"usual": 60, "slow": 600, "quick": 1}
    told = {f'sweep_interval_seconds{{instance="{who}"}}': s for who, s in intervals.items()}
    swept = dict.fromkeys((*intervals, "off"), 0)
    told |= {f'last_sweep_timestamp_seconds{{instance="{w}"}}': at for w, at in swept.items()}
    test = {
        "interval": "1m",
        "input_series": [
            {"series": f"clipyard_{name}", "values": f"{value}x60"} for name, value in told.items()
        ],
        "promql_expr_test": [
            {
                "expr": 'count by (instance) (ALERTS{alertname="ClipyardBeatMissing"})',
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": f'{{instance="{w}"}}', "value": 1} for w in missed],
            }
            for minutes, missed in ((5, ()), (10, ("quick", "usual")), (55, (*intervals,)))
        ],
    }
    _hold(tmp_path, test)


@promtool
@pytest.mark.parametrize(
    ("seen", "fires"),
    [
        ({}, False),  # where no gateway is asked
        ({"gateway_build_info": "1x20"}, True),  # Redis is away
        ({"gateway_build_info": "1x20", 'workers{state="starting"}': "1x20"}, True),
        ({"gateway_build_info": "1x20", 'workers{state="ready"}': "1x20"}, False),
        ({"gateway_build_info": "1x20", "ready": "0x20"}, True),  # and tells it once
    ],
)
def test_workers_that_say_they_are_ready_and_that_no_gateway_sees_are_not(tmp_path, seen, fires):
    _hold(tmp_path, _firing("ClipyardNoReadyWorker", {"ready": "1x20", **seen}, fires=fires))


@promtool
@pytest.mark.parametrize(
    ("event", "cause", "idle_s", "fires"),
    [
        ("evicted", "room", 5, True),
        ("lowered", "room", 5, True),  # of a GPU, as long as host memory has room for all
        ("lowered", "room", 600, False),
        ("lowered", "sweep", 5, False),
    ],
)
def test_models_that_push_each_other_off_the_device_are_thrash(
    tmp_path, event, cause, idle_s, fires
):
    series = {
        f'moves_total{{cause="{cause}",event="{event}",instance="a"}}': "0+6x20",
        'lru_age_seconds{instance="a"}': f"{idle_s}x20",
    }
    _hold(tmp_path, _firing("ClipyardThrash", series, fires=fires))


@promtool
def test_calls_that_are_refused_as_a_whole_raise_the_alert_of_failing_items(tmp_path):
    ok = 'items_total{code="ok"}', 'requests_total{code="ok",task="clipyard.embed_batch"}'
    refused, gone = (
        f'requests_total{{code="{code}",task="clipyard.embed_batch"}}'
        for code in ("load_failed", "cancelled")
    )
    for told, fires in (({refused: 1}, True), ({gone: 9}, False), ({}, False)):
        series = {**dict.fromkeys(ok, 9), **told}
        each_minute = {name: f"0+{each}x20" for name, each in series.items()}
        _hold(tmp_path, _firing("ClipyardFailingItems", each_minute, fires=fires))


@promtool
@pytest.mark.parametrize(("state", "fires"), [("paused", True), ("running", False)])
def test_somebody_hears_of_a_job_that_goes_on_only_when_it_is_resumed(tmp_path, state, fires):
    series = {f'jobs{{state="{state}",instance="{name}"}}': "1x20" for name in ("a", "b")}
    _hold(tmp_path, _firing("ClipyardPausedJob", series, fires=fires))


def _firing(alert, series, *, fires):
    """Whether one does after a quarter of an hour of these values, one a minute."""
    return {
        "interval": "1m",
        "input_series": [
            {"series": f"clipyard_{name}", "values": values} for name, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                "eval_time": "15m",
                "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
            }
        ],
    }


def _hold(folder, test):
    rules = folder / "test.yml"
    rules.write_text(json.dumps({"rule_files": [str(ALERTS)], "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", rules], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
