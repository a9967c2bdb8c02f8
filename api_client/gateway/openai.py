"""The paths of OpenAI's embeddings, for pictures too."""

import asyncio
import base64
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, BeforeValidator, Discriminator, Field, StringConstraints, Tag
from pydantic_core import PydanticCustomError

from ..aio import AsyncClient
from ..results import Item
from ..wire.errors import BadRequest
from ..wire.messages import MAX_TEXT_CHARS, CatalogueEntry, ModelId
from .budgets import Spend
from .inputs import Modality, embed
from .refusals import ONE, RESPONSES, SEVERAL

TURN_S = 0.01  # the longest that all others wait for an answer that is being written


def _as_ours(given: Any) -> Any:
    """The forms that other services take, each with what is taken here."""
    if isinstance(given, dict):  # {"image": ...}, {"text": ...}
        raise PydanticCustomError(
            "object",
            "Input should be a string, for a picture too: data:image/...;base64,... or an http(s) "
            "address",
        )
    if isinstance(given, int | list):
        raise PydanticCustomError(
            "token_numbers",
            "Input should be a text, not token numbers of another model's vocabulary "
            "(langchain-openai: check_embedding_ctx_length=False)",
        )
    return given


# A picture as a data URI may be as long as the body; the client looks at the length of texts.
Input = Annotated[str, StringConstraints(min_length=1, pattern=r"\S"), BeforeValidator(_as_ours)]
Inputs = Annotated[list[Input], Field(min_length=1)]


class EmbeddingsRequest(BaseModel):
    """As OpenAI's, and `modality` for inputs that could be taken for something else."""

    # Told apart beforehand, so that what is wrong is said of what was sent.
    input: Annotated[
        Annotated[Input, Tag(ONE)] | Annotated[Inputs, Tag(SEVERAL)],
        Discriminator(lambda given: SEVERAL if isinstance(given, list) else ONE),
    ] = Field(
        description=f"Texts of up to {MAX_TEXT_CHARS} characters; pictures as data:image/... "
        "URIs or http(s) addresses"
    )
    model: ModelId | None = Field(None, description="An id of GET /v1/models; else the current one")
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        None, description="The model's own number; these models cannot be cut"
    )
    modality: Modality | None = Field(None, description="What all inputs are; guessed if not given")
    user: str | None = None


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    truncated: bool = Field(description="Whether a text was longer than the model reads: it is cut")


class Usage(BaseModel):
    """Nobody is billed here."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage = Usage()


class ModelCard(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelCard]


def router(client: AsyncClient, *, most_items: int) -> APIRouter:
    """POST /v1/embeddings, GET /v1/models and /v1/models/{id}."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], responses=RESPONSES)

    def cut(body: Any) -> Any:
        # To put down what is wrong with each of a million items takes a minute and a gigabyte.
        match body:
            case {"input": list(inputs)}:
                return body | {"input": inputs[: most_items + 1]}
        return body

    @routes.post("/embeddings", response_model=EmbeddingsResponse)
    async def embeddings(
        asked: Annotated[EmbeddingsRequest, BeforeValidator(cut)], spend: Spend
    ) -> Response:
        """One vector per input."""
        inputs = [asked.input] if isinstance(asked.input, str) else asked.input
        if len(inputs) > most_items:
            raise BadRequest(f"input has more than {most_items} items; send no more at once")
        await spend(len(inputs))
        items = await embed(client, inputs, model=asked.model, modality=asked.modality)
        _same_dimension(items[0], asked.dimensions)
        return Response(await written(items, asked.encoding_format), media_type="application/json")

    @routes.get("/models")
    async def models() -> ModelList:
        """The catalogue."""
        return ModelList(data=[card(entry) for entry in await client.models()])

    @routes.get("/models/{model_id:path}")
    async def model(model_id: ModelId) -> ModelCard:
        """One model."""
        return card(await client.model_info(model_id))

    return routes


def _same_dimension(item: Item, dimensions: int | None) -> None:
    """By the vector itself: of a model that no catalogue lists nothing else tells it for sure."""
    assert item.vector is not None
    if dimensions not in (None, len(item.vector)):
        raise BadRequest(
            f"dimensions is {dimensions}; vectors of {item.model} have {len(item.vector)} "
            "and cannot be cut"
        )


async def written(items: Sequence[Item], encoding_format: str) -> bytes:
    """An `EmbeddingsResponse`, in turns with everybody else, who would wait a second for the
    numbers of 2,048 vectors."""
    rows, turn_ends_at = [], time.monotonic() + TURN_S
    for i, item in enumerate(items):
        vector = encoded(item, encoding_format)
        row = Embedding(index=i, embedding=vector, truncated=item.truncated)
        rows.append(row.model_dump_json().encode())
        if time.monotonic() >= turn_ends_at:
            await asyncio.sleep(0)
            turn_ends_at = time.monotonic() + TURN_S
    around = EmbeddingsResponse(data=[], model=items[0].model).model_dump_json().encode()
    head, tail = around.split(b"[]", 1)
    return b"".join((head, b"[", b",".join(rows), b"]", tail))


def encoded(item: Item, encoding_format: str) -> list[float] | str:
    """The vector as numbers, or as base64 of little-endian float32."""
    assert item.vector is not None
    if encoding_format == "base64":
        return base64.b64encode(item.vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = item.vector.tolist()
    return numbers


def card(entry: CatalogueEntry) -> ModelCard:
    return ModelCard(id=entry.id, owned_by=entry.family)
