"""Device bytes that a process is about to take, so that its neighbours on the device count them.

Between the look at the free memory and the moment the driver shows the bytes as taken, another
process could admit a model into the same room. So each one writes down what it is about to take,
and only then looks: of two that come together both see the other one, and neither overlooks it.
While it takes them, what it has already counts twice, so whoever lacks no more than that waits.
"""

import json
import logging
import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import redis
from pydantic import FiniteFloat, NonNegativeInt, TypeAdapter, ValidationError
from redis.typing import EncodableT, FieldT

from api_client.wire.codec import text
from api_client.wire.errors import OutOfMemory
from api_client.wire.names import Keys

__all__ = ["Reservations"]

log = logging.getLogger(__name__)

T = TypeVar("T")
POLL_S = 0.25
POLLS = 20  # a neighbour's lift may take so long before somebody is refused for it
_ROW = TypeAdapter(tuple[NonNegativeInt, FiniteFloat])  # bytes, and until when its holder lives


class Reservations:
    """What this process and its neighbours have reserved of one device.

    All processes that share a device share its machine, and thus its clock. While Redis is away
    nobody's reservations are seen or written: the driver's figures alone must do.

    Args:
        store: a client of little patience, so that a load is not held up while Redis is away.
        device: names the physical device, on every machine another one (a GPU's UUID).
        free_bytes: the driver's figure now; None where nobody can tell.
        ttl_s: after this a holder that has not renewed is taken for dead.
    """

    def __init__(
        self,
        store: redis.Redis,
        keys: Keys,
        *,
        device: str,
        free_bytes: Callable[[], int | None] = lambda: None,
        ttl_s: float = 30.0,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store, self._key = store, keys.reserved(device)
        self._free_bytes, self._ttl_s = free_bytes, ttl_s
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._mine: dict[str, int] = {}
        self._left: set[str] = set()  # given back while Redis was away

    @contextmanager
    def reserve(self, wanted_bytes: int) -> Iterator[None]:
        """Hold `wanted_bytes` for the length of the block; the `Reserve` of a ledger.

        Raises:
            OutOfMemory: what is free is promised to others on the device.
        """
        holder = uuid.uuid4().hex
        try:
            self._hold(holder, wanted_bytes)
            yield
        finally:
            self._let_go(holder)

    def renew(self) -> None:
        """Say that we are alive, and what has been given back while Redis was away; to be called
        more often than every `ttl_s`."""
        with self._lock:
            until = self._clock() + self._ttl_s
            rows: dict[FieldT, EncodableT] = {
                holder: json.dumps([held, until]) for holder, held in self._mine.items()
            }
            if self._left and self._strike(*self._left):
                self._left.clear()
            if rows:
                self._trying(lambda: self._write(rows))

    def of_others(self) -> int:
        """Bytes that other live processes hold on the device, beside what the driver shows."""
        rows = self._trying(lambda: self._store.hgetall(self._key)) or {}
        held = {text(holder): _read(row) for holder, row in rows.items()}
        now = self._clock()  # set back, it would have the dead of before live on for as long
        dead = [one for one, (_, until) in held.items() if not now < until <= now + self._ttl_s]
        if dead:
            self._strike(*dead)
        with self._lock:
            ours = set(self._mine)
        return sum(held[holder][0] for holder in held.keys() - ours - set(dead))

    def _hold(self, holder: str, wanted_bytes: int) -> None:
        for polls_left in reversed(range(POLLS)):
            with self._lock:
                self._mine[holder] = wanted_bytes
            self.renew()
            others, free = self.of_others(), self._free_bytes()
            if not others or free is None or wanted_bytes <= free - others:
                return
            if wanted_bytes > free or not polls_left:
                raise OutOfMemory(
                    f"{wanted_bytes} bytes do not fit: of {free} free ones on the device "
                    f"{others} are promised to other processes"
                )
            self._let_go(holder)  # else two that wait would wait for each other
            self._sleep(POLL_S * random.uniform(0.5, 1.5))  # or meet each time anew

    def _let_go(self, holder: str) -> None:
        with self._lock:  # a renewal under way would bring it back
            self._mine.pop(holder, None)
            if not self._strike(holder):
                self._left.add(holder)

    def _strike(self, *holders: str) -> bool:
        return self._trying(lambda: self._store.hdel(self._key, *holders)) is not None

    def _write(self, rows: dict[FieldT, EncodableT]) -> None:
        """The key goes with its last holder: a machine that was renamed never asks for it again."""
        with self._store.pipeline() as pipe:
            pipe.hset(self._key, mapping=rows)
            pipe.expire(self._key, math.ceil(self._ttl_s))
            pipe.execute()

    @staticmethod
    def _trying(ask: Callable[[], T]) -> T | None:
        try:
            return ask()
        except redis.RedisError as error:
            log.warning("reservations of the device are not shared: %s", error)
            return None


def _read(row: bytes | str) -> tuple[int, float]:
    """What is no reservation holds nothing, and its holder is long dead."""
    try:
        return _ROW.validate_json(row)
    except ValidationError:
        return 0, 0.0
