"""A bulk re-embedding job on the wire: what was asked for, and how far it has come."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError

from . import codec
from .errors import BadRequest, NotSigned, UnknownJob, first_mistake
from .messages import MAX_ITEMS, Message, ModelId, Priority, Request
from .names import JOB_PLAN
from .settings import Settings
from .signing import FIELD, opened, signed

JOB_VERSION = 1  # of the specification, in Redis and in the file job.json

JobId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
Kind = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
Option = Annotated[str, StringConstraints(min_length=0)]  # which takes no half of a surrogate pair
Address = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


FOLDERS = frozenset({"parquet", "npy"})  # sinks that are folders; papers lie within


class Place(Message):
    """Where a job reads from or writes to.

    Attributes:
        kind: which class of `worker.reembed.sources` or `.sinks` understands it.
        where: a path, glob or address as a worker sees it; never with a password.
        options: what else that class understands, e.g. the column with the paths.
    """

    kind: Kind
    where: Address
    options: Mapping[str, Option] = Field(default_factory=dict)


class Migration(Message):
    """For a job that fills a shadow of a collection that is in use.

    Attributes:
        alias: the name that people search by; it leads to `old` until it is switched.
        old: the collection that the job's sink is to replace.
    """

    alias: Address
    old: Place


class JobSpec(Message):
    """A job as it was asked for. Nothing in it changes after it was submitted.

    Attributes:
        fingerprint: work only in this vector space; None takes the first worker's and pins it.
        chunk_size: items that are finished, or started again, together.
        window: chunks that are started and not finished.
        on_failure: `record` goes on after an item that cannot be embedded, `pause` waits.
        patience_s: how long nothing may succeed before the job pauses itself.
        papers: the folder of the manifest and markers, shared by all workers; None lets the
            worker choose: beside a sink that is a folder, else below its `jobs_dir`.
    """

    version: int = JOB_VERSION
    id: JobId
    source: Place
    model: ModelId
    sink: Place
    fingerprint: str | None = None
    chunk_size: Annotated[int, Field(ge=1, le=MAX_ITEMS)] = 1024
    window: Annotated[int, Field(ge=1, le=1024)] = 16
    priority: Priority = Priority.BULK
    on_failure: Literal["record", "pause"] = "record"
    patience_s: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 300.0
    papers: Address | None = None
    migration: Migration | None = None
    asked_by: Annotated[str, StringConstraints(max_length=200)] = ""
    submitted_at: float = 0.0

    @classmethod
    def read(cls, text: str | bytes) -> Self:
        """A specification from Redis or a file.

        Raises:
            BadRequest: it is broken, or of a version that this program does not read.
        """
        try:
            found = json.loads(text)
            version = found["version"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise BadRequest("this is no job file: it names no version") from None
        if version != JOB_VERSION:
            age = "an older" if isinstance(version, int) and version < JOB_VERSION else "a newer"
            raise BadRequest(
                f"the job was written by {age} version of Clipyard (job version {version}, "
                f"this one reads {JOB_VERSION}): finish it with that version, or submit it again"
            )
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            raise BadRequest(f"the job file is broken: {first_mistake(error)}") from None


def sealed(spec: JobSpec, settings: Settings) -> dict[str, str]:
    """A specification as it is laid down: its text, with a signature where a key is set."""
    text = spec.model_dump_json()
    fields = signed(_seal(text), task=JOB_PLAN, request=spec.id, settings=settings)
    return {"spec": text, FIELD: fields.get(FIELD, "")}


def unsealed(job: str, text: bytes, signature: bytes | None, settings: Settings) -> JobSpec:
    """The specification that was laid down.

    Raises:
        NotSigned: a key is set, and this was not sealed with it.
        BadRequest: see `JobSpec.read`.
    """
    words = codec.text(text)
    payload = {**_seal(words), FIELD: codec.text(signature or b"")}
    try:
        opened(payload, task=JOB_PLAN, request=job, settings=settings)
    except NotSigned:
        raise NotSigned(
            f"job {job} is not signed with a key of this worker: submit it with the worker's "
            "CLIPYARD_SIGNING_KEY, or, if it was with an older one, set that as the worker's "
            "CLIPYARD_OLD_SIGNING_KEY"
        ) from None
    return JobSpec.read(words)


def _seal(text: str) -> dict[str, Any]:
    # A job has no deadline; heard and laid down again, it is the same job, which exists.
    return {"spec": text, "deadline": 0}


class JobState(StrEnum):
    """Where a job is on its way."""

    PLANNING = "planning"  # the source is walked into a manifest
    RUNNING = "running"
    PAUSED = "paused"
    CHECKING = "checking"  # manifest, markers and sink are compared
    COMPLETE = "complete"  # every item is a vector in the sink, or a recorded failure
    INCOMPLETE = "incomplete"  # the report says what is missing
    CANCELLED = "cancelled"
    FAILED = "failed"  # it could not be begun or gone on with; see the reason

    @property
    def is_final(self) -> bool:
        return self in (self.COMPLETE, self.INCOMPLETE, self.CANCELLED, self.FAILED)

    @property
    def is_at_rest(self) -> bool:
        """Nothing is done for it before somebody says so."""
        return self.is_final or self is self.PAUSED


class JobStatus(Message):
    """How far a job has come. Times of day are unix seconds.

    Attributes:
        done, failed: items with a vector, and items recorded as failures.
        cut: texts that were longer than the model reads; counted when the job is over.
        read_s, decode_s, forward_s, write_s: summed over chunks; chunks overlap.
        trouble: what keeps the job from going on at the moment.
        workers: node name -> items that it finished, each time that it did.
        papers: the folder of manifest, markers and report.
    """

    spec: JobSpec
    state: JobState
    reason: str = ""
    items: int = 0
    chunks: int = 0
    chunks_done: int = 0
    in_flight: int = 0
    done: int = 0
    failed: int = 0
    cut: int = 0
    dimension: int = 0
    fingerprint: str = ""
    papers: str = ""
    started_at: float = 0.0
    ended_at: float = 0.0
    seen_at: float = 0.0
    read_s: float = 0.0
    decode_s: float = 0.0
    forward_s: float = 0.0
    write_s: float = 0.0
    trouble: str = ""
    workers: Mapping[str, int] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        return self.spec.id

    @property
    def left(self) -> int:
        """Items that are neither yet: none at least, whatever the books say."""
        return max(0, self.items - self.done - self.failed)

    @classmethod
    def of(cls, job: str, fields: Mapping[bytes, bytes], **more: Any) -> Self:
        """The status from the job's hash; fields that are of no interest to people are dropped.

        Raises:
            UnknownJob: there is no such hash.
            BadRequest: it, or the specification in it, is of another version.
        """
        found = {codec.text(name): codec.text(value) for name, value in fields.items()}
        if "spec" not in found:
            raise UnknownJob(f"there is no job {job!r}; see `clipyard reembed list`")
        spec = JobSpec.read(found.pop("spec"))
        workers = {
            name.removeprefix("by:"): items
            for name, items in found.items()
            if name.startswith("by:")
        }
        known: dict[str, Any] = {n: v for n, v in found.items() if n in cls.model_fields}
        try:
            return cls.model_validate({**known, **more, "spec": spec, "workers": workers})
        except ValidationError as error:
            field = ".".join(map(str, error.errors()[0]["loc"]))
            raise BadRequest(
                f"the books of job {job} are of another version of Clipyard, by their {field}: "
                "look at it with that version"
            ) from None


class Tend(Request):
    """Asks for what has fallen on the floor to be started again."""


class SwitchAlias(Request):
    """Asks for a migrated alias to lead to the job's sink, or back to the old collection."""

    job: JobId
    to: Literal["new", "old"]
