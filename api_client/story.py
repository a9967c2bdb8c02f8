"""Why a model is where it is, why it went, and what goes next: told in sentences."""

from collections.abc import Iterable
from datetime import datetime

from .status import Fleet, Worker, step_down
from .wire.messages import Event, EventKind, ModelStatus

__all__ = ["span", "why"]


def why(fleet: Fleet, model_id: str) -> list[str]:
    """Sentences: where a model is and why, why it went, and what goes next.

    As far as `fleet.events` reach back.
    """
    story = [event for event in fleet.events if event.model == model_id]
    holding = fleet.holding(model_id)
    sentences = [_where(worker, model, story) for worker, model in holding]
    if not holding:
        sentences.append(f"{model_id} is in no worker's memory.")
    sentences += _went(story, {worker.name for worker, _ in holding})
    for worker, model in holding:
        sentences += _goes(worker, model)
    if not story:
        sentences.append("The event stream tells nothing of it: too long ago, or never asked for.")
    return sentences


def _where(worker: Worker, model: ModelStatus, story: Iterable[Event]) -> str:
    if model.state == "loading":
        return f"{model.id} is being loaded on {worker.name}."
    place = "on the device" if model.state == "device" else "in host memory"
    if model.leases:
        now = f"in use by {model.leases} request{'s' if model.leases > 1 else ''}"
    else:
        now = f"last used {span(worker.beat_at - model.last_used)} ago"
    sentence = f"{model.id} is {place} of {worker.name}, {now}"
    arrival = next((e for e in story if e.worker == worker.name and e.kind in ARRIVALS), None)
    if arrival is None:
        return f"{sentence}."
    return f"{sentence}; {_told(arrival)}."


def _went(story: Iterable[Event], present: set[str]) -> list[str]:
    """For each worker without it: the last word on it there."""
    sentences: dict[str, str] = {}
    for event in story:  # newest first
        if event.worker not in present:
            lost = ", and lost when that process ended" if event.kind in STAYS else ""
            sentences.setdefault(event.worker, f"On {event.worker} {_told(event)}{lost}.")
    return list(sentences.values())


def _goes(worker: Worker, model: ModelStatus) -> list[str]:
    if model.pinned:
        return [f"It is pinned on {worker.name}: only an explicit unload moves it."]
    sentences = []
    if model.next_out:
        sentences.append(f"On {worker.name} it is the next to make room for another model.")
    elif next_out := next((other.id for other in worker.held if other.next_out), None):
        sentences.append(f"On {worker.name} {next_out} goes before it to make room.")
    if model.leases or model.state == "loading":
        return sentences
    step = step_down(worker, model)
    if step is None:
        return [*sentences, f"A request asked {worker.name} to keep it."]
    at = step.at
    if step.to == "host":
        sentences.append(
            f"Unused, it goes to host memory of {worker.name} {_in(at - worker.beat_at)}."
        )
        at = max(at, model.last_used + model.ram_timeout_s)
    return [*sentences, f"Unused, it leaves {worker.name} {_in(at - worker.beat_at)}."]


ARRIVALS = (EventKind.LOADED, EventKind.LIFTED)
STAYS = (*ARRIVALS, EventKind.LOWERED)  # after these it is in memory


def _told(event: Event) -> str:
    at = datetime.fromtimestamp(event.at).strftime("%Y-%m-%d %H:%M:%S")
    whom = f", asked by {event.asked_by}" if event.asked_by else ""
    return f"{event.kind.replace('_', ' ')} at {at} ({event.reason}{whom})"


def span(seconds: float) -> str:
    """In the largest unit of which there are two."""
    seconds = max(0.0, seconds)
    for unit, length_s in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length_s:
            return f"{seconds / length_s:.0f} {unit}"
    return f"{seconds:.0f} s"


def _in(seconds: float) -> str:
    return f"in {span(seconds)}" if seconds > 0 else "with the next sweep"
