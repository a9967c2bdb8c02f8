"""Contestants in turn, there and back: their ratio holds when the machine's speed drifts."""

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median, quantiles

Contestant = Callable[[], int]  # does its work and says how many items that were
Speeds = dict[str, list[float]]  # of each contestant, in each round


def per_second(
    contestants: Mapping[str, Contestant],
    *,
    within_s: float,
    at_least: int = 1,
    warm_ups: Mapping[str, Contestant],
) -> Speeds:
    """Items per second, in as many rounds as fit, and some at least.

    Before them come the warm-ups, which are not counted. Who is last in one round is first in the
    next, so that nobody always comes later.
    """
    begun = time.perf_counter()
    for work in warm_ups.values():
        work()
    order = list(contestants)
    rounds: list[dict[str, float]] = []
    first = time.perf_counter()
    left_s = within_s - (first - begun)
    while len(rounds) < at_least or _with_one_more(first, len(rounds)) <= left_s:
        rounds.append({name: _speed(contestants[name]) for name in order})
        order.reverse()
    return {name: [speeds[name] for speeds in rounds] for name in contestants}


def _with_one_more(first: float, rounds: int) -> float:
    return (time.perf_counter() - first) * (rounds + 1) / rounds


def _speed(work: Contestant) -> float:
    begun = time.perf_counter()
    return work() / (time.perf_counter() - begun)


def medians(speeds: Speeds, label: str = "", *, what: str = "images") -> dict[str, float]:
    """As the figures of a report."""
    a_second = {f"{label}{name} {what}/s": median(each) for name, each in speeds.items()}
    return a_second | {f"{label}rounds": float(len(next(iter(speeds.values()))))}


def ratio(speeds: Speeds, ours: str, theirs: str) -> float:
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


def p99(spans: Sequence[float]) -> float:
    """Of what was seen: never above the largest."""
    return quantiles([*spans, max(spans)], n=100, method="inclusive")[-1]
