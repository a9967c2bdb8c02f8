"""The application: its routes, its door, its one shape of errors."""

import logging
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline

from ..aio import AsyncClient
from ..wire import logs, spans
from ..wire.address import netloc
from ..wire.metrics import Meters, Side
from ..wire.settings import cannot_listen
from ..wire.version import VERSION
from . import health, metrics, openai, plain, rag, refusals
from .budgets import Budgets
from .connection import DRAIN_S, Connection
from .correlating import Correlating
from .guard import DOCS_FILES, Guard
from .settings import GatewaySettings

KEEP_ALIVE_S = 5
BACKLOG = 128  # asyncio accepts up to three times as many before it is heard that they are too many


def build(client: AsyncClient, settings: GatewaySettings) -> FastAPI:
    """The application around a client, which it closes at the end."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await budgets.close()
        await client.close()

    app = FastAPIOffline(
        title="Clipyard",
        version=VERSION,
        description="Pictures and texts into CLIP vectors. Errors have the shape "
        '`{"error": {"code", "message"}}`.',
        lifespan=lifespan,
        redoc_url=None,
        static_url=DOCS_FILES,
    )
    # The guard looks at the token before it reads a body; here it is for the OpenAPI page.
    bearer = [Security(HTTPBearer(auto_error=False))] if settings.gateway_tokens else []
    meters, budgets = Meters(Side.GATEWAY), Budgets(settings)
    app.include_router(health.router(client))
    app.include_router(metrics.router(client, meters), dependencies=bearer)
    app.include_router(rag.router(client), dependencies=bearer)
    app.include_router(plain.router(client), dependencies=bearer)
    app.include_router(
        openai.router(client, most_items=settings.gateway_items), dependencies=bearer
    )
    refusals.install(app)
    app.add_middleware(Guard, settings=settings, budgets=budgets)
    app.add_middleware(refusals.Unforeseen)
    app.add_middleware(metrics.Counting, meters=meters)
    app.add_middleware(Correlating)
    return app


def serve(settings: GatewaySettings) -> None:
    """Listen until SIGINT or SIGTERM; what is at work then is finished.

    Raises:
        BadSettings: others could reach the port, and no token is configured; or nobody can
            listen there.
    """
    settings.guarded()
    logs.set_up(settings)
    # Whoever waits for "Uvicorn running on" waits whatever the level is.
    logging.getLogger("uvicorn.error").setLevel(logging.INFO)
    address = netloc(settings.gateway_host, settings.gateway_port)
    spans.set_up(settings, service="clipyard-gateway", instance=address)
    # uvicorn raises it anew when it has drained: at its default no exit handler would send spans.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        uvicorn.run(
            build(AsyncClient(settings, asked_by="gateway"), settings),
            host=settings.gateway_host,
            port=settings.gateway_port,
            http=Connection,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=DRAIN_S,
            server_header=False,
            access_log=False,  # a query may hold a text, and texts are nobody else's business
            ws="none",  # of what asks for a WebSocket it would log the query all the same
            log_config=None,
        )
    except SystemExit:  # uvicorn's own, once it has logged why
        raise cannot_listen("gateway", address) from None
