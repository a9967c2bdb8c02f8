"""Gives every HTTP request an id: the caller's `X-Request-ID`, or ours; and gives it back."""

from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..wire import correlation

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
        given = correlation.accepted(Headers(scope=scope).get(HEADER)) or str(uuid4())

        async def with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = given
            await send(message)

        with correlation.about(given):
            await self._app(scope, receive, with_id)
