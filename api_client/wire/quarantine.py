"""What is known of a message that took its workers down: a worker writes it, people read it."""

from typing import Any

from .messages import Message

KEPT = 256  # the newest; a message is 64 KiB at most
KEPT_S = 7 * 24 * 3600


class Crash(Message):
    """A start that never ended, because its process did.

    Attributes:
        at: unix seconds.
        beside: what else was at work there at that moment, as `task id`.
        place: of a bulk job's chunk, the rows that were at work, the second excluded.
    """

    worker: str
    at: float
    beside: tuple[str, ...] = ()
    place: tuple[int, int] | None = None


class Evidence(Message):
    """A message in quarantine. Nothing of it is a picture or a text.

    Attributes:
        items: the first references, shortened.
        at: when it was set aside, in unix seconds.
        payload: the request as it came, for `clipyard quarantine retry`; None is not kept.
        signature: that it came with.
    """

    id: str
    task: str
    model: str = ""
    items: tuple[str, ...] = ()
    asked_by: str = ""
    at: float
    crashes: tuple[Crash, ...]
    queue: str = ""
    priority: int = 0
    payload: dict[str, Any] | None = None
    signature: str = ""
