"""Every Prometheus metric of worker and gateway, with its help text; docs/metrics.md is made here.

python -m api_client.wire.metrics > docs/metrics.md

Label sets are bounded: models by the catalogue, codes by the error tree, the rest by the code.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache, partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

# On a CPU a batch of a large model takes minutes; a call waits for two, unless told otherwise.
LONG_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
ANY_S = (0.001, 0.0025, 0.005, 0.01, 0.025, *LONG_S[1:])
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Side(StrEnum):
    WORKER = "worker"
    GATEWAY = "gateway"


@dataclass(frozen=True, eq=False)
class Metric:
    """One name. Histograms also have the series `_bucket`, `_sum` and `_count`."""

    name: str
    kind: Kind
    side: Side
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def family(self, values: Mapping[Any, float] | None = None) -> GaugeMetricFamily:
        """For a gauge that is read when somebody scrapes: its values, by those of its labels."""
        family = GaugeMetricFamily(self.name, self.help, labels=self.labels)
        for labels, value in (values or {}).items():
            family.add_metric(labels, value)
        return family


def _metric(
    side: Side, name: str, kind: Kind, text: str, *labels: str, buckets: tuple[float, ...] = ()
) -> Metric:
    return Metric(f"clipyard_{name}", kind, side, text, labels, buckets)


_worker, _gateway = partial(_metric, Side.WORKER), partial(_metric, Side.GATEWAY)
_C, _G, _H = Kind.COUNTER, Kind.GAUGE, Kind.HISTOGRAM

# Of the worker: what happened.
REQUESTS = _worker(
    "requests_total",
    _C,
    "Requests answered, by task and error code; `ok` for success.",
    "task",
    "code",
)
ITEMS = _worker(
    "items_total",
    _C,
    "Pictures and texts of requests that were not refused as a whole, by model and error code; "
    "`ok` has a vector.",
    "model",
    "code",
)
STAGE_S = _worker(
    "stage_seconds",
    _H,
    "Time of one embed request in a stage: queue (from the client's send to the task's "
    "start), load (waiting for the model), decode, forward, encode (the answer into bytes).",
    "stage",
    "model",
    buckets=ANY_S,
)
LEASES_TAKEN = _worker(
    "leases_taken_total",
    _C,
    "Embed requests that found their model on the device (`hit`), or waited 5 ms or more "
    "for it (`miss`).",
    "model",
    "found",
)
CACHE_LOOKUPS = _worker(
    "cache_lookups_total",
    _C,
    "Items looked up among the vectors that are kept: found there (`hit`) or not (`miss`).",
    "model",
    "found",
)
BATCHES = _worker(
    "batches_total",
    _C,
    "Forward passes, by kind and outcome: ok, failed or out_of_memory.",
    "kind",
    "outcome",
)
BATCH_ROWS = _worker("batch_rows", _H, "Rows of a forward pass that worked.", "kind", buckets=ROWS)
MOVES = _worker(
    "moves_total",
    _C,
    "What happened to models, by event and cause: room (for another model), limits (more was held "
    "than they allow), sweep, foresight, health, start, stop, request.",
    "event",
    "cause",
)
LOAD_S = _worker(
    "load_seconds",
    _H,
    "Time to bring a model into host memory (`loaded`) or onto the device (`lifted`).",
    "event",
    "model",
    buckets=LONG_S,
)
JOB_ITEMS = _worker(
    "job_items_total",
    _C,
    "Items of bulk jobs in chunks that this worker finished, by model and error code; `ok` has a "
    "vector.",
    "model",
    "code",
)
JOB_STAGE_S = _worker(
    "job_stage_seconds",
    _H,
    "Time of one chunk of a bulk job in a stage: read (of the manifest, and until a worker has "
    "its sink open), decode, forward, write (into the sink).",
    "stage",
    "model",
    buckets=LONG_S,
)
SWEEPS = _worker("sweeps_total", _C, "Sweeps of this worker.")
SWEEPS_MISSED = _worker(
    "sweeps_missed_total",
    _C,
    "Sweeps that the interval asked for and that did not come, counted when the next one did.",
)

# Of the worker: how it is now.
BUILD_INFO = _worker(
    "build_info",
    _G,
    "Always 1; the labels tell the versions and the device.",
    "version",
    "torch",
    "celery",
    "device",
)
READY = _worker("ready", _G, "1 while the worker says that it can serve, else 0.")
MODEL_BYTES = _worker(
    "model_bytes", _G, "Bytes that a model takes, by tier: device or host.", "model", "tier"
)
LEASES = _worker("leases", _G, "Requests that use a model at this moment.", "model")
LRU_AGE_S = _worker(
    "lru_age_seconds",
    _G,
    "How long the least recently used model on the device has been idle, pinned ones apart. Small "
    "while others push models off it means thrash: there are more models in use than slots.",
)
MEMORY_TOTAL = _worker("memory_total_bytes", _G, "Memory, by tier: device or host.", "tier")
MEMORY_FREE = _worker("memory_free_bytes", _G, "Free memory, by tier: device or host.", "tier")
PRESSURE = _worker(
    "pressure_level", _G, "Memory pressure: 0 normal, 1 elevated, 2 high, 3 critical."
)
WAITING_ITEMS = _worker(
    "waiting_items", _G, "Items in this worker that wait to be decoded or to run."
)
WAITING_CALLS = _worker(
    "waiting_calls",
    _G,
    "Requests in this worker that have their model and no answer yet, by model.",
    "model",
)
OLDEST_CALL_S = _worker(
    "oldest_call_age_seconds", _G, "Age of the oldest interactive one of them, by model.", "model"
)
FORWARD_AGE_S = _worker(
    "forward_age_seconds", _G, "How long the present forward pass has been running; 0 when none is."
)
LAST_SWEEP = _worker(
    "last_sweep_timestamp_seconds",
    _G,
    "Unix time of the last sweep, or of the worker's start before the first one.",
)
SWEEP_INTERVAL_S = _worker(
    "sweep_interval_seconds",
    _G,
    "How often the beat should have this worker swept; not there where sweeps are switched off.",
)

# Of the gateway.
HTTP_REQUESTS = _gateway(
    "gateway_requests_total",
    _C,
    "HTTP requests, by route and status; the route is `other` where there is none.",
    "route",
    "status",
)
HTTP_S = _gateway(
    "gateway_request_seconds",
    _H,
    "Time from the head of an HTTP request to the end of its answer.",
    "route",
    buckets=ANY_S,
)
WORKERS = _gateway(
    "workers", _G, "Live workers, by state: starting, ready, broken or stopping.", "state"
)
QUEUE = _gateway(
    "queue_messages",
    _G,
    "Messages that wait in Redis, by queue and priority; `direct` sums the workers' own queues.",
    "queue",
    "priority",
)

QUEUE_AGE_S = _gateway(
    "queue_oldest_age_seconds",
    _G,
    "Age of the message that has waited longest in Redis, by queue and priority; 0 where none "
    "waits.",
    "queue",
    "priority",
)
JOBS = _gateway("jobs", _G, "Bulk jobs that Redis knows, by state.", "state")
JOB_LEFT = _gateway(
    "job_left_items",
    _G,
    "Items of the bulk jobs that are not over, by outcome: done, failed or waiting.",
    "outcome",
)
GATEWAY_INFO = _gateway(
    "gateway_build_info", _G, "Always 1; the label tells the version.", "version"
)

METRICS: tuple[Metric, ...] = tuple(one for one in list(vars().values()) if isinstance(one, Metric))


class Meters:
    """One side's counters and histograms, in a registry of their own.

    Attributes:
        of: the counter or histogram with these values of its labels. Found once: whoever waits for
            an answer waits for its metrics, and `labels` takes longer than what it leads to.
    """

    def __init__(self, side: Side) -> None:
        self.registry = CollectorRegistry()
        self.of = cache(self._of)
        self._made = {
            one: self._make(one) for one in METRICS if one.side is side and one.kind is not _G
        }

    def _of(self, metric: Metric, *labels: str) -> Any:
        made = self._made[metric]
        return made.labels(*labels) if labels else made

    def _make(self, metric: Metric) -> Counter | Gauge | Histogram:
        if metric.kind is Kind.HISTOGRAM:
            return Histogram(
                metric.name,
                metric.help,
                metric.labels,
                registry=self.registry,
                buckets=metric.buckets,
            )
        return Counter(metric.name, metric.help, metric.labels, registry=self.registry)


INTRODUCTION = """\
A worker serves them at `/metrics` of `CLIPYARD_METRICS_HOST` and `CLIPYARD_METRICS_PORT` (off
unless a port is set, on loopback unless told otherwise; the workers of `clipyard up` count upwards
from the port, and it shows the addresses). The gateway serves its own at `/metrics`, behind its
token. A Grafana dashboard is in deploy/grafana, alert rules are in deploy/prometheus. This page is
made by `python -m api_client.wire.metrics`."""


def document() -> str:
    """docs/metrics.md."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield "# Metrics"
    yield ""
    yield INTRODUCTION
    for side in Side:
        yield ""
        yield f"## Of the {side}"
        yield ""
        yield "| name | kind | labels | what |"
        yield "|---|---|---|---|"
        for one in METRICS:
            if one.side is side:
                labels = ", ".join(f"`{label}`" for label in one.labels)
                yield f"| `{one.name}` | {one.kind} | {labels} | {one.help} |"
    yield ""


if __name__ == "__main__":
    print(document(), end="")
