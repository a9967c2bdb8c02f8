"""What goes wrong, as HTTP: one table from our errors to status codes, one shape for all."""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ..results import ItemsFailed
from ..wire import errors
from .budgets import OverLimit

log = logging.getLogger(__name__)

# What Pydantic calls the forms that one field may have; callers have never seen them.
ONE, SEVERAL = "one", "several"


class Refusal(NamedTuple):
    """A status, and what to say; None says what the error says."""

    status: int
    sentence: str | None = None


# Sentences of our own side's troubles name hosts, paths and processes: they go to the log.
TABLE: dict[type[errors.ClipyardError], Refusal] = {
    errors.BadRequest: Refusal(400),
    errors.UnknownModel: Refusal(404),
    errors.NotSigned: Refusal(500, "the workers do not take what this gateway sends"),
    errors.SpaceMismatch: Refusal(409),
    errors.ItemError: Refusal(400),
    errors.ImageMissing: Refusal(404),
    errors.ImageForbidden: Refusal(403),
    errors.ImageGone: Refusal(503),
    errors.ImageUnreachable: Refusal(503),
    errors.ImageTooLarge: Refusal(413),
    errors.NonFiniteVector: Refusal(500, "the model answered with no usable vector"),
    errors.LoadFailed: Refusal(500, "the model cannot be loaded"),
    errors.ModelBusy: Refusal(503, "every slot is busy; ask again"),
    errors.OutOfMemory: Refusal(503, "memory does not suffice at the moment"),
    errors.BackendAway: Refusal(503, "the server that runs the model is away or busy"),
    errors.DeviceLost: Refusal(503, "the device is being started again"),
    errors.Quarantined: Refusal(500, "the request took its worker down and was set aside"),
    errors.Cancelled: Refusal(409, "the request was withdrawn"),
    errors.Expired: Refusal(504, "no worker was free in time"),
    errors.NoAnswer: Refusal(504, "no answer in time"),
    errors.NoBroker: Refusal(503, "the message broker cannot be reached"),
    errors.NoWorker: Refusal(503, "no worker is alive"),
    OverLimit: Refusal(429),
    errors.ClipyardError: Refusal(500, "internal error"),
}


class Trouble(BaseModel):
    """`code` is for programs, `message` for people."""

    code: str
    message: str


class ErrorBody(BaseModel):
    error: Trouble


# Of every route, for the OpenAPI page.
RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The request cannot be served",
        401: "No or a wrong bearer token",
        403: "Refused: outside the allowed hosts, or by the server of a picture",
        404: "No such model",
        408: "The body did not arrive in time",
        409: "Not in the present state",
        413: "More than the gateway takes",
        415: "The body is packed",
        422: "The request is not understood",
        429: "Too many requests at once, or in a minute",
        500: "Internal error",
        503: "Nobody can answer at the moment",
        504: "No answer in time",
    }.items()
}


def refuse(status: int, code: str, message: str, *, retry_after_s: int = 1) -> JSONResponse:
    """The one shape of everything that is no success."""
    headers = {"Retry-After": str(retry_after_s)} if status in (429, 503) else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


def refusal_of(error: errors.ClipyardError) -> tuple[errors.ClipyardError, Refusal]:
    """What to answer for an error; for failed items, for the first of them."""
    if isinstance(error, ItemsFailed):
        error = next(item.error for item in error.items if item.error)
    kind = next(kind for kind in type(error).__mro__ if kind in TABLE)
    return error, TABLE[kind]


class Unforeseen:
    """ASGI middleware, within those that count requests and give them their id.

    Starlette's own handler of all exceptions stands outside of them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:  # by uvicorn, when a stop can wait no longer
            if scope["type"] != "http":
                raise
            stopping = refuse(503, "stopping", "the gateway is being stopped; ask again")
            await stopping(scope, receive, send)
        except Exception as error:
            if scope["type"] != "http":
                raise
            log.error("%s %s failed", scope["method"], quote(scope["path"]), exc_info=error)
            await refuse(500, "internal", "internal error")(scope, receive, send)


def install(app: FastAPI) -> None:
    """Give every error that a route raises the one shape."""
    app.add_exception_handler(errors.ClipyardError, _ours)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _http)


def answer_to(error: errors.ClipyardError, *, method: str, path: str) -> JSONResponse:
    """What the caller is told of an error; what is not for callers is logged."""
    place = _place(error)
    error, refusal = refusal_of(error)
    if refusal.sentence:
        log.warning("%s %s: %s: %s", method, quote(path), error.code, error)  # a line is a line
    sentence = place + (refusal.sentence or str(error))
    after_s = error.retry_after_s if isinstance(error, OverLimit) else 1
    return refuse(refusal.status, error.code, sentence, retry_after_s=after_s)


def _place(error: errors.ClipyardError) -> str:
    """Of several inputs, which one it is about."""
    if not isinstance(error, ItemsFailed) or len(error.items) == 1:
        return ""
    return f"input {next(i for i, item in enumerate(error.items) if item.error)}: "


def _ours(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.ClipyardError)
    return answer_to(error, method=request.method, path=request.url.path)


def _not_understood(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    match mistake := error.errors()[0]:
        case {"type": "json_invalid", "loc": (_, position), "ctx": {"error": why}}:
            sentence = f"the body is no JSON: {why} at character {position}"
        case {"loc": ("body",), "input": bytes()}:
            sentence = "send the body as JSON, with Content-Type: application/json"
        case {"loc": ("body", "file")}:  # none, under another name, or a word in its place
            sentence = "file: send the picture in a form, as curl -F file=@a.jpg does"
        case {"type": "string_pattern_mismatch"}:  # of the one pattern there is, a visible letter
            sentence = f"{_named(mistake['loc'])} is blank; send at least one word"
        case _:
            sentence = f"{_named(mistake['loc'])}: {mistake['msg']}"
    return refuse(422, "not_understood", sentence)


def _named(steps: Sequence[str | int]) -> str:
    """A place in a request as its caller wrote it, such as input[0]."""
    part, *rest = (step for step in steps if step not in (ONE, SEVERAL))
    name = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in rest)
    return name.removeprefix(".") or str(part)


def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if isinstance(error.__cause__, RecursionError):
        return refuse(422, "not_understood", "the body is nested too deeply")
    if isinstance(error.__cause__, ValueError):  # FastAPI's, of no syntax error
        return refuse(422, "not_understood", f"the body cannot be read: {error.__cause__}")
    answer = refuse(error.status_code, f"http_{error.status_code}", error.detail)
    answer.headers.update(error.headers or {})
    return answer
