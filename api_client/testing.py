"""The clients without Redis and workers, for the tests of those who use them.

    def test_my_index():
        index = MyIndex(FakeClient())

They are the real clients with a worker in memory: the same checks, messages and results. Equal
inputs get equal vectors, different ones get vectors that are all but orthogonal. No file is opened;
a bulk job is complete as soon as it is submitted, without items.
"""

import hashlib
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from .aio import AsyncClient
from .client import Client
from .memorystore import AwaitedStore, MemoryStore
from .steps import Part, Talk
from .talks import Call, Line
from .vigil import Roll
from .wire import names
from .wire.codec import Vectors, pack_answer, pack_record
from .wire.errors import BadRequest, ClipyardError, ImageUnreadable, UnknownModel
from .wire.messages import (
    AUTO,
    BlobRef,
    CatalogueEntry,
    EmbedBatch,
    Embedded,
    Failure,
    ImageRef,
    Kind,
    Knobs,
    Load,
    Managed,
    ModelStatus,
    PathRef,
    Refused,
    Reload,
    Request,
    Set,
    Switch,
    Unload,
    UrlRef,
    WorkerStatus,
)
from .wire.settings import Settings

__all__ = ["MODELS", "FakeAsyncClient", "FakeClient"]

NODE = "fake@memory"
SEATS = 100  # calls at once
MODELS = (
    CatalogueEntry(id="fake/small", name="Fake, small", family="fake", dimension=16, input_size=32),
    CatalogueEntry(id="fake/large", name="Fake, large", family="fake", dimension=64, input_size=64),
)


class FakeClient(Client):
    """A `Client` that answers from memory.

    Args:
        models: the catalogue; the first one is current.
        failing: a picture's path or URL, or a text -> the error its item gets.
    """

    def __init__(
        self,
        *,
        models: Sequence[CatalogueEntry] = MODELS,
        failing: Mapping[str, ClipyardError] | None = None,
    ) -> None:
        worker = FakeWorker(models, failing or {})
        self._open(worker.store, _FakeLine(worker), "fake", connections=SEATS)


class FakeAsyncClient(AsyncClient):
    """An `AsyncClient` that answers from memory, see `FakeClient`."""

    def __init__(
        self,
        *,
        models: Sequence[CatalogueEntry] = MODELS,
        failing: Mapping[str, ClipyardError] | None = None,
    ) -> None:
        worker = FakeWorker(models, failing or {})
        # As many seats as that: who waited for one would tie it to a loop.
        self._open(AwaitedStore(worker.store), _FakeLine(worker), "fake", connections=sys.maxsize)

    def _require_loop(self) -> None:
        """It has no connections, which would belong to one."""


