"""The door: who may come in, how many at once, and how much and how slowly they may send.

Everything here happens before a body is parsed. Who hangs up is not worked for any longer.
"""

import asyncio
from functools import partial

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..wire.errors import ClipyardError
from .budgets import SPEND, Budgets
from .passes import Pass, Unit, holder
from .refusals import answer_to, refuse
from .settings import GatewaySettings, is_loopback

DOCS_FILES = "/docs/files"
OF_DOCS = {
    f"{DOCS_FILES}/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png")
}
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/openapi.json", "/docs"} | OF_DOCS)
ALWAYS = OPEN_PATHS | {"/metrics"}  # however much is at work: then most is to be seen there


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, budgets: Budgets) -> None:
        self._app = app
        self._settings = settings
        self._passes = settings.passes()
        self._budgets = budgets
        self._at_work = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        caller = holder(headers, self._passes)
        refusal = self._refusal(scope["path"], headers, caller)
        if refusal is not None or scope["path"] in ALWAYS:
            await (refusal or self._app)(scope, receive, send)
            return
        if self._at_work >= self._settings.gateway_concurrency:
            busy = refuse(429, "too_many_requests", "too many requests at once; ask again")
            await busy(scope, receive, send)
            return
        self._at_work += 1
        try:
            await self._budgets.spend(caller, Unit.REQUESTS, 1)
            scope[SPEND] = partial(self._budgets.spend, caller, Unit.ITEMS)
            await self._let_in(scope, receive, send)
        except ClipyardError as error:
            answer = answer_to(error, method=scope["method"], path=scope["path"])
            await answer(scope, receive, send)
        finally:
            self._at_work -= 1

    def _refusal(self, path: str, headers: Headers, caller: Pass | None) -> Response | None:
        if self._passes:
            if caller is None and path not in OPEN_PATHS:
                return refuse(401, "unauthorized", "send Authorization: Bearer and a valid token")
        elif not _is_local(headers):
            return refuse(403, "forbidden", "without a token only this machine's own pages may ask")
        if _length(headers) > self._settings.gateway_body_bytes:
            return self._too_large()
        if headers.get("content-encoding", "identity") != "identity":
            return refuse(415, "not_understood", "send the body unpacked, with no Content-Encoding")
        return None

    async def _let_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._settings.gateway_body_timeout_s):
                body = await self._read(receive)
        except TimeoutError:
            late = refuse(408, "too_slow", "the body did not arrive in time")
            late.headers["Connection"] = "close"
            await late(scope, receive, send)
            return
        except _HungUp:
            return
        if body is None:
            await self._too_large()(scope, receive, send)
            return
        await _while_connected(self._app, scope, body, receive, send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, or None if it is too large."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _HungUp
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._settings.gateway_body_bytes:
                return None
        return bytes(body)

    def _too_large(self) -> Response:
        limit = self._settings.gateway_body_bytes
        answer = refuse(413, "too_large", f"the body is larger than {limit} bytes")
        answer.headers["Connection"] = "close"  # nobody reads the rest
        return answer


class _HungUp(Exception):
    """The caller has gone before the request was complete."""


async def _while_connected(
    app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send
) -> None:
    given = False
    answered = asyncio.Event()

    async def replay() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await answered.wait()
        return {"type": "http.disconnect"}

    async def hang_up() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    work = asyncio.ensure_future(app(scope, replay, send))
    gone = asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            work.result()
    finally:
        answered.set()
        gone.cancel()
        work.cancel()
        await asyncio.wait((work, gone))  # until what was sent to the workers is withdrawn


def _is_local(headers: Headers) -> bool:
    """A page of another site must not use the browser to ask a gateway that asks for no token."""
    origin = headers.get("origin")
    return is_loopback(_name(headers.get("host", ""))) and (
        origin is None or is_loopback(_name(origin.partition("://")[2]))
    )


def _name(host: str) -> str:
    return host if host.endswith("]") else host.rpartition(":")[0] or host


def _length(headers: Headers) -> int:
    given = headers.get("content-length", "0")
    return int(given) if given.isdecimal() else 0
