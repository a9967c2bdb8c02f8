"""How many processor cores this process may use."""

import math
import os
import sys
from pathlib import Path
from threading import Lock, get_native_id

from .cgroups import groups

MOST_DECODE_THREADS = 64
ASIDE = 5  # niceness: a third of what others get where there is not enough for all


class Claims:
    """How many threads are inside, each of which wants a core."""

    def __init__(self) -> None:
        self._threads = 0
        self._lock = Lock()

    def __enter__(self) -> None:
        with self._lock:
            self._threads += 1

    def __exit__(self, *raised: object) -> None:
        with self._lock:
            self._threads -= 1

    def __bool__(self) -> bool:
        return self._threads > 0


CLAIMS = Claims()
"""Of this process, on cores that are not there for a model then: of those who decode a picture, and
of those who run a model while more waits to be run."""


def available(*, root: Path = Path("/")) -> int:
    """Cores by affinity and by the share of processor time that a container or service gets.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS, Windows
        cores = os.cpu_count() or 1
    share = min((_share(*group) for group in groups("cpu", root=root)), default=math.inf)
    return cores if share >= cores else max(1, math.ceil(share))


def decode_threads() -> int:
    """One per core: decoders hold a core, and fill in where the forward pass leaves one idle."""
    return min(available(), MOST_DECODE_THREADS)


def step_aside() -> None:
    """Lets the process' other threads go first, where threads have priorities of their own.

    Decoders that do beside runners of models: 3 to 5 % more pictures, and a text beside them waits
    a tenth less.
    """
    if sys.platform == "linux":
        this = os.PRIO_PROCESS, get_native_id()
        os.setpriority(*this, min(19, os.getpriority(*this) + ASIDE))


def _share(version: int, folder: Path) -> float:
    """Cores' worth of time that a control group gets."""
    try:
        if version == 2:
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
    except OSError:
        return math.inf
    return math.inf if quota in ("max", "-1") else int(quota) / int(period)
