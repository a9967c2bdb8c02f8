"""The paths of the RAG system's embedding models, in the shapes its callers know."""

from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from ..aio import AsyncClient
from ..desk import entry_of
from ..status import Fleet
from ..wire.errors import BadRequest
from ..wire.messages import CatalogueEntry, Kind, Managed, ModelId, ModelStatus, Pressure
from .refusals import RESPONSES

MB = 1024 * 1024
CURRENT = "clip_vision_embedding"  # the tracker's name for the current vision model

Health = Literal["healthy", "degraded", "unhealthy"]


class ModelType(StrEnum):
    VISION = "vision"
    TEXT = "text"


class MemoryUsage(BaseModel):
    vram_mb: float = 0
    ram_mb: float = 0


class ModelInfo(BaseModel):
    model_id: str
    dimension: int
    metric: Literal["cosine"] = "cosine"


class TextModel(BaseModel):
    loaded: bool
    model_info: ModelInfo
    memory_usage: MemoryUsage
    last_used: float | None


class VisionModel(TextModel):
    memory_pressure_level: Pressure


class Tracked(BaseModel):
    model_type: Literal["vision_embedding", "embedding_model"]
    last_used: float | None
    usage_count: int
    is_loaded: bool
    vram_timeout: float
    ram_timeout: float


class Status(BaseModel):
    """`vision_embeddings` is the current model, `text_embeddings` all that embed texts only."""

    vision_embeddings: VisionModel
    text_embeddings: dict[str, TextModel]
    memory_pressure: dict[str, Pressure]
    tracker_status: dict[str, Tracked]


class VisionService(BaseModel):
    status: Health
    model_loaded: bool
    memory_usage: MemoryUsage
    last_used: float | None


class TextService(BaseModel):
    status: Health
    loaded_models: list[str]
    memory_usage: MemoryUsage


class Services(BaseModel):
    clip_embedding_service: VisionService
    embedding_service: TextService


class Summary(BaseModel):
    total_services: int
    healthy: int
    degraded: int
    unhealthy: int


class HealthReport(BaseModel):
    timestamp: str
    services: Services
    summary: Summary


class AvailableModel(BaseModel):
    model_id: str
    name: str
    dimension: int
    supported_features: list[str]
    description: str
    recommended_use: str
    input_size: int | None
    memory_gb: float
    performance_rating: str


class AvailableModels(BaseModel):
    vision_embeddings: list[AvailableModel]
    text_embeddings: list[AvailableModel]


class CurrentModel(BaseModel):
    model_id: str
    loaded: bool
    memory_usage: MemoryUsage


class VisionStatus(BaseModel):
    current_model: CurrentModel
    available_models: list[AvailableModel]


class ReloadBody(BaseModel):
    model_id: ModelId


class UnloadedType(BaseModel):
    unloaded: bool
    model_type: ModelType
    message: str


class Unloaded(BaseModel):
    unloaded: bool
    model_id: str
    message: str


class Changed(BaseModel):
    success: bool
    model_id: str
    message: str


def router(client: AsyncClient) -> APIRouter:
    """Everything under /api/rag/embedding."""
    routes = APIRouter(prefix="/api/rag/embedding", tags=["models"], responses=RESPONSES)

    @routes.get("/models")
    async def models() -> AvailableModels:
        """All models that can be asked for."""
        entries = await client.models()
        return AvailableModels(
            vision_embeddings=[available(entry) for entry in entries if is_vision(entry)],
            text_embeddings=[available(entry) for entry in entries if not is_vision(entry)],
        )

    @routes.get("/status")
    async def status() -> Status:
        """What is loaded, what it takes, and who uses it."""
        return status_of(await client.status(), await client.models())

    @routes.get("/health")
    async def health() -> HealthReport:
        """How the services are."""
        return health_of(await client.status(), now=datetime.now(UTC))

    @routes.post("/unload/{model_type}")
    async def unload_type(model_type: ModelType) -> UnloadedType:
        """Let all models of a type go."""
        answers = await client.unload(scope=model_type.value)
        return UnloadedType(
            unloaded=any(answer.changed for answer in answers),
            model_type=model_type,
            message=told(answers),
        )

    @routes.post("/reload/{model_type}")
    async def reload(model_type: ModelType, body: ReloadBody) -> Changed:
        """Read a model's checkpoint again."""
        await of_type(model_type, body.model_id)
        return changed(body.model_id, await client.reload(body.model_id))

    @routes.post("/vision/load/{model_id:path}")
    async def load(model_id: ModelId) -> Changed:
        """Bring a model onto a worker's device."""
        await of_type(ModelType.VISION, model_id)
        return changed(model_id, await client.load(model_id))

    @routes.post("/vision/switch/{model_id:path}")
    async def switch(model_id: ModelId) -> Changed:
        """Make a model the current one; the one before it goes."""
        await of_type(ModelType.VISION, model_id)
        return changed(model_id, await client.switch(model_id))

    @routes.post("/vision/unload/{model_id:path}")
    async def unload(model_id: ModelId) -> Unloaded:
        """Let one model go."""
        answers = await client.unload(model_id)
        return Unloaded(
            unloaded=any(answer.changed for answer in answers),
            model_id=model_id,
            message=told(answers),
        )

    @routes.get("/vision/status")
    async def vision_status() -> VisionStatus:
        """The current model, and which others there are."""
        fleet, entries = await client.status(), await client.models()
        current = fleet.answering()
        held = holding(fleet, current)
        return VisionStatus(
            current_model=CurrentModel(
                model_id=current, loaded=bool(held), memory_usage=memory_of(held)
            ),
            available_models=[available(entry) for entry in entries if is_vision(entry)],
        )

    async def of_type(model_type: ModelType, model_id: str) -> None:
        # Of one that nobody lists the workers may know more.
        entry = entry_of(await client.models(), model_id)
        if entry and is_vision(entry) != (model_type is ModelType.VISION):
            raise BadRequest(f"{model_id} is no {model_type} model")

    return routes


