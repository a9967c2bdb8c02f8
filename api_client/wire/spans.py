"""What one request spends its time on, from the gateway to the batch: spans of OpenTelemetry.

They travel with the message, in headers of the official Celery instrumentation. Everything here
does nothing unless the setting `traces` is on, at the cost of one look at a global.
"""

import logging
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING

from .errors import BadSettings
from .logs import LogSettings

if TYPE_CHECKING:
    from .otel import Recording

__all__ = [
    "Caller",
    "Name",
    "Value",
    "caller",
    "past",
    "record",
    "served",
    "serving",
    "set_up",
    "span",
]

log = logging.getLogger(__name__)

Value = str | int | float
Caller = object  # a place in somebody's trace, for nobody but the recorder to look into


class Name(StrEnum):
    """Our spans, beside those of Celery, Redis and HTTP."""

    QUEUE = "clipyard.queue"  # from the client's send to the task's start
    LEASE = "clipyard.lease"  # until the model is on the device
    LOAD = "clipyard.load"  # from a checkpoint to host memory
    LIFT = "clipyard.lift"  # onto the device
    LOWER = "clipyard.lower"  # down to host memory
    UNLOAD = "clipyard.unload"  # out of all memory
    DECODE = "clipyard.decode"  # one request's items, from the first one's start to the last's end
    FORWARD = "clipyard.forward"  # one pass of the model; links to all whose items are in it


_recorder: "Recording | None" = None  # see the functions of the same names
_nothing: AbstractContextManager[object] = nullcontext()


def set_up(settings: LogSettings, *, service: str, instance: str) -> None:
    """Record spans in this process, if the settings ask for them.

    Args:
        service, instance: what the process is called, and which of its kind it is.

    Raises:
        BadSettings: the extra is missing, or the exporter that OTEL_* name.
    """
    if not settings.traces:
        return
    try:
        from .otel import Recording
    except ModuleNotFoundError as error:
        raise BadSettings(
            f"CLIPYARD_TRACES: no {error.name}: pip install -e '.[otel]' in the checkout, "
            "or switch it off"
        ) from None
    Recording(service, instance=instance)


def record(recorder: "Recording | None") -> None:
    """From now on there are spans; or none, with None."""
    global _recorder
    _recorder = recorder


def span(name: Name, **about: Value) -> AbstractContextManager[object]:
    """What happens in the block, for the request that this thread or task works on."""
    return _nothing if _recorder is None else _recorder.span(name, about)


def past(
    name: Name,
    start: float,
    end: float,
    *,
    callers: Iterable[Caller | None] | None = None,
    **about: Value,
) -> None:
    """What has happened, for the request that this thread works on. Never raises.

    Args:
        start, end: of `time.monotonic`.
        callers: for each of these in its place, linked to each other.
    """
    if _recorder is None:
        return
    try:
        _recorder.past(name, start, end, callers, about)
    except Exception:  # whoever calls runs models: a span is not worth the thread
        log.exception("no span %s", name)


def caller() -> Caller | None:
    """Whom this thread or task works for; None where nobody's trace is recorded."""
    return None if _recorder is None else _recorder.caller()


def serving(headers: Mapping[str, str]) -> AbstractContextManager[object]:
    """An HTTP request is met in the block; its trace is the caller's, if the headers name one."""
    return _nothing if _recorder is None else _recorder.serving(headers)


def served(*, method: str, route: str, status: int) -> None:
    """What the request of `serving` was, and how it was answered."""
    if _recorder is not None:
        _recorder.served(method, route, status)
