"""Gives every HTTP request an id: the caller's `X-Request-ID`, or ours; and gives it back.

If traces are on, its span begins here as well."""

from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..wire import correlation, spans

__all__ = ["HEADER", "Correlating"]

HEADER = "X-Request-ID"


class Correlating:
    """ASGI middleware. What is sent to the workers meanwhile carries the id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = correlation.accepted(headers.get(HEADER)) or str(uuid4())

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = given
            await send(message)

        with correlation.about(given), spans.serving(headers):
            await self._app(scope, receive, with_id)
