"""What the Models page shows of a fleet, as plain data: the page itself decides nothing."""

from collections.abc import Iterable
from typing import Any

from ..status import Fleet, Worker, alarms, step_down
from ..wire.jobs import JobState, JobStatus
from ..wire.messages import ModelStatus

__all__ = ["drawn"]

ENDED_SHOWN_S = 600.0  # a job that is over stays on the page for so long


def drawn(
    fleet: Fleet, jobs: Iterable[JobStatus], *, now: float, read_only: bool
) -> dict[str, Any]:
    """JSON for the page. Times of day are unix seconds, spans are seconds."""
    told = alarms(fleet, now=now)
    shown = [job for job in jobs if not job.state.is_final or now - job.ended_at < ENDED_SHOWN_S]
    ails = any(w.trouble or w.complaints for w in fleet.workers) or _paused(shown)
    return {
        "now": now,
        "read_only": read_only,
        "tiles": [
            _workers_tile(fleet),
            _models_tile(fleet),
            _waiting_tile(fleet, now=now),
            _jobs_tile(shown),
        ],
        "alarms": told,
        "well": not told and not ails,
        "current": fleet.current,
        "workers": [_worker(worker, now=now) for worker in fleet.workers],
        "queues": {
            queue: {
                "interactive": depth.interactive,
                "bulk": depth.bulk,
                "oldest_s": max(depth.ages_s(now).values()),
            }
            for queue, depth in fleet.depths.items()
        },
        "jobs": [_job(job) for job in shown],
        "events": [event.model_dump(mode="json") for event in fleet.events],
    }


def _tile(label: str, value: int | str, about: str, *, mood: str) -> dict[str, Any]:
    """
    Args:
        mood: success, active or danger, as Flower's own tiles have them.
    """
    return {"label": label, "value": value, "about": about, "mood": mood}


def _workers_tile(fleet: Fleet) -> dict[str, Any]:
    ready = sum(worker.state == "ready" for worker in fleet.workers)
    devices = ", ".join(sorted({worker.device for worker in fleet.workers}))
    all_are = 0 < ready == len(fleet.workers)
    value = f"{ready} of {len(fleet.workers)}"
    return _tile("Workers ready", value, devices or "none", mood="success" if all_are else "danger")


def _models_tile(fleet: Fleet) -> dict[str, Any]:
    held = [model for worker in fleet.workers for model in worker.held]
    counts = {
        "in use": sum(model.leases > 0 for model in held),
        "in host memory": sum(model.state == "host" for model in held),
        "loading": sum(model.state == "loading" for model in held),
    }
    told = ", ".join(f"{number} {where}" for where, number in counts.items() if number)
    on_device = sum(model.state == "device" for model in held)
    return _tile("Models on a device", on_device, told or "none in use", mood="success")


def _waiting_tile(fleet: Fleet, *, now: float) -> dict[str, Any]:
    waiting = sum(depth.interactive + depth.bulk for depth in fleet.depths.values())
    ages_s = (age_s for depth in fleet.depths.values() for age_s in depth.ages_s(now).values())
    oldest_s = max(ages_s, default=0.0)
    told = f"the oldest for {oldest_s:.0f} s" if oldest_s >= 1 else "none for long"
    return _tile("Messages waiting", waiting, told, mood="active" if waiting else "success")


def _jobs_tile(jobs: Iterable[JobStatus]) -> dict[str, Any]:
    going = [job for job in jobs if not job.state.is_final]
    paused = _paused(going)
    left = sum(job.left for job in going)
    told = f"{left:,} items to go" + (f", {paused} paused" if paused else "")
    mood = "danger" if paused else "active" if going else "success"
    return _tile("Bulk jobs", len(going), told if going else "none at work", mood=mood)


def _paused(jobs: Iterable[JobStatus]) -> int:
    """How many go on only when somebody resumes them."""
    return sum(job.state is JobState.PAUSED for job in jobs)


def _worker(worker: Worker, *, now: float) -> dict[str, Any]:
    return {
        "name": worker.name,
        "device": worker.device,
        "state": worker.state,
        "trouble": worker.trouble,
        "complaints": [f"{told.found}: {told.mend}" for told in worker.complaints],
        "current": worker.current,
        "pressure": worker.pressure,
        "slots": worker.slots,
        "swept_s": max(0.0, now - worker.last_sweep_at) if worker.last_sweep_at else None,
        "settings": worker.settings,
        "memories": [
            _memory(name, total, free, {m.id: getattr(m, held) for m in worker.held})
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
        "model": job.spec.model,
        "running": job.state is JobState.RUNNING,
        "workers": len(job.workers),
    }


def _memory(name: str, total: int, free: int, models: dict[str, int]) -> dict[str, Any]:
    used, ours = max(0, total - free), sum(models.values())
    return {
        "name": name,
        "total": total,
        "free": free,
        "models": [{"id": model, "bytes": size} for model, size in models.items() if size],
        "others": max(0, used - ours),
    }


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