def status_of(fleet: Fleet, entries: Sequence[CatalogueEntry]) -> Status:
    """The fleet in the shape of GET .../status."""
    current = fleet.answering()
    loaded = {one.id: holding(fleet, one.id) for _, one in fleet.in_memory}
    # Mistyped in the settings, it is listed by nobody, and no reason to hide the others.
    vision = seen(current, entry_of(entries, current), loaded.get(current, []))
    texts = [entry for entry in entries if not is_vision(entry)]
    tracked = {
        CURRENT if model_id == current else model_id: tracked_of(held)
        for model_id, held in loaded.items()
    }
    return Status(
        vision_embeddings=VisionModel(**dict(vision), memory_pressure_level=fleet.pressure),
        # Under the names that they had: nomic-embed-text for ollama/nomic-embed-text.
        text_embeddings={
            (entry.aliases or (entry.id,))[0]: seen(entry.id, entry, loaded.get(entry.id, []))
            for entry in texts
        },
        memory_pressure={"text_embeddings": fleet.pressure},
        tracker_status=tracked,
    )


def health_of(fleet: Fleet, *, now: datetime) -> HealthReport:
    """The fleet in the shape of GET .../health; both services run on the same workers."""
    vision = [model for _, model in fleet.in_memory if model.type == "vision"]
    texts = [model for _, model in fleet.in_memory if model.type == "text"]
    ready = sum(worker.state == "ready" for worker in fleet.workers)
    health: Health = "unhealthy" if not ready else "healthy"
    if 0 < ready < len(fleet.workers):
        health = "degraded"
    return HealthReport(
        timestamp=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        services=Services(
            clip_embedding_service=VisionService(
                status=health,
                model_loaded=bool(vision),
                memory_usage=memory_of(vision),
                last_used=last_used(vision),
            ),
            embedding_service=TextService(
                status=health,
                loaded_models=sorted({model.id for model in texts}),
                memory_usage=memory_of(texts),
            ),
        ),
        summary=Summary(
            total_services=2,
            healthy=2 * (health == "healthy"),
            degraded=2 * (health == "degraded"),
            unhealthy=2 * (health == "unhealthy"),
        ),
    )


def seen(model_id: str, entry: CatalogueEntry | None, held: Sequence[ModelStatus]) -> TextModel:
    # One that needs no entry tells it once it is loaded; 0 is not known yet.
    dimensions = (*(model.dimension for model in held), entry.dimension if entry else None)
    info = ModelInfo(model_id=model_id, dimension=next(filter(None, dimensions), 0))
    return TextModel(
        loaded=bool(held),
        model_info=info,
        memory_usage=memory_of(held),
        last_used=last_used(held),
    )


def tracked_of(held: Sequence[ModelStatus]) -> Tracked:
    first = held[0]
    return Tracked(
        model_type="vision_embedding" if first.type == "vision" else "embedding_model",
        last_used=last_used(held),
        usage_count=sum(model.usage_count for model in held),
        is_loaded=True,
        vram_timeout=first.vram_timeout_s,
        ram_timeout=first.ram_timeout_s,
    )


def holding(fleet: Fleet, model_id: str) -> list[ModelStatus]:
    return [model for _, model in fleet.in_memory if model.id == model_id]


def memory_of(held: Sequence[ModelStatus]) -> MemoryUsage:
    return MemoryUsage(
        vram_mb=round(sum(model.device_bytes for model in held) / MB, 1),
        ram_mb=round(sum(model.host_bytes for model in held) / MB, 1),
    )


def last_used(held: Sequence[ModelStatus]) -> float | None:
    return max((model.last_used for model in held), default=None)


def is_vision(entry: CatalogueEntry) -> bool:
    return Kind.IMAGE in entry.kinds


def available(entry: CatalogueEntry) -> AvailableModel:
    return AvailableModel(
        model_id=entry.id,
        supported_features=[f"{kind}_embedding" for kind in entry.kinds],
        **entry.model_dump(include=set(AvailableModel.model_fields) - {"model_id"}),
    )


def told(answers: Sequence[Managed]) -> str:
    """What the workers said, each sentence once."""
    return "; ".join(dict.fromkeys(answer.message for answer in answers))


def changed(model_id: str, answers: Sequence[Managed]) -> Changed:
    return Changed(success=True, model_id=model_id, message=told(answers))
