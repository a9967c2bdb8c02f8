"""What crosses the wire: one frozen model per payload, result and status record."""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints, model_validator

from . import names
from .errors import ClipyardError, from_wire

WIRE_VERSION = 1
MAX_ITEMS = 4096  # per message; the client cuts larger inputs
AUTO = "auto"  # in the place of a model's id: the worker chooses, and says what and why
MAX_TEXT_CHARS = 100_000  # far above any context length
MAX_BATCH_CHARS = 2**24  # of all texts or references together; bounds a message

ModelId = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Scope = Literal["one", "vision", "text", "family", "timeout", "pressure", "everything"]
Pressure = Literal["normal", "elevated", "high", "critical"]
WorkerState = Literal["starting", "ready", "broken", "stopping"]


class Message(BaseModel):
    """A value on the wire. Unknown fields are refused: a typo must not pass for a default.

    Only the readers of answers and records let them pass, because workers are updated first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


class Kind(StrEnum):
    """What is embedded; also which tower of a two-tower model runs."""

    IMAGE = "image"
    TEXT = "text"


class Priority(StrEnum):
    """Interactive work goes before bulk at every batch boundary."""

    INTERACTIVE = "interactive"
    BULK = "bulk"

    @property
    def step(self) -> int:
        """Of each queue, where it waits; see `names`."""
        return names.BULK if self is Priority.BULK else names.INTERACTIVE


class PathRef(Message):
    """A file that the worker can open, under one of its allowed roots."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=4096)]


class UrlRef(Message):
    """An http(s) or object-store address; refused unless the worker's settings allow it."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=8192)]


class BlobRef(Message):
    """File bytes that the client put into the request's blobs hash (`Keys.blobs`).

    Attributes:
        sha256: of the bytes; in a signed request, so that the signature covers them too.
    """

    blob: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] | None = None


ImageRef = PathRef | UrlRef | BlobRef


def _length(ref: ImageRef) -> int:
    match ref:
        case PathRef(path=name) | UrlRef(url=name):
            return len(name)
        case BlobRef():
            return 0


class Request(Message):
    """What every request carries.

    Attributes:
        wire: version of this protocol; a worker refuses a newer one than its own.
        deadline: unix seconds; nobody works for a caller who has gone.
        asked_by: a name for the event stream, e.g. `cli` or `user@host`.
    """

    wire: Annotated[int, Field(ge=1)] = WIRE_VERSION
    deadline: float | None = None
    asked_by: Annotated[str, StringConstraints(max_length=200)] = ""


class EmbedBatch(Request):
    """Asks for one vector per image or per text, all in the space of one model.

    Attributes:
        model: an id of the catalogue, or `AUTO`; None is the current model, else the default.
        also: what a model that `AUTO` chooses must embed as well, for a call that follows.
        fingerprint: if given, answer only in this vector space.
        dtype: of the vectors on the wire; float16 halves the bytes (error about 6e-5).
        keep_alive_s: for the model: 0 goes when idle, negative stays, None as the settings say.
    """

    model: ModelId | None = None
    images: Annotated[tuple[ImageRef, ...], Field(max_length=MAX_ITEMS)] = ()
    texts: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)], ...],
        Field(max_length=MAX_ITEMS),
    ] = ()
    priority: Priority = Priority.INTERACTIVE
    fingerprint: str | None = None
    dtype: Literal["float32", "float16"] = "float32"
    keep_alive_s: FiniteFloat | None = None
    also: Kind | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.images) == bool(self.texts):
            raise ValueError("give either images or texts, at least one")
        if sum(map(len, self.texts)) + sum(map(_length, self.images)) > MAX_BATCH_CHARS:
            raise ValueError(f"more than {MAX_BATCH_CHARS} characters; send smaller batches")
        return self

    @property
    def kind(self) -> Kind:
        return Kind.IMAGE if self.images else Kind.TEXT

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What a model that `AUTO` chooses must embed: the items, and what follows."""
        return (self.kind,) if self.also in (None, self.kind) else (self.kind, self.also)


