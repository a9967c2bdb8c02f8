"""What every benchmark ends with: one line of JSON, its ratios beside their goals."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

PACKAGES = ("celery", "kombu", "numpy", "open_clip_torch", "pillow", "redis", "torch")


@dataclass(frozen=True)
class Options:
    """What the command line asks of any benchmark.

    Attributes:
        quick: end within one minute; noisier.
        device: what the worker runs on.
    """

    quick: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class Report:
    """One benchmark's outcome. A ratio reaches its goal from below: more is always better.

    Attributes:
        ratios: by name, each from this one run on this one machine.
        goals: the least that each ratio should be; same names.
        figures: what the ratios were made of, with the unit in the name.
        curves: by name, rows of what was drawn, with the unit in the column's name.
        note: what a reader must know, e.g. why nothing was measured.
    """

    name: str
    seconds: float
    ratios: Mapping[str, float] = field(default_factory=dict)
    goals: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, Sequence[Mapping[str, float | None]]] = field(default_factory=dict)
    note: str = ""

    @property
    def ok(self) -> bool:
        return all(self.ratios[name] >= goal for name, goal in self.goals.items())

    def line(self) -> str:
        """The line of JSON."""
        return json.dumps(
            {
                "name": self.name,
                "ratios": _rounded(self.ratios),
                "goals": dict(self.goals),
                "ok": self.ok,
                "figures": _rounded(self.figures),
                **({"curves": self._curves()} if self.curves else {}),
                "note": self.note,
                "machine": machine(),
                "versions": {name: version(name) for name in PACKAGES},
                "seconds": round(self.seconds, 1),
            }
        )

    def _curves(self) -> dict[str, list[dict[str, float | None]]]:
        return {
            name: [
                {column: value and _short(value) for column, value in row.items()} for row in rows
            ]
            for name, rows in self.curves.items()
        }


# Of x86, the best first: how Linux and how people call it.
UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2"}


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),  # above the cores, others were measured as well
    }


def _cpu() -> str:
    """Its name and the best that it computes with: some names are those of several processors."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = told.get("flags", "").split()
    units = (name for flag, name in UNITS.items() if flag in flags)
    return " with ".join([told.get("model name", platform.processor()), *islice(units, 1)])


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: _short(value) for name, value in figures.items()}


def _short(value: float) -> float:
    return float(f"{value:.4g}")
