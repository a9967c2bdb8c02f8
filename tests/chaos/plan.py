"""What goes wrong when: drawn from a seed, printable, and the same again from the same seed."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What can be done to a stack."""

    KILLED = "killed"  # SIGKILL; whoever runs it starts it again
    TERMINATED = "terminated"  # SIGTERM, likewise
    PAUSED = "paused"  # SIGSTOP, and SIGCONT a while later
    REDIS_KILLED = "redis killed"  # and back from its append-only file a while later
    REDIS_TERMINATED = "redis terminated"
    REDIS_PAUSED = "redis paused"
    CUT = "connections cut"
    STALLED = "connections stalled"
    DROPPED = "connections dropped"  # silently: one end hears nothing more
    CLOCK = "clock jumped"
    DISK_FULL = "disk full"
    LOAD_OOM = "out of memory in load"
    FORWARD_OOM = "out of memory in forward"
    REPLACED = "model file replaced"
    TRUNCATED = "model file truncated"
    HOST_SLOW = "picture host slow"
    HOST_DEAD = "picture host dead"


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        at_s: when, after the start.
        target: which process, disk, or share; empty where there is one only.
        lasts_s: until it is mended; of a killed process nothing needs to be.
        amount: bytes, rows, seconds or a share, as the kind says.
    """

    number: int
    at_s: float
    kind: Kind
    target: str
    lasts_s: float
    amount: float

    @property
    def over_s(self) -> float:
        return self.at_s + self.lasts_s

    @property
    def resource(self) -> str:
        """What cannot be broken twice at once."""
        if self.kind is Kind.DISK_FULL and self.target == REDIS:
            return f"{REDIS} "  # see `faults`: it has to write its file anew before it may die
        return f"{_RESOURCES.get(self.kind, self.kind)} {self.target}"


@dataclass(frozen=True)
class _Ways:
    weight: int
    lasts_s: tuple[float, float] = (0.0, 0.0)
    targets: Sequence[str] = ()  # empty: a worker
    amounts: Sequence[float] = (0.0,)


BEAT = "beat"
CLIENT = "client"
REDIS = "redis"
SINKS = "sinks"
NOBODY = ("",)
HOUR = 3600.0

_FILE, _CONNECTIONS, _HOST = "file", "connections", "host"
_RESOURCES = {
    Kind.KILLED: "process",
    Kind.TERMINATED: "process",
    Kind.PAUSED: "process",
    Kind.REDIS_KILLED: REDIS,
    Kind.REDIS_TERMINATED: REDIS,
    Kind.REDIS_PAUSED: REDIS,
    Kind.REPLACED: _FILE,
    Kind.TRUNCATED: _FILE,
    Kind.STALLED: _CONNECTIONS,
    Kind.HOST_SLOW: _HOST,
    Kind.HOST_DEAD: _HOST,
}
_WAYS = {
    Kind.KILLED: _Ways(8),
    Kind.TERMINATED: _Ways(4),
    Kind.PAUSED: _Ways(8, (0.5, 12.0)),
    Kind.REDIS_KILLED: _Ways(4, (0.1, 8.0), NOBODY),
    Kind.REDIS_TERMINATED: _Ways(2, (0.1, 3.0), NOBODY),
    Kind.REDIS_PAUSED: _Ways(3, (0.2, 6.0), NOBODY),
    Kind.CUT: _Ways(10, targets=NOBODY, amounts=(0.1, 0.5, 1.0)),
    Kind.STALLED: _Ways(6, (0.2, 8.0), NOBODY),
    Kind.DROPPED: _Ways(5, targets=NOBODY, amounts=(0.1, 0.3)),
    Kind.CLOCK: _Ways(6, (2.0, 15.0), amounts=(-HOUR, -60.0, -5.0, 5.0, 60.0, HOUR)),
    Kind.DISK_FULL: _Ways(6, (0.5, 6.0), (SINKS, SINKS, REDIS)),
    Kind.LOAD_OOM: _Ways(6, (1.0, 8.0)),
    Kind.FORWARD_OOM: _Ways(8, (0.5, 5.0), amounts=(0, 1, 4, 8)),
    Kind.REPLACED: _Ways(5, targets=NOBODY),
    Kind.TRUNCATED: _Ways(4, (0.5, 6.0), NOBODY, amounts=(0.0, 0.5, 0.99)),
    Kind.HOST_SLOW: _Ways(5, (1.0, 10.0), NOBODY, amounts=(0.5, 1.5, 30.0)),
    Kind.HOST_DEAD: _Ways(5, (1.0, 10.0), NOBODY),
}
_OF_PROCESSES = (Kind.KILLED, Kind.TERMINATED, Kind.PAUSED, Kind.CLOCK)
_ALSO_REDIS = (Kind.CLOCK,)


def draw(
    seed: int,
    faults: int,
    *,
    workers: Sequence[str],
    gap_s: float = 2.4,
    longest_s: float = 60.0,
    kinds: Collection[Kind] = tuple(Kind),
) -> tuple[Fault, ...]:
    """So many faults, in the order of time; several last at once, but each breaks another thing.

    Args:
        gap_s: between the beginnings of two, on average.
        kinds: those that this machine can do.
    """
    dice, now, free_at = random.Random(seed), 0.0, dict[str, float]()
    drawn: list[Fault] = []
    able = [kind for kind in Kind if kind in kinds]
    weights = [_WAYS[kind].weight for kind in able]
    while len(drawn) < faults:
        now += dice.uniform(0.2, 1.8) * gap_s
        [kind] = dice.choices(able, weights)
        fault = _fault(dice, len(drawn), now, kind, workers, longest_s)
        if free_at.get(fault.resource, 0.0) <= now:
            free_at[fault.resource] = fault.over_s
            drawn.append(fault)
    return tuple(drawn)


def _fault(
    dice: random.Random,
    number: int,
    at_s: float,
    kind: Kind,
    workers: Sequence[str],
    longest_s: float,
) -> Fault:
    ways = _WAYS[kind]
    targets = list(ways.targets or workers)
    if kind in _OF_PROCESSES:
        targets += [BEAT, CLIENT]
    if kind in _ALSO_REDIS:
        targets.append(REDIS)
    return Fault(
        number=number,
        at_s=round(at_s, 3),
        kind=kind,
        target=dice.choice(targets),
        lasts_s=round(min(longest_s, dice.uniform(*ways.lasts_s)), 3),
        amount=dice.choice(ways.amounts),
    )
