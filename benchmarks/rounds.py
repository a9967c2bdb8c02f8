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
    spans = []
    for number in range(calls + calls // 10):
        begun = time.perf_counter()
        action()
        if number >= calls // 10:
            spans.append(1000 * (time.perf_counter() - begun))
    return spans


def p99(spans: list[float]) -> float:
    return quantiles(spans, n=100)[-1]
