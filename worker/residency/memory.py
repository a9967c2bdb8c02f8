"""How much memory is free, and how pressing that is: the driver, the cgroup, psutil."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType

import psutil

from ..cgroups import groups

__all__ = ["BEGINS", "Bytes", "Memory", "Pressure", "PressureGauge", "next_level"]

NO_LIMIT = 2**60  # cgroup v1 says "no limit" with a number near 2**63


@dataclass(frozen=True)
class Bytes:
    """A memory's size, and how much of it can still be had."""

    total: int
    free: int

    @property
    def used_fraction(self) -> float:
        return 1 - self.free / self.total if self.total else 1.0


class Memory:
    """The memories of one worker process.

    Args:
        device: `cpu`, `cuda:N` or `mps`.
        root: where `proc` and `sys` are mounted.
    """

    def __init__(self, device: str, *, root: Path = Path("/")) -> None:
        self._device = device
        self._is_gpu = device.startswith("cuda")
        self._root = root

    def host(self) -> Bytes:
        """Host memory: inside a container, the container's share of it."""
        machine = psutil.virtual_memory()
        shares = [Bytes(machine.total, machine.available), *_cgroup_shares(self._root)]
        return min(shares, key=lambda share: share.free)

    def device(self) -> Bytes | None:
        """Device memory as the driver sees it, strangers included; None where host and device
        memory are one."""
        if not self._is_gpu:
            return None
        import torch

        free, total = torch.cuda.mem_get_info(self._device)
        return Bytes(total, free)

    @contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        """Around a forward pass, one at a time; afterwards tells how many bytes of device memory it
        took at its worst moment. By torch's own count, so 0 for what does not ask torch for them.

        Weights that come or go meanwhile do not count: what is held at the end comes off as well.
        """
        if not self._is_gpu:
            yield lambda: 0
            return
        import torch.cuda as cuda

        before = cuda.memory_allocated(self._device)
        cuda.reset_peak_memory_stats(self._device)
        yield lambda: worst - held
        worst = cuda.max_memory_allocated(self._device)
        held = max(before, cuda.memory_allocated(self._device))

    def kept(self) -> int:
        """Bytes of device memory that torch keeps for passes to come, and that count as used."""
        if not self._is_gpu:
            return 0
        import torch.cuda as cuda

        return int(cuda.memory_reserved(self._device) - cuda.memory_allocated(self._device))

    def uuid(self) -> str | None:
        """The GPU's own, the same in every container that sees it; None where there is no GPU."""
        if not self._is_gpu:
            return None
        import torch

        return str(torch.cuda.get_device_properties(self._device).uuid)

    def name(self) -> str:
        """What the device is, such as `NVIDIA H100 80GB HBM3`, wherever it is counted."""
        if not self._is_gpu:
            return self._device
        import torch

        return str(torch.cuda.get_device_name(self._device))


def _cgroup_shares(root: Path) -> list[Bytes]:
    """Every limit that applies to this process."""
    found = (_share(folder, FILES[version]) for version, folder in groups("memory", root=root))
    return [share for share in found if share is not None]


@dataclass(frozen=True)
class _Files:
    limit: str
    used: str
    reclaimable: str  # the line of memory.stat with page cache that goes before anyone is killed


FILES = {  # by version
    1: _Files("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: _Files("memory.max", "memory.current", "inactive_file"),
}


def _share(group: Path, files: _Files) -> Bytes | None:
    try:
        content = (group / files.limit).read_text().strip()
        limit = NO_LIMIT if content == "max" else int(content)
        used = int((group / files.used).read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return None
    if limit >= NO_LIMIT:
        return None
    held = max(0, used - int(stat.get(files.reclaimable, 0)))
    return Bytes(limit, max(0, limit - held))


class Pressure(StrEnum):
    """How full memory is. The values are those of the status hash."""

    NORMAL = "normal"
    ELEVATED = "elevated"
    HIGH = "high"
    CRITICAL = "critical"


# A level begins at this used fraction. It ends HYSTERESIS below, so that it does not flicker.
BEGINS: Mapping[Pressure, float] = MappingProxyType(
    {Pressure.ELEVATED: 0.7, Pressure.HIGH: 0.8, Pressure.CRITICAL: 0.95}
)
HYSTERESIS = 0.03


def next_level(level: Pressure, used_fraction: float) -> Pressure:
    """The level after `level`, once so much is used."""
    order = list(Pressure)
    reached = Pressure.NORMAL
    for candidate, begin in BEGINS.items():
        is_on = order.index(candidate) <= order.index(level)
        if used_fraction >= begin - (HYSTERESIS if is_on else 0.0):
            reached = candidate
    return reached


class PressureGauge:
    """Remembers the level between two readings."""

    def __init__(self) -> None:
        self.level = Pressure.NORMAL

    def read(self, *memories: Bytes | None) -> Pressure:
        """The level of the fullest of these memories."""
        used = max((memory.used_fraction for memory in memories if memory), default=0.0)
        self.level = next_level(self.level, used)
        return self.level
