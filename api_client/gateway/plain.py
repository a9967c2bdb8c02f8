"""encode/text, encode/image, similarity: one item in, one vector or number out."""

import sys
from collections.abc import Callable, Coroutine
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, File, Form, Query, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, StringConstraints
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError
from starlette.datastructures import ImmutableMultiDict
from starlette.formparsers import MultiPartParser

from ..aio import AsyncClient
from ..results import comparable
from ..wire.errors import BadRequest
from ..wire.messages import MAX_TEXT_CHARS, ModelId
from .budgets import Spend
from .refusals import RESPONSES

Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARS, pattern=r"\S")]
AskedModel = Annotated[
    ModelId | None, Query(description="A model id; the current one if not given")
]

_WITH_FILES = "multipart/form-data"
_ELSEWHERE = "name it in the address, as ?model="


def _elsewhere(given: Any) -> None:
    if given is not None:
        raise PydanticCustomError("elsewhere", _ELSEWHERE)


class TextBody(BaseModel):
    text: Text
    model: Annotated[SkipJsonSchema[None], BeforeValidator(_elsewhere)] = None


class Encoded(BaseModel):
    """`embedding` is L2-normalised."""

    embedding: list[float]


class Similarity(BaseModel):
    """Cosine, -1 to 1."""

    similarity: float


def router(client: AsyncClient) -> APIRouter:
    """POST /encode/text, /encode/image and /similarity."""
    routes = APIRouter(tags=["encode"], responses=RESPONSES, dependencies=[Depends(_asked_once)])
    uploads = APIRouter(route_class=_Upload, dependencies=[Depends(_sent_once)])
    # Bodies are in memory already. The disk may be too small for the pictures of all who wait.
    MultiPartParser.spool_max_size = sys.maxsize

    @routes.post("/encode/text")
    async def encode_text(
        spend: Spend,
        text: Annotated[Text | None, Query(description="The text, if no body is sent")] = None,
        body: Annotated[TextBody | None, Body()] = None,
        model: AskedModel = None,
    ) -> Encoded:
        """The vector of a text."""
        words = _one(text, body.text if body else None)
        await spend(1)
        [row] = await client.embed_texts([words], model=model)
        return Encoded(embedding=row.tolist())

    @uploads.post("/encode/image")
    async def encode_image(
        spend: Spend,
        file: Annotated[UploadFile, File(description="An image file")],
        model: AskedModel = None,
    ) -> Encoded:
        """The vector of a picture."""
        await spend(1)
        [row] = await client.embed_images([await file.read()], model=model)
        return Encoded(embedding=row.tolist())

    @uploads.post("/similarity")
    async def similarity(
        spend: Spend,
        file: Annotated[UploadFile, File(description="An image file")],
        text: Annotated[Text | None, Query(description="The text, if the form has none")] = None,
        form_text: Annotated[Text | None, Form(alias="text")] = None,
        model: AskedModel = None,
    ) -> Similarity:
        """How well a text and a picture fit."""
        asked = _one(text, form_text)
        await spend(2)
        [seen] = await client.embed_images_detailed([await file.read()], model=model, also="text")
        [read] = await client.embed_texts_detailed([asked], model=seen.model)
        words, pixels = comparable([read, seen])
        return Similarity(similarity=float(client.similarity(words, pixels)))

    routes.include_router(uploads)
    return routes


class _Upload(APIRoute):
    """Reads no other form than those that hold files: 32 MB of `&` would take it a minute."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def asked(request: Request) -> Response:
            if not request.headers.get("content-type", "").lower().startswith(_WITH_FILES):
                raise RequestValidationError([{"loc": ("body", "file"), "msg": "Field required"}])
            return await answer(request)

        return asked


def _asked_once(request: Request) -> None:
    _each_once("query", request.query_params)


async def _sent_once(request: Request) -> None:
    form = await request.form()  # read already: these paths take nothing else
    if "model" in form:
        raise RequestValidationError([{"loc": ("form", "model"), "msg": _ELSEWHERE}])
    _each_once("form", form)


def _each_once(place: str, fields: ImmutableMultiDict[str, Any]) -> None:
    """Of a field that comes twice FastAPI takes the last."""
    for name in ("text", "model", "file"):
        if len(fields.getlist(name)) > 1:
            raise RequestValidationError([{"loc": (place, name), "msg": "send it once"}])


def _one(*ways: str | None) -> str:
    texts = [text for text in ways if text is not None]
    if len(texts) != 1:
        raise BadRequest("text is sent either as a query parameter or in the body")
    return texts[0]
