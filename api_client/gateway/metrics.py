"""What the gateway counts, and its page for Prometheus: requests, workers, queues, jobs."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import CollectorRegistry
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..aio import AsyncClient
from ..status import Fleet
from ..wire import metrics, spans
from ..wire.errors import ClipyardError
from ..wire.jobs import JobStatus
from ..wire.messages import Priority
from ..wire.version import VERSION

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
            self._meters.of(metrics.HTTP_REQUESTS, route, str(status)).inc()
            self._meters.of(metrics.HTTP_S, route).observe(time.monotonic() - begun)
            spans.served(method=scope["method"], route=route, status=status)


def router(client: AsyncClient, meters: metrics.Meters) -> APIRouter:
    """GET /metrics."""
    routes = APIRouter(tags=["health"])

    @routes.get("/metrics", response_class=Response, include_in_schema=False)
    async def page() -> Response:
        seen: list[Family] = [metrics.GATEWAY_INFO.family({(VERSION,): 1})]
        try:
            seen += _fleet(await client.status(), now=time.time())
            seen += _jobs(await client.jobs())
        except ClipyardError:  # what there is so far is worth having all the same
            pass
        body = generate_latest(_Both(meters.registry, tuple(seen)))
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


def _fleet(fleet: Fleet, *, now: float) -> Iterator[Family]:
    yield metrics.WORKERS.family(Counter((worker.state,) for worker in fleet.workers))
    waiting: Counter[tuple[str, str]] = Counter()
    oldest_s: dict[tuple[str, str], float] = defaultdict(float)
    for queue, depth in fleet.depths.items():
        name = "direct" if "@" in queue else queue
        waiting[name, Priority.INTERACTIVE] += depth.interactive
        waiting[name, Priority.BULK] += depth.bulk
        for priority, age_s in depth.ages_s(now).items():
            oldest_s[name, priority] = max(oldest_s[name, priority], age_s)
    yield metrics.QUEUE.family(waiting)
    yield metrics.QUEUE_AGE_S.family(oldest_s)


def _jobs(jobs: Iterable[JobStatus]) -> Iterator[Family]:
    known = tuple(jobs)
    yield metrics.JOBS.family(Counter((job.state,) for job in known))
    going = [job for job in known if not job.state.is_final]
    done, failed = sum(job.done for job in going), sum(job.failed for job in going)
    waiting = sum(job.left for job in going)
    yield metrics.JOB_LEFT.family({("done",): done, ("failed",): failed, ("waiting",): waiting})
