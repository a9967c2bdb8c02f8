"""Requests that are sent when they are due, whether earlier ones were answered or not.

Latency counts from the moment a request was meant to be sent, so neither a slow stack nor a slow
sender can hide in it. Times are in seconds from the start.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from math import inf
from statistics import median

from api_client.wire.errors import ClipyardError

from .rounds import p99

IN_A_ROW = 3

Ask = Callable[[], Awaitable[object]]


@dataclass(frozen=True)
class Request:
    """How one ended.

    Attributes:
        at: when it was meant to be sent. late_ms: so much later it was.
        code: of its error; empty if it was answered.
        typed: False if it ended in no answer and in no error of ours, or not at all.
    """

    at: float
    end: float
    late_ms: float = 0.0
    code: str = ""
    typed: bool = True
    retryable: bool = True

    @property
    def ms(self) -> float:
        return 1000 * (self.end - self.at)


@dataclass(frozen=True)
class Level:
    """What one offered rate came to. Rates in items a second.

    Attributes:
        goodput: answers.
        p50_ms, p99_ms: of the answers; None without any.
    """

    offered: float
    goodput: float
    p50_ms: float | None
    p99_ms: float | None


def arrivals(rate: float, seconds: float, *, seed: str) -> list[float]:
    """The moments of a Poisson process."""
    dice = random.Random(seed)
    moments = []
    at = dice.expovariate(rate)
    while at < seconds:
        moments.append(at)
        at += dice.expovariate(rate)
    return moments


async def offer(calls: Sequence[tuple[float, Ask]], *, give_up_s: float) -> list[Request]:
    """Ask everything at its moment; in the order of the moments.

    Args:
        give_up_s: after the last moment; what has not ended by then is lost.
    """
    loop = asyncio.get_running_loop()
    start = loop.time()
    asked = []
    for at, ask in sorted(calls, key=lambda call: call[0]):
        await asyncio.sleep(start + at - loop.time())
        asked.append((at, asyncio.create_task(_ended(at, ask, start))))
    if asked:
        await asyncio.wait([task for _, task in asked], timeout=give_up_s)
    return [_result(at, task, loop.time() - start) for at, task in asked]


async def _ended(at: float, ask: Ask, start: float) -> Request:
    clock = asyncio.get_running_loop().time
    late_ms = 1000 * (clock() - start - at)
    try:
        await ask()
    except ClipyardError as error:
        end = clock() - start
        return Request(at, end, late_ms, error.code, retryable=error.retryable)
    return Request(at, clock() - start, late_ms)


def _result(at: float, task: "asyncio.Task[Request]", now: float) -> Request:
    if not task.done():
        task.cancel()
        return Request(at, now, code="unanswered", typed=False)
    if error := task.exception():
        return Request(at, now, code=type(error).__name__, typed=False)
    return task.result()


def level(requests: Sequence[Request], *, since: float, until: float, items: int) -> Level:
    """What was sent and what was answered between two moments, by requests of so many items."""
    sent = sum(since <= request.at < until for request in requests)
    spans = [r.ms for r in requests if not r.code and since <= r.end < until]
    return Level(
        offered=items * sent / (until - since),
        goodput=items * len(spans) / (until - since),
        p50_ms=median(spans) if spans else None,
        p99_ms=p99(spans) if spans else None,
    )


def recovered_s(probes: Sequence[Request], *, bound_ms: float) -> float:
    """When the first of three in a row was due that were answered within the bound."""
    good = [not probe.code and probe.ms <= bound_ms for probe in probes]
    firsts = (n for n in range(len(good) - IN_A_ROW + 1) if all(good[n : n + IN_A_ROW]))
    first = next(firsts, None)
    return inf if first is None else probes[first].at
