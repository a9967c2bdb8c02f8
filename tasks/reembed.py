"""Bulk jobs: a source walked into a manifest, its chunks, the proof at the end, and the tending."""

import time
from collections.abc import Callable
from typing import Any

from celery import Task, shared_task

from api_client.wire import names
from api_client.wire.jobs import JobState, SwitchAlias
from api_client.wire.messages import Managed
from worker import runtime
from worker.delivery.answers import Call, answering
from worker.delivery.suspects import Start
from worker.reembed import duty
from worker.reembed.job import Job
from worker.reembed.ledger import jobs_at_work
from worker.reembed.migration import switched

from .sweep import AWAY


@shared_task(name=names.JOB_PLAN, bind=True)  # type: ignore[untyped-decorator]
def job_plan(task: Task, job: str, what: str, sent_at: float) -> str:
    """Walks the source into the manifest; then the first window of chunks is sent."""

    def plan(job: Job, go_on: Callable[[], None], _: Start) -> list[str]:
        return job.plan(go_on)

    return duty.do(task.app, job, what, JobState.PLANNING, sent_at=sent_at, work=plan)


@shared_task(name=names.JOB_CHUNK, bind=True)  # type: ignore[untyped-decorator]
def job_chunk(task: Task, job: str, what: str, sent_at: float) -> str:
    """Embeds one chunk into the sink; then the next ones are sent."""

    def finish(job: Job, go_on: Callable[[], None], start: Start) -> list[str]:
        marker = job.finish(int(what), go_on, start)
        if marker.losses and job.spec.on_failure == "pause":
            job.ledger.pause(f"{marker.losses[0].id}: {marker.losses[0].message}")
        return job.ledger.finished(marker)

    return duty.do(task.app, job, what, JobState.RUNNING, sent_at=sent_at, work=finish)


@shared_task(name=names.JOB_CHECK, bind=True)  # type: ignore[untyped-decorator]
def job_check(task: Task, job: str, what: str, sent_at: float) -> str:
    """Compares manifest, markers and sink; then the job is over, or some of it is done again."""

    def check(job: Job, go_on: Callable[[], None], _: Start) -> list[str]:
        return job.check(go_on)

    return duty.do(task.app, job, what, JobState.CHECKING, sent_at=sent_at, work=check)


@shared_task(name=names.JOBS_TEND, bind=True, throws=AWAY)  # type: ignore[untyped-decorator]
def jobs_tend(task: Task, **_: Any) -> int:
    """Sends again what a worker took and did not finish, or what never arrived; gives how much.

    The clock sends it every few seconds, and a client after each change it makes to a job.
    """
    here, sent = runtime.here(), 0
    for job_id in jobs_at_work(here.redis, here.keys):
        ledger = duty.ledger_of(here, job_id)
        if (parts := ledger.fallen()) and (spec := duty.readable(ledger)):
            duty.send(task.app, ledger, spec, parts)
            sent += len(parts)
    return sent


@answering(names.JOB_SWITCH, SwitchAlias)
def job_switch(call: Call[SwitchAlias]) -> Managed:
    """Lets a migrated name lead to the job's sink, or back to what it led to before."""
    here = runtime.here()
    job = duty.opened(here, call.request.job)
    changed, message = switched(job, call.request.to)
    return Managed(
        worker=here.node,
        model=job.spec.model,
        changed=changed,
        message=message,
        seconds=time.monotonic() - call.begun_at,
    )
