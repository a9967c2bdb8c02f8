"""What the Models page shows of a fleet, as plain data: the page itself decides nothing."""

from collections.abc import Iterable
from typing import Any

from ..status import Fleet, Worker, alarms, step_down
from ..wire.jobs import JobStatus
from ..wire.messages import ModelStatus

__all__ = ["drawn"]


def drawn(
    fleet: Fleet,
    jobs: Iterable[JobStatus],
    *,
    now: float,
    sweep_interval_s: float | None,
    read_only: bool,
) -> dict[str, Any]:
    """JSON for the page. Times of day are unix seconds, spans are seconds.

    Args:
        sweep_interval_s: None where sweeps are switched off.
    """
    return {
        "now": now,
        "read_only": read_only,
        "alarms": alarms(fleet, now=now, sweep_interval_s=sweep_interval_s),
        "current": fleet.current,
        "workers": [_worker(worker, now=now) for worker in fleet.workers],
        "queues": {queue: depth.model_dump() for queue, depth in fleet.depths.items()},
        "jobs": [_job(job) for job in jobs if not job.state.is_final],
        "events": [event.model_dump(mode="json") for event in fleet.events],
    }


def _worker(worker: Worker, *, now: float) -> dict[str, Any]:
    return {
        "name": worker.name,
        "device": worker.device,
        "state": worker.state,
        "trouble": worker.trouble,
        "current": worker.current,
        "pressure": worker.pressure,
        "slots": worker.slots,
        "swept_s": now - worker.last_sweep_at if worker.last_sweep_at else None,
        "settings": worker.settings,
        "memories": [
            _memory(name, total, free, sum(getattr(model, held) for model in worker.held))
            for name, total, free, held in (
                ("device", worker.device_total, worker.device_free, "device_bytes"),
                ("host", worker.host_total, worker.host_free, "host_bytes"),
            )
            if total
        ],
        # As the status has them: least recently used first.
        "models": [_model(worker, model, now=now) for model in worker.held],
    }


def _job(job: JobStatus) -> dict[str, Any]:
    return {
        "id": job.id,
        "state": job.state.value,
        "done": job.done,
        "failed": job.failed,
        "items": job.items,
        "chunks": job.chunks,
        "chunks_done": job.chunks_done,
        "trouble": job.trouble or job.reason,
    }


def _memory(name: str, total: int, free: int, models: int) -> dict[str, Any]:
    used = max(0, total - free)
    ours = min(models, used)
    return {"name": name, "total": total, "free": free, "models": ours, "others": used - ours}


def _model(worker: Worker, model: ModelStatus, *, now: float) -> dict[str, Any]:
    step = step_down(worker, model)
    return {
        "id": model.id,
        "tier": model.state,
        "leases": model.leases,
        "bytes": model.device_bytes + model.host_bytes,
        "uses": model.usage_count,
        "idle_s": max(0.0, now - model.last_used),
        "pinned": model.pinned,
        "next_out": model.next_out,
        "steps_down": {"to": step.to, "in_s": max(0.0, step.at - now)} if step else None,
    }
