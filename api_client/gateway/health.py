"""Whether this process lives, and whether anybody could answer."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from ..aio import AsyncClient
from ..wire.errors import NoWorker
from .refusals import RESPONSES


class Alive(BaseModel):
    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    status: Literal["ready"] = "ready"
    workers: int


def router(client: AsyncClient) -> APIRouter:
    """GET /healthz and /readyz; HEAD as well, which is what some watchers send."""
    routes = APIRouter(tags=["health"])

    @routes.head("/healthz", include_in_schema=False)
    @routes.get("/healthz", responses={key: RESPONSES[key] for key in (403, 413)})
    async def healthz() -> Alive:
        """This process answers."""
        return Alive()

    @routes.head("/readyz", include_in_schema=False)
    @routes.get("/readyz", responses=RESPONSES)
    async def readyz() -> Ready:
        """At least one worker lives whose last forward pass worked."""
        workers = (await client.status()).workers
        if not (ready := sum(worker.state == "ready" for worker in workers)):
            raise NoWorker("no worker is ready")
        return Ready(workers=ready)

    return routes
