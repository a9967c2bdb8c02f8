"""How this worker is at the moment of a scrape."""

import time
from collections.abc import Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from api_client.wire import metrics

from .backends.base import Tier
from .residency.memory import Pressure
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
        versions = (here.tracker.versions.get(name, "") for name in ("clipyard", "torch", "celery"))
        yield metrics.BUILD_INFO.family({(*versions, here.placement.device): 1})
        yield metrics.READY.family({(): here.tracker.state == "ready"})
        yield metrics.PRESSURE.family({(): LEVELS.index(here.tracker.pressure())})
        yield metrics.LAST_SWEEP.family({(): here.tracker.swept_at})
        if here.settings.sweeps_enabled:
            yield metrics.SWEEP_INTERVAL_S.family({(): here.settings.sweep_interval_s})
        tiers = {"device": here.tracker.device_memory(), "host": here.memory.host()}
        there = {(tier,): seen for tier, seen in tiers.items() if seen}
        yield metrics.MEMORY_TOTAL.family({tier: seen.total for tier, seen in there.items()})
        yield metrics.MEMORY_FREE.family({tier: seen.free for tier, seen in there.items()})

    def _models(self) -> Iterator[GaugeMetricFamily]:
        view = self._here.slots.view()
        device = {(slot.model_id, "device"): slot.footprint.device_bytes for slot in view}
        host = {(slot.model_id, "host"): slot.footprint.host_bytes for slot in view}
        yield metrics.MODEL_BYTES.family(device | host)
        yield metrics.LEASES.family({(slot.model_id,): slot.leases for slot in view})
        now = time.monotonic()
        movable = [slot for slot in view if slot.tier is Tier.DEVICE and not slot.pinned]
        idle_s = [now - slot.used_at for slot in movable]
        yield metrics.LRU_AGE_S.family({(): max(idle_s, default=0.0)})

    def _batcher(self) -> Iterator[GaugeMetricFamily]:
        pulse = self._here.batcher.pulse()
        yield metrics.WAITING_ITEMS.family({(): pulse.queued})
        yield metrics.FORWARD_AGE_S.family({(): pulse.active_s})
        yield metrics.WAITING_CALLS.family({(model,): n for model, n in pulse.calls.items()})
        yield metrics.OLDEST_CALL_S.family({(model,): age for model, age in pulse.ages_s.items()})