class FakeWorker:
    """Answers requests as a worker does, with vectors made of a hash of each item."""

    def __init__(
        self, models: Sequence[CatalogueEntry], failing: Mapping[str, ClipyardError]
    ) -> None:
        if not models:
            raise BadRequest("models is empty; pass at least one, or leave it out")
        for name, error in failing.items():
            if not isinstance(error, ClipyardError):
                raise BadRequest(
                    f"failing[{name!r}] is {error!r:.100}; pass what a worker could send, such as "
                    "ImageMissing('it is gone')"
                )
        self.keys = names.Keys("fake")
        self.store = MemoryStore()
        self._models = {name: entry for entry in models for name in (entry.id, *entry.aliases)}
        self._failing = {
            **failing,
            **{str(Path(name).absolute()): failing[name] for name in failing},
        }
        self._current = models[0].id
        self._knobs = Knobs(slots=len(models))
        self._loaded: dict[str, ModelStatus] = {}
        self._turn = threading.Lock()
        self.store.hset(
            self.keys.catalogue, {entry.id: entry.model_dump_json() for entry in models}
        )
        self._show()

    def take(self, call: Call) -> None:
        """Answer a call that was published."""
        with self._turn:
            if not self.store.exists(self.keys.answer(call.id)):
                self.store.rpush(self.keys.answer(call.id), self.frame(call.request, call.blobs))

    def frame(self, request: Request, blobs: Mapping[int, bytes]) -> bytes:
        """The answer to a request."""
        try:
            match request:
                case EmbedBatch():
                    return pack_answer(*self._embed(request, blobs))
                case Load():
                    return pack_answer(self._load(request.model))
                case Reload():
                    return pack_answer(self._reload(request.model))
                case Switch():
                    return pack_answer(self._switch(request.model))
                case Unload():
                    return pack_answer(self._unload(request))
                case Set():
                    return pack_answer(self._set(request.knobs))
                case _:
                    return pack_answer(_managed(None, changed=False))
        except ClipyardError as error:
            return pack_answer(Refused(failure=Failure.of(error)))

    def _embed(self, request: EmbedBatch, blobs: Mapping[int, bytes]) -> tuple[Embedded, Vectors]:
        entry = self._asked(request)
        if request.kind not in entry.kinds:
            raise BadRequest(f"{entry.id} does not embed {request.kind}s")
        items = [_content(ref, blobs) for ref in request.images] or list(request.texts)
        failures = {
            i: Failure.of(error) for i, item in enumerate(items) if (error := self._failure(item))
        }
        rows = [_vector(entry, item) for i, item in enumerate(items) if i not in failures]
        self._touch(entry)
        answer = Embedded(
            model=entry.id,
            dimension=entry.dimension,
            fingerprint=f"fake:{entry.id}",
            items=len(items),
            failures=failures,
            chosen=f"{entry.id} embeds {_wanted(request)}" if request.model == AUTO else "",
            device="memory",
            precision="float32",
            worker=NODE,
        )
        return answer, np.asarray(rows, np.float32).reshape(-1, entry.dimension)

    def _asked(self, request: EmbedBatch) -> CatalogueEntry:
        current = self._entry(self._current)
        if request.model == AUTO:
            for candidate in (current, *self._models.values()):
                if {*request.kinds} <= {*candidate.kinds}:
                    return candidate
            raise BadRequest(f"no model here can embed {_wanted(request)}")
        return self._entry(request.model) if request.model else current

    def _failure(self, item: str | bytes) -> ClipyardError | None:
        if isinstance(item, str):
            return self._failing.get(item)
        return None if item else ImageUnreadable("the image is empty")

    def _load(self, model: str) -> Managed:
        entry = self._entry(model)
        changed = entry.id not in self._loaded
        self._touch(entry)
        return _managed(entry.id, changed=changed)

    def _reload(self, model: str) -> Managed:
        self._load(model)
        return _managed(self._entry(model).id, changed=True)

    def _switch(self, model: str) -> Managed:
        entry, before = self._entry(model), self._current
        changed = entry.id != before or entry.id not in self._loaded
        if entry.id != before and before not in (self._knobs.pinned or ()):
            self._loaded.pop(before, None)
        self._current = entry.id
        self._touch(entry)
        return _managed(entry.id, changed=changed)

    def _unload(self, request: Unload) -> Managed:
        families = sorted({entry.family for entry in self._models.values()})
        if request.family not in (None, *families):
            raise BadRequest(f"no model family {request.family!r}; there are {', '.join(families)}")
        one = self._entry(request.model or self._current).id if request.scope == "one" else None
        going = [model for model in self._loaded if one == model or self._is_of(model, request)]
        for model in going:
            self._loaded.pop(model)
        self._show()
        return _managed(one, changed=bool(going))

    def _is_of(self, model: str, request: Unload) -> bool:
        entry = self._entry(model)
        if request.scope == "family":
            return entry.family == request.family
        return request.scope in ("everything", _type(entry))

    def _set(self, knobs: Knobs) -> Managed:
        before, given = self._knobs, knobs.model_dump(exclude_none=True)
        if knobs.pinned:
            given["pinned"] = tuple(self._entry(model).id for model in knobs.pinned)
        self._knobs = before.model_copy(update=given)
        self._show()
        return _managed(None, changed=self._knobs != before)

    def _entry(self, model: str) -> CatalogueEntry:
        if model not in self._models:
            raise UnknownModel(f"no model {model!r}; known are {', '.join(self._models)}")
        return self._models[model]

    def _touch(self, entry: CatalogueEntry) -> None:
        uses = self._loaded.pop(entry.id).usage_count if entry.id in self._loaded else 0
        self._loaded[entry.id] = ModelStatus(
            id=entry.id,
            state="device",
            type=_type(entry),
            dimension=entry.dimension,
            device_bytes=int(entry.memory_gb * 1e9),
            last_used=time.time(),
            usage_count=uses + 1,
        )
        self._show()

    def _show(self) -> None:
        knobs = self._knobs.model_dump(exclude_none=True)
        status = WorkerStatus(
            name=NODE,
            device="memory",
            pid=1,
            started_at=1.0,
            beat_at=time.time(),
            state="ready",
            current=self._current,
            default=self._current,
            models=tuple(self._loaded),
            slots=knobs["slots"],
            settings={name: str(value) for name, value in knobs.items()},
        )
        self.store.sadd(self.keys.workers, NODE)
        self.store.set(self.keys.current, self._current.encode())
        self.store.hset(self.keys.worker(NODE), pack_record(status))
        for model in self._loaded.values():
            self.store.hset(self.keys.model(NODE, model.id), pack_record(model))


def _managed(model: str | None, *, changed: bool) -> Managed:
    return Managed(worker=NODE, model=model, changed=changed, message="done, in memory")


def _type(entry: CatalogueEntry) -> Literal["vision", "text"]:
    return "vision" if Kind.IMAGE in entry.kinds else "text"


def _wanted(request: EmbedBatch) -> str:
    return " and ".join(f"{kind}s" for kind in request.kinds)


def _content(ref: ImageRef, blobs: Mapping[int, bytes]) -> str | bytes:
    match ref:
        case PathRef():
            return ref.path
        case UrlRef():
            return ref.url
        case BlobRef():
            return blobs[ref.blob]


def _vector(entry: CatalogueEntry, item: str | bytes) -> Vectors:
    content = item.encode() if isinstance(item, str) else item
    seed = hashlib.sha256(entry.id.encode() + b"\0" + content).digest()
    vector = np.random.default_rng(list(seed)).standard_normal(entry.dimension)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


class _FakeLine(Line):
    def __init__(self, worker: FakeWorker) -> None:
        self.settings = Settings.read(redis_url="redis://fake", key_prefix="fake")
        self.keys = worker.keys
        self._roll = Roll(self.keys)
        self._worker = worker

    def submit(self, call: Call) -> Talk[None]:
        return self.send(call)  # nothing is ever lost on its way

    def letter(self, call: Call) -> Part:
        return lambda pipe: self._worker.take(call)

    def notice(self, ids: Sequence[str]) -> Part:
        return lambda pipe: None

    def close(self) -> None:
        """Nothing is open."""
