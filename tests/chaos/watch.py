"""Looks on while things go wrong: at the slots all the time, and whether anybody answers."""

import threading
import time
from collections.abc import Callable

import redis

from api_client.status import read_fleet
from api_client.wire.errors import ClipyardError

from . import invariants
from .world import World

LOOK_S = 0.5
PROBE_TIMEOUT_S = 60.0


PROBERS = 3  # one may be held up by what was broken when it asked


class Watch:
    """Looks and asks in threads, from `__enter__` to `__exit__`.

    Attributes:
        told: sentences on limits that did not hold.
        probes: (begun, answered) of the small requests that were answered.
    """

    def __init__(self, world: World, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._world, self._clock = world, clock
        self.told: set[str] = set()
        self.probes: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=run, name=run.__name__, daemon=True)
            for run in (self._look, *[self._probe] * PROBERS)
        ]

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PROBE_TIMEOUT_S + 5)

    def was_answered_since(self, at: float) -> bool:
        """Whether somebody who asked since then has an answer."""
        return any(begun >= at for begun, _ in self.probes)

    def _look(self) -> None:
        while not self._stop.wait(LOOK_S):
            try:
                fleet = read_fleet(self._world.store, self._world.keys, events=1)
            except redis.RedisError:
                continue  # it is away
            self.told.update(invariants.over_the_limit(fleet))

    def _probe(self) -> None:
        number = 0
        with self._world.client() as client:
            while not self._stop.wait(LOOK_S):
                begun, number = self._clock(), number + 1
                try:
                    client.embed_texts(
                        [f"probe {number}"], model="fake/text", timeout=PROBE_TIMEOUT_S
                    )
                except ClipyardError:
                    continue
                self.probes.append((begun, self._clock()))
