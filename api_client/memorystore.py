"""The few Redis commands that the talks speak, in memory: for `testing`."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Self

from .wire.errors import NoAnswer
from .wire.jobs import JobState
from .wire.jobscripts import SUBMIT, VERIFY

__all__ = ["AwaitedStore", "MemoryStore"]


class MemoryStore:
    """As redis-py shows it."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def get(self, key: str) -> Any:
        return self._values.get(key)

    def set(self, key: str, value: bytes) -> None:
        self._values[key] = value

    def exists(self, key: str) -> bool:
        return key in self._values

    def delete(self, *keys: str) -> None:
        for key in keys:
            self._values.pop(key, None)

    def sadd(self, key: str, member: str) -> None:
        self._values.setdefault(key, set()).add(member.encode())

    def smembers(self, key: str) -> frozenset[bytes]:
        return frozenset(self._values.get(key, ()))

    def hset(self, key: str, mapping: Mapping[Any, Any]) -> None:
        fields = {_bytes(name): _bytes(value) for name, value in mapping.items()}
        self._values[key] = self._values.get(key, {}) | fields

    def hget(self, key: str, name: str) -> Any:
        return self.hgetall(key).get(name.encode())

    def hgetall(self, key: str) -> dict[bytes, bytes]:
        return dict(self._values.get(key, {}))

    def llen(self, key: str) -> int:
        return 0

    bitcount = zcard = llen

    def eval(self, script: str, count: int, *rest: Any) -> int:
        """A job is submitted, and over; one that is over can only be checked again."""
        if script == VERIFY:
            return 1
        keys, (job, _, *flat) = rest[:count], rest[count:]
        if script != SUBMIT or self.exists(keys[0]):
            return 0
        fields = dict(zip(flat[::2], flat[1::2], strict=True))
        self.hset(keys[0], fields | {"state": JobState.COMPLETE})
        self._values.setdefault(keys[-1], []).append(job.encode())
        return 1

    def zrevrange(self, key: str, *_: int) -> list[bytes]:
        return list(reversed(self._values.get(key, [])))

    def time(self) -> tuple[int, int]:
        return int(time.time()), 0

    def lrange(self, *_: Any) -> list[Any]:
        return []

    xrevrange = lrange

    def rpush(self, key: str, value: bytes) -> None:
        self._values.setdefault(key, []).append(value)

    def expire(self, *_: Any, **__: Any) -> None:
        """Nothing ever expires."""

    def blmove(self, key: str, *_: Any) -> Any:
        if not self.exists(key):
            raise NoAnswer("nothing was submitted under this id")
        return self._values[key][0]

    def pipeline(self, transaction: bool = True) -> "_Pipeline":
        return _Pipeline(self)

    def close(self) -> None:
        """Nothing is open."""

    @property
    def connection_pool(self) -> Self:
        return self

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Likewise."""


class _Pipeline:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._said: list[Any] = []

    def __getattr__(self, command: str) -> Callable[..., None]:
        return lambda *args, **kw: self._said.append(getattr(self._store, command)(*args, **kw))

    def execute(self) -> list[Any]:
        return self._said


class _AwaitedPipeline(_Pipeline):
    async def execute(self) -> list[Any]:  # type: ignore[override]
        return self._said


class AwaitedStore:
    """The store as redis.asyncio shows it."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def pipeline(self, transaction: bool = True) -> "_AwaitedPipeline":
        return _AwaitedPipeline(self._store)

    async def aclose(self) -> None:
        """Nothing is open."""

    @property
    def connection_pool(self) -> Self:
        return self

    def __getattr__(self, command: str) -> Callable[..., Awaitable[Any]]:
        async def say(*args: Any, **kw: Any) -> Any:
            return getattr(self._store, command)(*args, **kw)

        return say


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()
