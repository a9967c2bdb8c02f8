"""How this worker is at the moment of a scrape."""

import time
from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api_client.wire import metrics

from .backends.base import Tier
from .residency.memory import Bytes, Pressure
from .runtime import Runtime

__all__ = ["State"]

LEVELS = tuple(Pressure)


class State(Collector):
    """Reads the parts; keeps nothing."""

    def __init__(self, here: Runtime) -> None:
        self._here = here

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Empty families: registering must not read anything."""
        return [
            one.family()
            for one in metrics.METRICS
            if one.side is metrics.Side.WORKER and one.kind is metrics.Kind.GAUGE
        ]

    def collect(self) -> Iterator[GaugeMetricFamily]:
        yield from self._worker()
        yield from self._models()
        yield from self._batcher()

    def _worker(self) -> Iterator[GaugeMetricFamily]:
        here = self._here
        versions = here.tracker.versions
        yield _family(
            metrics.BUILD_INFO,
            (
                *(versions.get(name, "") for name in ("clipyard", "torch", "celery")),
                here.placement.device,
            ),
            1,
        )
        yield _family(metrics.READY, (), here.tracker.state == "ready")
        yield _family(metrics.PRESSURE, (), LEVELS.index(here.tracker.pressure()))
        yield _family(metrics.LAST_SWEEP, (), here.tracker.swept_at)
        if here.settings.sweeps_enabled:
            yield _family(metrics.SWEEP_INTERVAL_S, (), here.settings.sweep_interval_s)
        tiers = {"device": here.tracker.device_memory(), "host": here.memory.host()}
        yield from _memories({tier: seen for tier, seen in tiers.items() if seen})

    def _models(self) -> Iterator[GaugeMetricFamily]:
        held, leases = metrics.MODEL_BYTES.family(), metrics.LEASES.family()
        view = self._here.slots.view()
        for slot in view:
            held.add_metric((slot.model_id, "device"), slot.footprint.device_bytes)
            held.add_metric((slot.model_id, "host"), slot.footprint.host_bytes)
            leases.add_metric((slot.model_id,), slot.leases)
        yield from (held, leases)
        now = time.monotonic()
        movable = [slot for slot in view if slot.tier is Tier.DEVICE and not slot.pinned]
        idle_s = [now - slot.used_at for slot in movable]
        yield _family(metrics.LRU_AGE_S, (), max(idle_s, default=0.0))

    def _batcher(self) -> Iterator[GaugeMetricFamily]:
        pulse = self._here.batcher.pulse()
        yield _family(metrics.WAITING_ITEMS, (), pulse.queued)
        yield _family(metrics.FORWARD_AGE_S, (), pulse.active_s)
        calls, ages = metrics.WAITING_CALLS.family(), metrics.OLDEST_CALL_S.family()
        for model_id, number in pulse.calls.items():
            calls.add_metric((model_id,), number)
        for model_id, age_s in pulse.ages_s.items():
            ages.add_metric((model_id,), age_s)
        yield from (calls, ages)


def _memories(tiers: dict[str, Bytes]) -> Iterator[GaugeMetricFamily]:
    total, free = metrics.MEMORY_TOTAL.family(), metrics.MEMORY_FREE.family()
    for tier, seen in tiers.items():
        total.add_metric((tier,), seen.total)
        free.add_metric((tier,), seen.free)
    yield from (total, free)


def _family(metric: metrics.Metric, labels: tuple[str, ...], value: float) -> GaugeMetricFamily:
    family = metric.family()
    family.add_metric(labels, value)
    return family