class Failure(Message):
    """Why an item, or a whole request, has no vector."""

    code: str
    message: str
    retryable: bool = False

    @classmethod
    def of(cls, error: ClipyardError) -> Self:
        return cls(code=error.code, message=str(error), retryable=error.retryable)

    def error(self) -> ClipyardError:
        return from_wire(self.code, self.message, retryable=self.retryable)


class Timings(Message):
    """Where the time of one request went, in seconds."""

    queue_s: float = 0.0  # from the client's send to the task's start
    load_s: float = 0.0  # waiting for the model
    decode_s: float = 0.0  # from the first item's decoding to the last one's end
    forward_s: float = 0.0  # from the first batch's start to the last one's end


class Embedded(Message):
    """Answers EmbedBatch; the vectors follow as raw bytes, see `codec.pack_answer`.

    Item i either has a row, or an entry in `failures`; rows keep the order of the items.

    Attributes:
        fingerprint: vectors may be compared where the fingerprints are equal.
        truncated: positions of texts cut to the model's context length.
        chosen: why this model, where `AUTO` was asked for.
        device, precision: what computed the vectors.
        worker: node name.
        correlation: under which logs tell of it; the caller's id, or the request's own.
    """

    model: str
    dimension: int
    fingerprint: str
    items: int
    dtype: Literal["float32", "float16"] = "float32"
    failures: dict[int, Failure] = Field(default_factory=dict)
    truncated: tuple[int, ...] = ()
    chosen: str = ""
    device: str = ""
    precision: str = ""
    worker: str = ""
    correlation: str = ""
    timings: Timings = Timings()


class Load(Request):
    """Asks one worker to bring a model onto its device."""

    model: ModelId
    keep_alive_s: FiniteFloat | None = None


class Reload(Request):
    """Asks one worker to read a model's checkpoint again and put it back onto the device."""

    model: ModelId


class Switch(Request):
    """Asks for a model to become a worker's current one; the one before it goes.

    Attributes:
        reach: `fleet` also makes it the model for requests that name none, now and for workers
            to come. It is sent to every worker, one message each.
    """

    model: ModelId
    reach: Literal["worker", "fleet"] = "worker"


class Unload(Request):
    """Asks a worker to let models go.

    Attributes:
        model: with the scope `one` only; None is the current one.
        scope: the rest follow their kind or family, or the sweeps' own rules at once: those idle
            beyond their timeouts, or as many as the memory pressure asks for.
        family: with the scope `family` only, e.g. `ollama`.
    """

    model: ModelId | None = None
    scope: Scope = "one"
    family: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        if self.model is not None and self.scope != "one":
            raise ValueError(f"give either a model or the scope {self.scope}")
        if (self.family is not None) != (self.scope == "family"):
            raise ValueError("the scope family goes with the name of one, and no other scope does")
        return self


class Knobs(Message):
    """The settings that can be changed while a worker runs; None leaves one as it is.

    They bear the names and the meaning of the worker's settings.
    """

    slots: Annotated[int, Field(ge=1)] | None = None
    vision_vram_timeout_s: Seconds | None = None
    vision_ram_timeout_s: Seconds | None = None
    text_vram_timeout_s: Seconds | None = None
    text_ram_timeout_s: Seconds | None = None
    pressure_threshold: Annotated[float, Field(gt=0, le=1)] | None = None
    pressure_timeout_s: Seconds | None = None
    pinned: tuple[ModelId, ...] | None = None
    adaptive_timeouts: bool | None = None


class Set(Request):
    """Asks a worker to change settings now, until it ends (see the setting `resume`)."""

    knobs: Knobs


class Managed(Message):
    """Answers Load, Reload, Switch, Unload and Set.

    Attributes:
        changed: False when there was nothing to do, e.g. the model was already there.
        message: one sentence for people.
    """

    worker: str
    model: str | None
    changed: bool
    message: str
    seconds: float = 0.0


class Refused(Message):
    """Answers any request that failed as a whole."""

    failure: Failure


