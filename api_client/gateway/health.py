"""Whether this process lives, and whether anybody could answer."""

import asyncio
import time
from collections.abc import Callable
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from ..aio import AsyncClient
from ..wire.errors import NoWorker
from .refusals import RESPONSES

FRESH_S = 1.0


class Alive(BaseModel):
    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    workers: int


def router(client: AsyncClient, *, clock: Callable[[], float] = time.monotonic) -> APIRouter:
    """GET /healthz and /readyz; HEAD as well, which is what some watchers send."""
    routes, look = APIRouter(tags=["health"]), _Look(client, clock)

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", responses={key: RESPONSES[key] for key in (403, 413, 415)})
    async def healthz() -> Alive:
        """This process answers."""
        return Alive()

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz", responses=RESPONSES)
    async def readyz() -> Ready:
        """At least one worker lives whose last forward pass worked."""
        if not (ready := await look.ready()):
            raise NoWorker("no worker is ready")
        return Ready(workers=ready)

    return routes


class _Look:
    """How many workers are ready. One look serves all who ask within a second of it, strangers
    among them: it costs Redis and this process more with every worker."""

    def __init__(self, client: AsyncClient, clock: Callable[[], float]) -> None:
        self._client, self._clock = client, clock
        self._found: asyncio.Future[int] | None = None
        self._begun_at = 0.0

    async def ready(self) -> int:
        now, found = self._clock(), self._found
        if found is None or (found.done() and now - self._begun_at >= FRESH_S):
            found = self._found = asyncio.ensure_future(self._count())
            self._begun_at = now
        return await asyncio.shield(found)  # who hangs up takes it from nobody

    async def _count(self) -> int:
        return sum(worker.state == "ready" for worker in (await self._client.status()).workers)
