"""A job in a client's hand: any process may take it up by its id."""

import os
import time
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack
from uuid import uuid4

from pydantic import TypeAdapter, ValidationError

from ..requests import AskedPriority, patience_s, unknown_options
from ..steps import AsyncHold, Hold, Pause, Talk
from ..talks import Line
from ..wire.errors import BadRequest, NoAnswer, UnknownJob, first_mistake
from ..wire.jobs import JobId, JobSpec, JobStatus, Migration, Place
from ..wire.messages import Managed
from . import places, talks

LOOK_S = 0.5  # between two looks at a job

_ID: TypeAdapter[str] = TypeAdapter(JobId)


class JobOptions(TypedDict, total=False):
    """How a job is done.

    Attributes:
        id: a name of one's own; letters, digits, `-` and `_`.
        fingerprint: work only in this vector space.
        chunk_size: items that are finished, or started again, together.
        window: chunks that are started and not finished.
        priority: `bulk` leaves the way to interactive requests.
        on_failure: `record` goes on after an item that cannot be embedded, `pause` waits.
        patience_s: how long nothing may succeed before the job pauses itself.
        papers: a folder that all workers share, for the manifest and the report.
        source_options, sink_options: see the classes in `worker.reembed`.
    """

    id: str
    fingerprint: str
    chunk_size: int
    window: int
    priority: AskedPriority
    on_failure: Literal["record", "pause"]
    patience_s: float
    papers: str | Path
    source_options: dict[str, str]
    sink_options: dict[str, str]


def specification(
    source: str | Path | Place,
    sink: str | Path | Place,
    model: str,
    *,
    migration: Migration | None = None,
    asked_by: str = "",
    **options: Unpack[JobOptions],
) -> JobSpec:
    """A job as it is asked for.

    Raises:
        BadRequest: an argument cannot be used, or there is no such option.
    """
    if trouble := unknown_options(options, JobOptions):
        raise BadRequest(trouble)
    given: dict[str, Any] = {**options}
    source_options, sink_options = given.pop("source_options", {}), given.pop("sink_options", {})
    if papers := given.pop("papers", None):
        given["papers"] = os.path.abspath(os.path.expanduser(papers))
    try:
        return JobSpec(
            id=given.pop("id", None) or f"{datetime.now():%Y%m%d-%H%M}-{uuid4().hex[:6]}",
            source=places.source(source, source_options),
            sink=places.sink(sink, sink_options),
            model=model,
            migration=migration,
            asked_by=asked_by,
            submitted_at=time.time(),
            **given,
        )
    except ValidationError as error:
        raise BadRequest(first_mistake(error)) from None


def shadow(
    alias: str, old: str | Path | Place, into_new: str | Path | Place
) -> tuple[Place, Place, Migration]:
    """Source, sink and purpose of a job that replaces a collection under the name it is used by.

    The source is what the old collection holds.

    Args:
        alias: the name that people search by.
        old: what it leads to now.
        into_new: what is to be filled and checked, and then to be led to.
    """
    before, after = places.sink(old), places.sink(into_new)
    if before.kind != after.kind:
        raise BadRequest(f"{before.kind} cannot be switched to {after.kind}: name one kind twice")
    if before == after:
        raise BadRequest("the old and the new collection are the same: name another for the new")
    try:
        migration = Migration(alias=alias, old=before)
    except ValidationError as error:
        mistake = first_mistake(error)
        raise BadRequest(f"{alias!r:.100} cannot be a name that is switched: {mistake}") from None
    (around, name), (elsewhere, _) = places.parted(before), places.parted(after)
    if around != elsewhere:
        raise BadRequest(
            f"a name in {around} cannot lead to what is in {elsewhere}: let the new collection be "
            "where the old one is, and write that alike"
        )
    if name == alias:
        raise BadRequest(
            f"{alias!r} is the name that is to be switched: give the old collection by its own"
        )
    return places.held_by(before), after, migration