class CatalogueEntry(Message):
    """What a person needs to know to choose a model.

    Attributes:
        dimension: length of a vector. input_size: pixels along one edge, None for texts only.
        memory_gb: device memory, a first guess until a worker has measured it.
    """

    id: str
    name: str
    family: str
    description: str = ""
    recommended_use: str = ""
    dimension: int
    input_size: int | None = None
    memory_gb: float = 0.0
    performance_rating: str = ""
    kinds: tuple[Kind, ...] = (Kind.IMAGE, Kind.TEXT)
    aliases: tuple[str, ...] = ()


class ModelStatus(Message):
    """One model on one worker, as its status hash tells it. Times are unix seconds."""

    id: str
    state: Literal["loading", "host", "device"]
    type: Literal["vision", "text"] = "vision"
    dimension: int | None = None
    precision: str = ""
    fingerprint: str = ""
    leases: int = 0
    device_bytes: int = 0
    host_bytes: int = 0
    peak_batch_bytes: int = 0
    load_s: float = 0.0
    loaded_at: float = 0.0
    last_used: float = 0.0
    usage_count: int = 0
    vram_timeout_s: float = 0.0
    ram_timeout_s: float = 0.0
    keep_alive_s: float | None = None  # asked for by a request; in place of the timeouts
    pinned: bool = False
    next_out: bool = False  # what would be evicted next


class ComplaintAbout(StrEnum):
    """What a worker can find wrong around itself."""

    IMAGE_ROOT = "image root"
    DISK = "disk"
    GPU = "gpu"


class Complaint(Message):
    """Something that a worker found wrong around itself, and the mend.

    Attributes:
        about: a `ComplaintAbout`, or what a newer worker has beside those.
    """

    about: str
    found: str
    mend: str


class WorkerStatus(Message):
    """One worker process, as its status hash tells it. Times are unix seconds."""

    name: str
    device: str
    pid: int
    started_at: float
    beat_at: float
    state: WorkerState
    current: str | None = None
    default: str = ""
    models: tuple[str, ...] = ()
    slots: int = 0
    device_total: int = 0
    device_free: int = 0
    host_total: int = 0
    host_free: int = 0
    pressure: Pressure = "normal"
    trouble: str = ""
    last_sweep_at: float = 0.0  # 0: not since it started; is the beat running?
    sweep_interval_s: float | None = None  # None: sweeps are switched off
    settings: dict[str, str] = {}  # those that can be changed at run time
    versions: dict[str, str] = {}
    complaints: tuple[Complaint, ...] = ()


class EventKind(StrEnum):
    """What happened to a model on a worker."""

    LOADED = "loaded"  # into host memory
    LIFTED = "lifted"  # from host memory to the device
    LOWERED = "lowered"  # from the device to host memory
    EVICTED = "evicted"  # gone, to make room
    UNLOADED = "unloaded"  # gone, because it was asked for or idle
    REFUSED = "refused"  # a load or lease was not possible
    OUT_OF_MEMORY = "out_of_memory"


class Cause(StrEnum):
    """Why something happened to a model.

    What a worker does by itself it asks for in the name of one of these. What a client calls
    itself is a plain string, so that none can pass for a sweep.
    """

    REQUEST = "request"
    ROOM = "room"  # for another model
    LIMITS = "limits"  # more was held than they allow
    SWEEP = "sweep"
    FORESIGHT = "foresight"
    HEALTH = "health"  # a pass, to see whether the device works again
    START = "start"
    STOP = "stop"

    @classmethod
    def of(cls, asked_by: str) -> "Cause":
        return asked_by if isinstance(asked_by, cls) else cls.REQUEST


class Event(Message):
    """One line of the event stream. `at` is unix seconds.

    Attributes:
        reason: one phrase, e.g. `idle in VRAM for 612 s`, `made room for ViT-B-32/openai`.
        cause: a `Cause`, or what a newer worker has beside those.
        bytes: given back or taken.
    """

    kind: EventKind
    worker: str = ""
    model: str
    reason: str
    asked_by: str = ""
    cause: str = Cause.REQUEST
    bytes: int = 0
    seconds: float = 0.0
    at: float = 0.0
