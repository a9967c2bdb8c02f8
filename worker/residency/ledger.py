"""What each model really takes, whether one more fits, and what stayed behind: measured."""

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock

from ..backends.base import Footprint
from .memory import Bytes

__all__ = ["Ledger", "Measured", "Probe", "Reserve"]

Probe = Callable[[], Bytes | None]  # None: there is no such memory, or nobody can tell
Reserve = Callable[[int], AbstractContextManager[None]]

POLL_S = 0.25
SETTLE_S = 5.0  # the driver may take this long to show memory that was given back
RESIDUE_BYTES = 64 * 2**20  # allocators round up: less than this is not worth a word


@dataclass(frozen=True)
class Measured:
    """Bytes of one model, as last seen; 0 is not known yet.

    Attributes:
        device_bytes, host_bytes: of the weights, while in that tier.
        peak_batch_bytes: on top of the weights, at the worst moment of a forward pass.
        residue_bytes: what an unload did not give back.
    """

    device_bytes: int = 0
    host_bytes: int = 0
    peak_batch_bytes: int = 0
    residue_bytes: int = 0

    def weights(self, guess: int) -> Footprint:
        """What they take in each tier: as measured, else the guess."""
        return Footprint(self.device_bytes or guess, self.host_bytes or guess)


class Ledger:
    """Keeps what was measured, and admits by it.

    Args:
        device, host: how much memory there is now.
        kept: bytes that this process holds on the device for batches to come.
        reserve: held around a lift, so that other processes on the same device count it in; may
            raise OutOfMemory.
        headroom: fraction of the free device memory left alone while other models are resident.
        residue_bytes: less than this does not count as having stayed behind.
    """

    def __init__(
        self,
        *,
        device: Probe = lambda: None,
        host: Probe = lambda: None,
        kept: Callable[[], int] = lambda: 0,
        reserve: Reserve = lambda size: nullcontext(),
        headroom: float = 0.0,
        residue_bytes: int = RESIDUE_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.reserve = reserve
        self._device, self._host, self._kept = device, host, kept
        self._headroom = headroom
        self._residue_bytes = residue_bytes
        self._clock, self._sleep = clock, sleep
        self._measured: dict[str, Measured] = {}
        self._lock = Lock()

    def __getitem__(self, model_id: str) -> Measured:
        return self._measured.get(model_id, Measured())

    @property
    def residue_bytes(self) -> int:
        """What the last unload of each model has not given back."""
        return sum(measured.residue_bytes for measured in list(self._measured.values()))

    def saw(self, model_id: str, footprint: Footprint) -> None:
        """A model was loaded, lifted or lowered, and takes this much now."""
        seen = {"device_bytes": footprint.device_bytes, "host_bytes": footprint.host_bytes}
        self._note(model_id, **{name: size for name, size in seen.items() if size})

    def ran(self, model_id: str, *, peak_batch_bytes: int) -> None:
        """A forward pass took this much on top of the weights."""
        self._note(
            model_id, peak_batch_bytes=max(peak_batch_bytes, self[model_id].peak_batch_bytes)
        )

    def shortfall(self, model_id: str, size: int, *, resident: Collection[str]) -> int:
        """Bytes of device memory that are missing for `size` bytes of weights and their batches.

        The smaller of two opinions counts: the driver's, who sees strangers, and the ledger's own,
        who knows what the residents will want at their peak.
        """
        seen = self._device()
        if seen is None:
            return 0
        share = 1 - self._headroom if resident else 1.0
        peak = self[model_id].peak_batch_bytes
        peak_of_all = max([peak, *(self[other].peak_batch_bytes for other in resident)])
        booked = seen.total - sum(self[other].device_bytes for other in resident)
        by_driver = size + max(0, peak - self._kept()) - int(seen.free * share)
        by_ledger = size + peak_of_all - int(booked * share)
        return max(0, by_driver, by_ledger)

    def host_shortfall(self, size: int) -> int:
        """Bytes of host memory that are missing for a load. Whoever oversteps a container's limit
        is killed without a MemoryError, so this is asked before."""
        seen = self._host()
        return 0 if seen is None else max(0, size - seen.free)

    @contextmanager
    def coming_back(self, model_id: str, size: int) -> Iterator[None]:
        """Around an unload: afterwards waits, bounded, until `size` bytes more are seen free."""
        before = self._device()
        yield
        if before is None:
            return
        residue = self._missing(before, size)
        deadline = self._clock() + SETTLE_S
        while residue > self._residue_bytes and self._clock() < deadline:
            self._sleep(POLL_S)
            residue = self._missing(before, size)
        self._note(model_id, residue_bytes=residue if residue > self._residue_bytes else 0)

    def _missing(self, before: Bytes, size: int) -> int:
        now = self._device()
        return 0 if now is None else size - (now.free - before.free)

    def _note(self, model_id: str, **seen: int) -> None:
        with self._lock:
            self._measured[model_id] = replace(self[model_id], **seen)