class Job:
    """A bulk job.

    Attributes:
        id: keep this.
    """

    def __init__(self, line: Line, hold: Hold, job: str) -> None:
        self.id = known(job)
        self._line, self._hold = line, hold

    def status(self) -> JobStatus:
        """How far it has come."""
        return self._hold(talks.status(self._line, self.id))

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Until it is over or has paused; it goes on without anybody waiting.

        Raises:
            NoAnswer: neither within `timeout` seconds.
        """
        return self._hold(awaited(self._line, self.id, timeout))

    def pause(self, reason: str = "paused by hand") -> JobStatus:
        """Start nothing more; what is at work is finished."""
        return self._hold(talks.change(self._line, self.id, "pause", reason=reason))

    def resume(self) -> JobStatus:
        """Go on where it paused."""
        return self._hold(talks.change(self._line, self.id, "resume", reason=""))

    def cancel(self, reason: str = "cancelled by hand") -> JobStatus:
        """Stop it for good; what is in the sink stays there."""
        return self._hold(talks.change(self._line, self.id, "cancel", reason=reason))

    def retry_failed(self) -> JobStatus:
        """Do the chunks again in which items failed."""
        return self._hold(talks.change(self._line, self.id, "retry_failed", reason=""))

    def verify(self) -> JobStatus:
        """Compare manifest, markers and sink once more; what is missing is done again."""
        return self._hold(talks.change(self._line, self.id, "verify", reason=""))

    def switch(self) -> Managed:
        """Let the name of a migration lead to the new collection."""
        return self._hold(talks.switch(self._line, self.id, "new"))

    def switch_back(self) -> Managed:
        """Let the name of a migration lead to the old collection again."""
        return self._hold(talks.switch(self._line, self.id, "old"))


class AsyncJob:
    """`Job` with `await` before it."""

    def __init__(self, line: Line, hold: AsyncHold, job: str) -> None:
        self.id = known(job)
        self._line, self._hold = line, hold

    async def status(self) -> JobStatus:
        return await self._hold(talks.status(self._line, self.id))

    async def wait(self, timeout: float | None = None) -> JobStatus:
        return await self._hold(awaited(self._line, self.id, timeout))

    async def pause(self, reason: str = "paused by hand") -> JobStatus:
        return await self._hold(talks.change(self._line, self.id, "pause", reason=reason))

    async def resume(self) -> JobStatus:
        return await self._hold(talks.change(self._line, self.id, "resume", reason=""))

    async def cancel(self, reason: str = "cancelled by hand") -> JobStatus:
        return await self._hold(talks.change(self._line, self.id, "cancel", reason=reason))

    async def retry_failed(self) -> JobStatus:
        return await self._hold(talks.change(self._line, self.id, "retry_failed", reason=""))

    async def verify(self) -> JobStatus:
        return await self._hold(talks.change(self._line, self.id, "verify", reason=""))

    async def switch(self) -> Managed:
        return await self._hold(talks.switch(self._line, self.id, "new"))

    async def switch_back(self) -> Managed:
        return await self._hold(talks.switch(self._line, self.id, "old"))


def known(job: Any) -> str:
    """An id that a job can have.

    Raises:
        UnknownJob: no job has such a one.
    """
    try:
        return _ID.validate_python(job)
    except ValidationError:
        raise UnknownJob(f"there is no job {job!r:.100}; see `clipyard reembed list`") from None


def awaited(line: Line, job: str, timeout: float | None) -> Talk[JobStatus]:
    """A job's status when it is over or paused."""
    give_up_at = inf if timeout is None else time.monotonic() + patience_s(timeout)
    while True:
        status = yield from talks.status(line, job)
        if status.state.is_at_rest:
            return status
        if (left_s := give_up_at - time.monotonic()) <= 0:
            raise NoAnswer(f"job {job} is still {status.state} after {timeout:g} s")
        yield Pause(min(LOOK_S, left_s))
