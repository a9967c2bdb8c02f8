"""Dealing the cores of a CPU out to the threads that run models."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, Thread, current_thread

import torch

from ..processors import CLAIMS, Claims, available

MOST_RUNS = 8  # at once; each keeps torch threads of its own
BRIEF = 8  # rows of a run: 0.1 s of ViT-B-32, at a tenth more for each row than in a run of 32


class Cores:
    """A run alone gets all cores, to answer soon; a share where others want some, too.

    torch shares single operations among cores, and all of them wait at the end of each for the
    slowest, which is one that a picture decoder has just taken. Runs beside each other do not
    wait: ViT-B-32 in bfloat16 on two cores beside two decoders makes 30 instead of 26 images/s.
    In float32 four batches of 32, of which the first ran alone, took an eighth more core-ms.

    All cores go to one thread only, the first that runs here. OpenMP keeps helpers for every
    thread that ever shared its work, and once it has more threads than there are cores it puts
    them to sleep at the end of each operation: a text then takes 24 ms in the place of 15.
    """

    def __init__(self, count: int, *, claims: Claims = CLAIMS) -> None:
        self._count = count
        self._claims = claims
        self._runs = 0
        self._first: Thread | None = None
        self._lock = Lock()

    @property
    def parallel(self) -> int:
        """Runs at once that are worth it."""
        return min(self._count, MOST_RUNS)

    @contextmanager
    def share(self) -> Iterator[None]:
        """This thread's share while the block lasts. Those who came before keep theirs."""
        with self._lock:
            if self._first is None or not self._first.is_alive():
                self._first = current_thread()
            alone = not (self._runs or self._claims) and self._first is current_thread()
            cores = self._count if alone else self._count // self.parallel
            self._runs += 1
        torch.get_num_threads()  # at its first use a thread takes the number set last, by any
        torch.set_num_threads(cores)
        try:
            yield
        finally:
            with self._lock:
                self._runs -= 1


CORES = Cores(available())
"""Of this process: all its models together have no more."""
