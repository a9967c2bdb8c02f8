"""Counts what happens in this process, for Prometheus. Names and help texts: `wire.metrics`."""

import logging
import threading
from collections.abc import Iterable, Mapping
from http.server import HTTPServer

from prometheus_client import start_http_server
from prometheus_client.registry import Collector

from api_client.wire import metrics
from api_client.wire.codec import Vectors
from api_client.wire.errors import ClipyardError
from api_client.wire.messages import Cause, Embedded, Event, EventKind, Kind, Managed

__all__ = ["Meter"]

log = logging.getLogger(__name__)

OK = "ok"
HIT_S = 0.005  # a lease that waited less found its model on the device


class Meter:
    """Counters and histograms; every method is cheap and safe from any thread."""

    def __init__(self) -> None:
        self._meters = metrics.Meters(metrics.Side.WORKER)
        self.registry = self._meters.registry
        # A series that begins with its first event shows Prometheus no increase.
        for kind in Kind:
            self._meters.of(metrics.BATCHES, kind.value, "out_of_memory")
        for cause in Cause:
            self._meters.of(metrics.MOVES, EventKind.OUT_OF_MEMORY.value, cause.value)
        self._server: HTTPServer | None = None
        self._thread: threading.Thread | None = None

    def answered(
        self,
        task: str,
        outcome: Managed | tuple[Embedded, Vectors] | ClipyardError,
        *,
        encode_s: float,
    ) -> None:
        """A request has its answer."""
        code = outcome.code if isinstance(outcome, ClipyardError) else OK
        self._meters.of(metrics.REQUESTS, task, code).inc()
        if isinstance(outcome, tuple):
            self._embedded(outcome[0], encode_s)

    def _embedded(self, answer: Embedded, encode_s: float) -> None:
        meter, model = self._meters.of, answer.model
        meter(metrics.ITEMS, model, OK).inc(answer.items - len(answer.failures))
        for failure in answer.failures.values():
            meter(metrics.ITEMS, model, failure.code).inc()
        spans = {**answer.timings.model_dump(), "encode_s": encode_s}
        for name, seconds in spans.items():
            meter(metrics.STAGE_S, name.removesuffix("_s"), model).observe(seconds)
        is_hit = answer.timings.load_s < HIT_S
        # Both: of a series that is not there Prometheus shows no share, where it is nought.
        meter(metrics.LEASES_TAKEN, model, "hit").inc(is_hit)
        meter(metrics.LEASES_TAKEN, model, "miss").inc(not is_hit)

    def looked_up(self, model: str, *, hits: int, misses: int) -> None:
        """Items were looked for among the vectors that are kept."""
        self._meters.of(metrics.CACHE_LOOKUPS, model, "hit").inc(hits)
        self._meters.of(metrics.CACHE_LOOKUPS, model, "miss").inc(misses)

    def chunk(
        self, model: str, *, done: int, failures: Iterable[str], stages: Mapping[str, float]
    ) -> None:
        """A chunk of a bulk job is in its sink.

        Args:
            done: items with a vector.
            failures: the codes of the others.
            stages: name, ending in `_s` -> seconds.
        """
        self._meters.of(metrics.JOB_ITEMS, model, OK).inc(done)
        for code in failures:
            self._meters.of(metrics.JOB_ITEMS, model, code).inc()
        for name, seconds in stages.items():
            stage = name.removesuffix("_s")
            self._meters.of(metrics.JOB_STAGE_S, stage, model).observe(seconds)

    def ran(self, kind: Kind, rows: int, outcome: str) -> None:
        """A forward pass has ended."""
        self._meters.of(metrics.BATCHES, kind.value, outcome).inc()
        if outcome == OK:
            self._meters.of(metrics.BATCH_ROWS, kind.value).observe(rows)

    def happened(self, event: Event) -> None:
        """Something has happened to a model."""
        self._meters.of(metrics.MOVES, event.kind.value, event.cause).inc()
        if event.kind in (EventKind.LOADED, EventKind.LIFTED):
            self._meters.of(metrics.LOAD_S, event.kind.value, event.model).observe(event.seconds)

    def swept(self, *, after_s: float, interval_s: float) -> None:
        """A sweep has come, so long after the one before."""
        self._meters.of(metrics.SWEEPS).inc()
        self._meters.of(metrics.SWEEPS_MISSED).inc(max(0, round(after_s / interval_s) - 1))

    def show(self, state: Collector) -> None:
        """Also answer scrapes with what this reads at that moment."""
        self.registry.register(state)

    def listen(self, host: str, port: int) -> None:
        """Answer scrapes until `close`. A port that is taken costs the metrics, not the worker."""
        try:
            self._server, self._thread = start_http_server(port, host, self.registry)
        except OSError as error:
            log.error("no metrics at %s:%d: %s", host, port, error.strerror)

    def close(self) -> None:
        """Stop answering."""
        if self._server and self._thread:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
