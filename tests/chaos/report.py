"""What a run says in the end."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Report:
    """The line of JSON. All is well where `lost`, `doubled`, `stuck` and `violations` are none."""

    faults: dict[str, int]
    items: int
    lost: int
    doubled: int
    stuck: int
    slowest_recovery_s: float
    seed: int
    violations: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    not_covered: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.stuck or self.violations)

    def line(self) -> str:
        return json.dumps(asdict(self) | {"ok": self.ok})
