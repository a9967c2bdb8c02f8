"""The name of a migration: whether it can lead to the job's sink, and led there or back."""

from typing import TYPE_CHECKING, Literal

from api_client.wire.errors import BadRequest, JobRefused
from api_client.wire.jobs import FOLDERS, JobState, Place

from .sinks import Sink, Switchable, open_sink

if TYPE_CHECKING:
    from .job import Job

__all__ = ["refuse_taken", "refuse_unready", "switched"]


def switched(job: "Job", to: Literal["new", "old"]) -> tuple[bool, str]:
    """Let the name of a migration lead to the job's sink or back; whether it did not before, and
    a sentence.

    Raises:
        BadRequest: the job is no migration, or not complete.
        JobRefused: its sink knows no names, or the collection is not there any more.
    """
    migration, status = job.spec.migration, job.ledger.status()
    if migration is None:
        raise BadRequest(f"job {job.spec.id} is no migration: there is no name to switch")
    if to == "new" and status.state is not JobState.COMPLETE:
        raise BadRequest(f"job {job.spec.id} is {status.state}: switch when it is complete")
    place = job.spec.sink if to == "new" else migration.old
    held = open_sink(place, None, job.doors)  # for a job's sink that is gone would be made anew
    sink = _switchable(job.sink if to == "new" else held, place)
    before = sink.target(migration.alias)
    sink.switch(migration.alias)
    now = sink.target(migration.alias)
    told = f"{migration.alias} leads to {' '.join([place.where, *place.options.values()])} now"
    if before not in (None, now):
        told += f", before to {before}"
    if to == "new" and status.failed:
        told += f"; {status.failed} of {status.items} items failed and are not there"
    return before != now, told


def refuse_unready(job: "Job") -> None:
    """What the comparison and the switch will need is looked for before the first item.

    Raises:
        JobRefused: the old collection is not there, or the name cannot be switched to one.
    """
    if job.spec.migration is not None:
        alias, place = job.spec.migration.alias, job.spec.migration.old
        held = open_sink(place, None, job.doors)
        _switchable(held, place).target(alias)
        if place.kind not in FOLDERS:  # a folder is a job's, but a table may have other columns
            held.read([""])


def refuse_taken(job: "Job", sink: Sink) -> None:
    """The new collection, now that it is there, must not bear the name that is to lead to it.

    Raises:
        JobRefused: it does, or something else that is no alias.
    """
    if job.spec.migration is not None:
        try:
            _switchable(sink, job.spec.sink).target(job.spec.migration.alias)
        except JobRefused as refused:
            raise JobRefused(
                f"{refused}; the sink needs a name of its own, beside the one that people search by"
            ) from None


def _switchable(sink: Sink, place: Place) -> Switchable:
    if not isinstance(sink, Switchable):
        raise JobRefused(f"a sink of kind {place.kind!r} has no names that can be switched")
    return sink
