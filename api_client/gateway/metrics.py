"""What the gateway counts, and its page for Prometheus: requests, workers, queues."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..aio import AsyncClient
from ..status import Fleet
from ..wire import metrics
from ..wire.errors import ClipyardError

__all__ = ["Counting", "router"]

OTHER = "other"  # no route: a stranger's guess must not become a label


class Counting:
    """ASGI middleware, outside the guard: what is turned away counts as well."""

    def __init__(self, app: ASGIApp, meters: metrics.Meters) -> None:
        self._app, self._meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun, status = time.monotonic(), 499  # the caller has gone before an answer began

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", OTHER)
            self._meters[metrics.HTTP_REQUESTS].labels(route, str(status)).inc()
            self._meters[metrics.HTTP_S].labels(route).observe(time.monotonic() - begun)


def router(client: AsyncClient, meters: metrics.Meters) -> APIRouter:
    """GET /metrics."""
    routes = APIRouter(tags=["health"])

    @routes.get("/metrics", response_class=Response, include_in_schema=False)
    async def page() -> Response:
        try:
            fleet = await client.status()
        except ClipyardError:  # our own counters are worth having all the same
            fleet = None
        body = generate_latest(_Both(meters.registry, tuple(_families(fleet)) if fleet else ()))
        return Response(body, media_type=CONTENT_TYPE_LATEST)

    return routes


@dataclass(frozen=True)
class _Both:
    """What was counted and what was looked at just now, as `generate_latest` wants them."""

    counted: CollectorRegistry
    seen: tuple[Family, ...]

    def collect(self) -> Iterator[Family]:
        yield from self.counted.collect()
        yield from self.seen


def _families(fleet: Fleet) -> Iterator[Family]:
    workers = metrics.WORKERS.family()
    for state, number in Counter(worker.state for worker in fleet.workers).items():
        workers.add_metric((state,), number)
    waiting: Counter[tuple[str, str]] = Counter()
    for queue, depth in fleet.depths.items():
        for priority, number in depth.model_dump().items():
            waiting["direct" if "@" in queue else queue, priority] += number
    queues = metrics.QUEUE.family()
    for labels, number in waiting.items():
        queues.add_metric(labels, number)
    yield from (workers, queues)
