"""When models are used: how often in each hour of the week, and after which pauses."""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import redis

from api_client.wire.names import Keys

from .sweeps import Timeouts

HOURS = 7 * 24
DAY = 24
KEPT_S = 60 * 24 * 3600  # a model nobody used for so long is forgotten
LONG_PAUSE_S = 60.0  # shorter ones belong to one and the same visit
PAUSES_KEPT = 32
PAUSES_TO_LEARN = 4
CERTAINTY = 0.9  # of the pauses that a model should outlast
MARGIN = 1.1
USES_TO_FORESEE = 10  # within the hours that are looked at, over all weeks
AHEAD_S = 900.0

Histogram = tuple[int, ...]  # uses in each hour of the week, Monday 00:00 UTC first


def hour_of_week(at: float) -> int:
    """0 to 167. UTC, so that every machine writes into the same bucket.

    Args:
        at: unix seconds.
    """
    when = datetime.fromtimestamp(at, UTC)
    return when.weekday() * 24 + when.hour


@dataclass
class Use:
    """What one model has been used for since the process started. Times are unix seconds."""

    count: int = 0
    last_used: float = 0.0
    pauses_s: deque[float] = field(default_factory=lambda: deque(maxlen=PAUSES_KEPT))

    def add(self, at: float) -> None:
        if self.count and at - self.last_used >= LONG_PAUSE_S:
            self.pauses_s.append(at - self.last_used)
        self.count += 1
        self.last_used = at


def adapted(timeouts: Timeouts, pauses_s: Sequence[float], *, most: float) -> Timeouts:
    """Timeouts that outlast the model's own pauses, or the given ones where that is out of reach.

    Only ever longer: whoever always comes back after eleven minutes is not thrown out after ten.

    Args:
        pauses_s: between its visits, as `Use` keeps them.
        most: how many times the given timeout may be stretched to; a model whose pauses are longer
            is not worth waiting for, and keeps the given one.
    """
    if len(pauses_s) < PAUSES_TO_LEARN:
        return timeouts
    at = min(len(pauses_s) - 1, int(CERTAINTY * len(pauses_s)))
    wanted_s = MARGIN * sorted(pauses_s)[at]

    def stretched(timeout_s: float) -> float:
        return max(timeout_s, wanted_s) if wanted_s <= most * timeout_s else timeout_s

    return Timeouts(vram_s=stretched(timeouts.vram_s), ram_s=stretched(timeouts.ram_s))


def wanted_next(histograms: Mapping[str, Histogram], *, at: float) -> list[str]:
    """The models that this hour, or the one about to begin, has seen most of; likeliest first.

    An hour counts by its own past and, for a seventh each, by the same hour of the other days.
    What was brought much earlier would be swept out again before its hour (see the benchmark).
    """
    hours = {hour_of_week(at), hour_of_week(at + AHEAD_S)}

    def score(counts: Histogram) -> float:
        weekly = sum(counts[hour] for hour in hours)
        daily = sum(sum(counts[hour % DAY :: DAY]) for hour in hours)
        return weekly + (daily - weekly) / 7

    scores = {model_id: score(counts) for model_id, counts in histograms.items()}
    likely = [model_id for model_id, value in scores.items() if value >= USES_TO_FORESEE]
    return sorted(likely, key=lambda model_id: -scores[model_id])


def record(pipe: "redis.client.Pipeline", keys: Keys, uses: Mapping[tuple[str, int], int]) -> None:
    """Add to the histograms: (model id, hour of the week) -> uses."""
    for (model_id, hour), count in uses.items():
        pipe.hincrby(keys.usage(model_id), str(hour), count)
        pipe.expire(keys.usage(model_id), KEPT_S)


def histogram(store: redis.Redis, keys: Keys, model_id: str) -> Histogram:
    """All workers' uses of a model, those of earlier processes included."""
    rows = store.hgetall(keys.usage(model_id))
    counts = Counter({int(hour): int(count) for hour, count in rows.items()})
    return tuple(counts[hour] for hour in range(HOURS))
