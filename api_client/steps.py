"""What a talk is made of, for the waiting and the awaiting client.

A talk is a generator: it yields steps, is sent each step's result, and returns an answer. `Client`
takes the steps itself; `AsyncClient` takes the same ones and awaits them.
"""

import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import redis

from .wire.broker import said

_T = TypeVar("_T")

# A function of redis.Redis, or of redis.asyncio.Redis with an awaitable of the same result.
Step = Callable[[Any], Any]
Talk = Generator[Step, Any, _T]
Part = Callable[[Any], Any]  # adds commands to a pipeline; of a client, it is a step by itself


class Hold(Protocol):
    """How a client holds a talk for those that it makes, such as a job."""

    def __call__(self, talk: Talk[_T], /) -> _T: ...


class AsyncHold(Protocol):
    """Likewise, awaited."""

    def __call__(self, talk: Talk[_T], /) -> Awaitable[_T]: ...


def taken(talk: Talk[_T], take: Callable[[Step], Any]) -> _T:
    """What a talk comes to, each of its steps being taken by `take`."""
    go: Callable[[Any], Step] = talk.send
    said: Any = None
    try:
        while True:
            step = go(said)
            try:
                go, said = talk.send, take(step)
            except BaseException as error:
                go, said = talk.throw, error
    except StopIteration as end:
        result: _T = end.value
        return result
    finally:
        del go, said  # an error that was thrown holds this frame: a circle, with the pictures


def together(*parts: Part) -> Step:
    """All of these in one round trip, though in no transaction; with asyncio an awaitable of it."""

    def take(client: Any) -> Any:
        pipe = client.pipeline(transaction=False)
        for part in parts:
            part(pipe)
        return pipe.execute()

    return take


def each(*parts: Part) -> Talk[list[Any]]:
    """As `together`; in place of what a key of another type than ours holds stands the error."""
    try:
        found: list[Any] = yield together(*parts)
    except redis.ResponseError as error:
        if not is_of_another_type(error):
            raise
    else:
        return found
    found = []
    for part in parts:
        try:
            found.append((yield part))
        except redis.ResponseError as error:
            if not is_of_another_type(error):
                raise
            found.append(error)
    return found


def is_of_another_type(error: redis.ResponseError) -> bool:
    """Whether Redis answered that its key holds something else than ours do."""
    return said(error).startswith("WRONGTYPE")


@dataclass(frozen=True)
class Blocking:
    """A step of another kind: it blocks for milliseconds, so the awaiting client takes a thread."""

    do: Callable[[], Any]

    def __call__(self, _: Any) -> Any:
        return self.do()


@dataclass(frozen=True)
class Parting:
    """A step that is taken to its end, though whoever takes it is cancelled meanwhile."""

    take: Step

    def __call__(self, client: Any) -> Any:
        return self.take(client)


@dataclass(frozen=True)
class Pause:
    """A step that lets time pass; no thread waits for it in an event loop."""

    seconds: float

    def __call__(self, _: Any) -> None:
        time.sleep(self.seconds)
