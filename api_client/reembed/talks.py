"""What is said to Redis about a job, free of waiting: `Client` and `AsyncClient` take the steps."""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from operator import methodcaller
from typing import Any, Literal

import redis

from ..inputs import printable
from ..steps import Step, Talk, each, is_of_another_type
from ..talks import Call, Line
from ..vigil import NOBODY
from ..wire import names
from ..wire.broker import said
from ..wire.codec import none_of_ours, text
from ..wire.errors import BadRequest
from ..wire.jobs import JobSpec, JobState, JobStatus, SwitchAlias, Tend, sealed
from ..wire.jobscripts import CANCEL, PAUSE, RESUME, RETRY_FAILED, SUBMIT, VERIFY, job_keys
from ..wire.messages import Managed
from ..wire.names import Keys
from ..wire.settings import Settings

TEND_S = 60.0  # after so long the clock has asked for the same


@dataclass(frozen=True)
class _Change:
    """Something that people do to a job.

    Attributes:
        forbidden: the rest of the sentence when the job's state does not allow it.
    """

    script: str
    forbidden: str


CHANGES = {
    "pause": _Change(PAUSE, "only a job that is at work can be paused"),
    "resume": _Change(RESUME, "only a paused job can be resumed"),
    "cancel": _Change(CANCEL, "it is over already"),
    "retry_failed": _Change(
        RETRY_FAILED, "failures can be retried when a job is complete or incomplete and has some"
    ),
    "verify": _Change(VERIFY, "only a job that is complete or incomplete can be checked again"),
}


def submission(keys: Keys, spec: JobSpec, settings: Settings) -> Step:
    """The step that makes a job known; whoever tends the jobs next begins it."""
    fields = {
        **sealed(spec, settings),
        "state": str(JobState.PLANNING),
        "reason": "",
        "chunk_size": spec.chunk_size,
        "window": spec.window,
        "patience_s": spec.patience_s,
        "cursor": 0,
    }
    places = [*job_keys(keys, spec.id), keys.jobs]
    flat = [part for pair in fields.items() for part in pair]
    arguments = (spec.id, spec.submitted_at, *flat)
    return lambda r: r.eval(SUBMIT, len(places), *places, *arguments)


def submit(line: Line, spec: JobSpec) -> Talk[str]:
    """Make a job known and ask for it to be begun; gives its id.

    Raises:
        BadRequest: there is a job of that id.
    """
    if not (yield submission(line.keys, spec, line.settings)):
        raise BadRequest(f"there is a job {spec.id!r} already")
    yield from _tend(line)
    return spec.id


def status(line: Line, job: str) -> Talk[JobStatus]:
    """How far a job has come.

    Raises:
        UnknownJob: there is none of that id.
    """
    [found] = yield from _attended(line, [(yield from _books(line, job))])
    return found


def _books(line: Line, job: str) -> Talk[JobStatus]:
    """How far it has come by its books, whoever is there."""
    [read] = yield from _all_books(line, [job])
    return read()


def _all_books(line: Line, jobs: Sequence[str]) -> Talk[list[Callable[[], JobStatus]]]:
    """Of each job what reads its books, which may be none of ours; one round trip."""

    def look(client: Any) -> Any:
        pipe = client.pipeline(transaction=True)
        pipe.time()
        for job in jobs:
            pipe.hgetall(line.keys.job(job))
            pipe.bitcount(line.keys.job_done(job))
            pipe.zcard(line.keys.job_flight(job))
        return pipe.execute()

    try:
        seen, *told = yield look
    except redis.ResponseError as error:
        if not is_of_another_type(error):
            raise
        if len(jobs) == 1:
            return [partial(_none_of_ours, jobs[0], why=said(error))]
        apart = []
        for job in jobs:
            apart += yield from _all_books(line, [job])
        return apart
    read = partial(JobStatus.of, seen_at=float(seen[0]) + float(seen[1]) / 1e6)
    return [
        partial(read, job, fields, chunks_done=done, in_flight=flight)
        for job, fields, done, flight in zip(jobs, told[::3], told[1::3], told[2::3], strict=True)
    ]


def _none_of_ours(job: str, *, why: str) -> JobStatus:
    raise BadRequest(str(none_of_ours(f"the books of job {job}", why)))


def _attended(line: Line, jobs: list[JobStatus]) -> Talk[list[JobStatus]]:
    """The jobs; those that wait for a worker say so where there is none."""
    if all(job.state.is_at_rest for job in jobs) or (yield from line.live_workers()):
        return jobs
    trouble = {"trouble": NOBODY}
    return [job if job.state.is_at_rest else job.model_copy(update=trouble) for job in jobs]


def listing(line: Line) -> Talk[list[JobStatus]]:
    """Every job that Redis still knows, the newest first."""
    [ids] = yield from each(methodcaller("zrevrange", line.keys.jobs, 0, -1))
    if isinstance(ids, redis.ResponseError):
        raise none_of_ours("the list of jobs", str(ids))
    found = []
    for read in (yield from _all_books(line, [text(job) for job in ids])):
        with suppress(BadRequest):  # its books have expired, or are of another version
            found.append(read())
    return (yield from _attended(line, found))


def change(line: Line, job: str, what: str, *, reason: str) -> Talk[JobStatus]:
    """Do to a job what `CHANGES` lists; gives how it stands then.

    Raises:
        UnknownJob: there is none of that id.
        BadRequest: its state does not allow it.
    """
    before = yield from _books(line, job)
    keys = job_keys(line.keys, job)
    wanted = CHANGES[what]
    arguments = (printable(reason), before.seen_at)
    changed = yield lambda r: r.eval(wanted.script, len(keys), *keys, *arguments)
    if not changed:
        found = yield from _books(line, job)  # somebody else may have been quicker
        raise BadRequest(f"job {job} is {found.state}: {wanted.forbidden}")
    yield from _tend(line)
    return (yield from status(line, job))


def switch(line: Line, job: str, to: Literal["new", "old"]) -> Talk[Managed]:
    """Let a migrated name lead to the job's sink or back; waits for a worker to do it."""
    deadline = time.time() + line.settings.answer_timeout_s
    call = Call(names.JOB_SWITCH, SwitchAlias(job=job, to=to, deadline=deadline))
    return (yield from line.ask(call)).managed()


def _tend(line: Line) -> Talk[None]:
    request = Tend(deadline=time.time() + TEND_S)
    yield from line.send(Call(names.JOBS_TEND, request, queue=names.CONTROL))
