"""What is looked at while the stack works: its processes, its Redis, and how quickly it answers."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import psutil

from tests.chaos import plan
from tests.chaos.watch import Watch
from tests.chaos.world import World

EVERY_S = 10.0
MIB = 2**20
JOBS_KEPT = b":job"  # a month of every job, by design; each is a kilobyte

# What one hour may add. Slopes below are noise that nobody would mind in a month of restarts.
BOUNDS = {
    "resident MiB": 12.0,
    "open files": 4.0,
    "threads": 8.0,  # pools fill up to their size
    "data, MiB": 4.0,
    "keys but of jobs and requests": 20.0,
    "keys of requests that would stay": 1.0,
    "median, ms": 10.0,
}

Series = dict[str, list[tuple[float, float]]]


class Sampler:
    """One thread, from `__enter__` to `__exit__`.

    Attributes:
        series: `<whom>: <what>` -> (seconds since the start, value).
    """

    def __init__(
        self, world: World, watch: Watch, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._world, self._watch, self._clock = world, watch, clock
        self._begun = clock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self.series: Series = {}

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        before = self._begun
        while not self._stop.wait(EVERY_S):
            now = self._clock()
            for name in (*self._world.workers, plan.BEAT, plan.REDIS):
                self._process(name, now)
            self._redis(now)
            took = [
                1000 * (done - begun) for begun, done in tuple(self._watch.probes) if begun > before
            ]
            if took:
                self._note("median, ms", "small requests", now, float(np.median(took)))
            before = now

    def _process(self, name: str, now: float) -> None:
        if (pid := self._world.pid(name)) is None:
            return
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            self._note("resident MiB", name, now, process.memory_info().rss / MIB)
            self._note("open files", name, now, process.num_fds())
            self._note("threads", name, now, process.num_threads())

    def _redis(self, now: float) -> None:
        store = self._world.store
        keys = [key for key in store.scan_iter(count=1000) if JOBS_KEPT not in key]
        named = self._world.keys
        kinds = (named.answer, named.started, named.blobs, named.sent)
        request = tuple(kind("").encode() for kind in kinds)
        requests = [key for key in keys if key.startswith(request)]  # as many as calls lately
        with store.pipeline(transaction=False) as pipe:
            for key in requests:
                pipe.ttl(key)
            stay = pipe.execute().count(-1)
        self._note("keys but of jobs and requests", plan.REDIS, now, len(keys) - len(requests))
        self._note("keys of requests that would stay", plan.REDIS, now, stay)
        used = store.info("memory")["used_memory_dataset"]
        self._note("data, MiB", plan.REDIS, now, used / MIB)

    def _note(self, what: str, whom: str, now: float, value: float) -> None:
        self.series.setdefault(f"{whom}: {what}", []).append((now - self._begun, value))
