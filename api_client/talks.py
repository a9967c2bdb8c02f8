"""What is said to Redis and the workers, written once for the waiting and the awaiting client.

A talk is a generator: it yields steps, is sent each step's result, and returns an answer. A step
is a function of a Redis client; `Client` calls it, `AsyncClient` calls it with the asyncio twin
and awaits the result.
"""

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from celery import Celery

from .wire import names
from .wire.codec import Vectors, unpack_answer
from .wire.errors import NoAnswer, NoWorker, UnknownModel
from .wire.messages import CatalogueEntry, Message, Priority, Refused, Request
from .wire.settings import Settings

SLICE_S = 1.0  # how long one look at an answer blocks
NO_WORKER_AFTER_S = 2.5  # how long nobody may be alive before we say so

_T = TypeVar("_T")
Step = Callable[[Any], Any]  # redis.Redis -> value, or redis.asyncio.Redis -> awaitable of it
Talk = Generator[Step, Any, _T]


@dataclass(frozen=True)
class Call:
    """A request on its way: what, where to, and the bytes that travel beside it."""

    task: str
    request: Request
    queue: str = names.EMBED
    priority: Priority = Priority.INTERACTIVE
    blobs: Mapping[int, bytes] = field(default_factory=dict)
    id: str = field(default_factory=lambda: str(uuid4()))


@dataclass(frozen=True)
class Answer:
    """What came back; `vectors` only for `Embedded`."""

    message: Message
    vectors: Vectors | None


class Line:
    """The talks of one installation: its keys, its Celery app, its patience."""

    def __init__(self, settings: Settings, app: Celery) -> None:
        self._settings = settings
        self._app = app
        self.keys = names.Keys(settings.key_prefix)

    def deadline(self, timeout: float | None) -> dict[str, float]:
        """The deadline field of a request that may take `timeout` seconds from now."""
        return {"deadline": time.time() + (timeout or self._settings.answer_timeout_s)}

    def publish(self, call: Call) -> None:
        """Hand the message to the broker. Blocks for well under a millisecond."""
        self._app.send_task(
            call.task,
            kwargs=call.request.model_dump(mode="json", exclude_defaults=True),
            task_id=call.id,
            queue=call.queue,
            priority=names.BULK if call.priority is Priority.BULK else names.INTERACTIVE,
            expires=_seconds_left(call.request),
        )

    def put_blobs(self, call: Call) -> Talk[None]:
        """Lay down the bytes that the message refers to; they expire with the answer."""
        if call.blobs:
            key = self.keys.blobs(call.id)
            ttl = int((_seconds_left(call.request) or 0) + self._settings.answer_ttl_s)
            yield lambda r: r.hset(key, mapping=call.blobs)
            yield lambda r: r.expire(key, ttl)

    def wait(self, call: Call) -> Talk[Answer]:
        """The answer to a call that was published.

        Raises:
            NoAnswer: the call's deadline passed. NoWorker: nobody is alive to answer.
            ClipyardError: whatever the worker raised.
        """
        done, answer = self.keys.done(call.id), self.keys.answer(call.id)
        alone_since: float | None = None
        while (left := _seconds_left(call.request)) is None or left > 0:
            # Redis takes a timeout of zero as for ever.
            block_s = max(0.01, SLICE_S if left is None else min(SLICE_S, left))
            yield partial(_pop, key=done, block_s=block_s)
            frame = yield lambda r: r.get(answer)
            if frame is not None:
                if call.blobs:
                    yield lambda r: r.delete(self.keys.blobs(call.id))
                return _open(frame)
            now = time.monotonic()
            if (yield from self.live_workers()):
                alone_since = None
            elif alone_since is None:
                alone_since = now
            elif now - alone_since >= NO_WORKER_AFTER_S - SLICE_S:
                raise NoWorker("no worker is alive; start one with `clipyard up`")
        raise NoAnswer(
            f"no answer to {call.task} in time; look at `clipyard status`, or allow more than "
            f"{self._settings.answer_timeout_s:g} s"
        )

    def withdraw(self, calls: Iterable[Call]) -> Talk[None]:
        """Nobody waits for these any more: unstarted ones are dropped, started ones stop."""
        ids = [call.id for call in calls]
        if ids:
            self._app.control.revoke(ids, terminate=True)
            yield lambda r: r.delete(*map(self.keys.blobs, ids))

    def live_workers(self) -> Talk[list[str]]:
        """Node names of the workers whose status hash has not expired, sorted."""
        seen = yield lambda r: r.smembers(self.keys.workers)
        members = sorted(member.decode() for member in seen)
        alive = []
        for name in members:
            if (yield partial(_exists, key=self.keys.worker(name))):
                alive.append(name)
        return alive

    def current_model(self) -> Talk[str | None]:
        """The model that answers when none is named; None before any worker has said so."""
        name = yield lambda r: r.get(self.keys.current)
        return name.decode() if name else None

    def dimension(self, model: str | None) -> Talk[int]:
        """Length of a vector of the model, of the current one if None.

        Raises:
            UnknownModel: no live worker lists it.
        """
        wanted = model or (yield from self.current_model())
        for entry in (yield from self.catalogue()):
            if wanted in (entry.id, *entry.aliases):
                return entry.dimension
        raise UnknownModel(f"no live worker lists a model {wanted!r}; see `clipyard models`")

    def catalogue(self) -> Talk[list[CatalogueEntry]]:
        """What the live workers can be asked for, as they published it."""
        rows = yield lambda r: r.hgetall(self.keys.catalogue)
        return [CatalogueEntry.model_validate_json(row) for row in rows.values()]


def _seconds_left(request: Request) -> float | None:
    return None if request.deadline is None else request.deadline - time.time()


def _pop(redis: Any, *, key: str, block_s: float) -> Any:
    return redis.blpop([key], timeout=block_s)


def _exists(redis: Any, *, key: str) -> Any:
    return redis.exists(key)


def _open(frame: bytes) -> Answer:
    message, vectors = unpack_answer(frame)
    if isinstance(message, Refused):
        raise message.failure.error()
    return Answer(message, vectors)
