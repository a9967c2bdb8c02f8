"""Contestants in turn, several times: their ratio holds when the machine's speed drifts."""

import time
from collections.abc import Callable, Mapping
from statistics import median, quantiles

Contestant = Callable[[], int]  # does its work and says how many items that were


def per_second(contestants: Mapping[str, Contestant], *, rounds: int) -> dict[str, list[float]]:
    """Items per second of each contestant in each round; a first round is not counted."""
    speeds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, work in contestants.items():
            begun = time.perf_counter()
            items = work()
            if number:
                speeds[name].append(items / (time.perf_counter() - begun))
    return speeds


def ratio(speeds: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """The median of the rounds' own ratios."""
    return median(a / b for a, b in zip(speeds[ours], speeds[theirs], strict=True))


def timed(action: Callable[[], object], calls: int) -> list[float]:
    """ms of each call, after a warm-up."""
    return [_ms(action) for _ in range(calls + calls // 10)][calls // 10 :]


def in_turns(
    one: Callable[[], object], other: Callable[[], object], *, calls: int, pause_s: float
) -> tuple[list[float], list[float]]:
    """As `timed`, of two in turns, each after a pause."""
    spans = []
    for _ in range(calls + calls // 10):
        for action in (one, other):
            time.sleep(pause_s)
            spans.append(_ms(action))
    return spans[2 * (calls // 10) :: 2], spans[2 * (calls // 10) + 1 :: 2]


def _ms(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - begun)


def p99(spans: list[float]) -> float:
    return quantiles(spans, n=100)[-1]
