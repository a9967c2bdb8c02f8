"""How many loads, and how much waiting, which policy of residency costs: a simulation.

The slots, the sweeps and the forecasts are the real ones; models have no weight, and the clock is
moved. Four policies see the same requests, one after the other:

    fixed      two slots, least recently used out, gone after 600 idle seconds: what others do
    tiers      two slots; after 600 s down to host memory, after 1800 s gone: our defaults
    adaptive   as tiers, and a model that always comes back a little later is waited for
    foresight  as adaptive, and what this hour usually wants is brought up while nobody works

A cold load takes 2 s, a lift from host memory 0.05 s; both are of the size seen for ViT-L-14.
"""

import csv
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from worker.backends.base import Footprint, Placement, Tier
from worker.backends.fake import Fake, Pool
from worker.catalogue import Entry
from worker.residency import usage
from worker.residency.ledger import Ledger
from worker.residency.memory import Bytes
from worker.residency.slots import Limits, Slots
from worker.residency.sweeping import LEFT_ALONE_S
from worker.residency.sweeps import Timeouts, View, preload, sweep
from worker.residency.usage import Use

from .report import Options, Report

RECORDED = Path(__file__).parent / "traces" / "recorded.csv"
LOAD_S, LIFT_S = 2.0, 0.05
WEIGHT = 10**9  # bytes of every model
DEVICE_BYTES, HOST_BYTES = 16 * WEIGHT, 64 * WEIGHT
SWEEP_S = 60.0
HOUR, DAY = 3600.0, 86400.0
MONDAY = 4 * DAY  # 1970-01-05, so that hours of the week begin at zero

Trace = list[tuple[float, str]]  # seconds since the start, model id


@dataclass(frozen=True)
class Policy:
    """What one contestant does beside keeping the most recently used."""

    host_tier: bool = True
    adaptive: bool = False
    foresight: bool = False


POLICIES = {
    "fixed": Policy(host_tier=False),
    "tiers": Policy(),
    "adaptive": Policy(adaptive=True),
    "foresight": Policy(adaptive=True, foresight=True),
}


@dataclass
class Score:
    """What a policy cost over one trace."""

    requests: int = 0
    loads: int = 0
    waited_s: float = 0.0
    device_byte_s: float = 0.0
    host_byte_s: float = 0.0

    def figures(self, label: str) -> dict[str, float]:
        return {
            f"{label} loads per 1000": 1000 * self.loads / self.requests,
            f"{label} wait ms": 1000 * self.waited_s / self.requests,
            f"{label} device GB h": self.device_byte_s / 1e9 / HOUR,
            f"{label} host GB h": self.host_byte_s / 1e9 / HOUR,
        }


def run(options: Options) -> Report:
    """The waiting that our defaults and our forecasts save, trace by trace."""
    begun = time.monotonic()
    days = 4 if options.quick else 14
    figures: dict[str, float] = {}
    ratios: dict[str, float] = {}
    for name, trace in traces(days).items():
        scores = {policy: simulate(trace, rules) for policy, rules in POLICIES.items()}
        for policy, score in scores.items():
            figures |= score.figures(f"{name}, {policy}:")
        for policy in ("tiers", "adaptive", "foresight"):
            ratios[f"{name}: wait, fixed / {policy}"] = (
                scores["fixed"].waited_s / scores[policy].waited_s
            )
    goals = {name: 1.0 for name in ratios if not name.startswith("zipf")}
    return Report("residency", time.monotonic() - begun, ratios, goals, figures)


def traces(days: int) -> dict[str, Trace]:
    """Requests over so many days; the recorded one is as long as it is."""
    return {
        "eleven minutes": list(_every(11 * 60.0, "a", days)),
        "office": sorted(_office(days, random.Random(1))),
        "zipf": list(_zipf(days, random.Random(2))),
        "recorded": list(_recorded()),
    }


def _every(pause_s: float, model: str, days: int) -> Iterator[tuple[float, str]]:
    """One that always comes back a little after the timeout."""
    yield from ((n * pause_s + SWEEP_S / 2, model) for n in range(int(days * DAY / pause_s)))


def _office(days: int, dice: random.Random) -> Iterator[tuple[float, str]]:
    """Each hour of the working day has its model, asked for in a few visits; nights are quiet."""
    for day in range(days):
        for hour in range(8, 18):
            for _ in range(3):
                visit = day * DAY + hour * HOUR + dice.uniform(0, HOUR)
                yield from ((visit + n * dice.uniform(1, 20), "abcde"[hour % 5]) for n in range(8))


def _zipf(days: int, dice: random.Random) -> Iterator[tuple[float, str]]:
    """Six models of falling popularity, at random times: nothing to be learned."""
    at = 0.0
    while at < days * DAY:
        at += dice.expovariate(1 / 240.0)
        [model] = dice.choices("abcdef", weights=[1 / n for n in range(1, 7)])
        yield at, model


def _recorded() -> Iterator[tuple[float, str]]:
    """What one of two workers was asked for in eight minutes of `tests.soak`, a minute an hour."""
    with RECORDED.open() as file:
        yield from ((60 * float(row["seconds"]), row["model"]) for row in csv.DictReader(file))


def simulate(trace: Trace, policy: Policy) -> Score:
    """One policy over one trace."""
    return _Worker(policy).over(trace)


@dataclass
class _Worker:
    policy: Policy
    now: float = MONDAY
    score: Score = field(default_factory=Score)

    def __post_init__(self) -> None:
        self._device, self._host = Pool(DEVICE_BYTES), Pool(HOST_BYTES)
        family = Fake(
            Placement(device="cuda:0"), device=self._device, host=self._host, sleep=self._pass
        )
        self._slots = Slots(
            check=family.check,
            load=family.load,
            limits=Limits(slots=2, host_bytes=None if self.policy.host_tier else 0),
            ledger=Ledger(clock=self._clock, sleep=self._pass),
            unified=False,
            clock=self._clock,
        )
        self._uses: dict[str, Use] = defaultdict(Use)
        self._hours: Counter[tuple[str, int]] = Counter()
        self._left_at: dict[str, float] = {}

    def over(self, trace: Trace) -> Score:
        next_sweep = self.now + SWEEP_S
        for at, model in trace:
            while next_sweep < MONDAY + at:
                self._until(next_sweep)
                self._sweep()
                next_sweep += SWEEP_S
            self._until(MONDAY + at)
            self._request(model)
        return self.score

    def _request(self, model: str) -> None:
        asked_at = self.now
        before = {slot.model_id for slot in self._slots.view()}
        with self._slots.lease(_entry(model)):
            pass
        self.score.requests += 1
        self.score.loads += model not in before
        self.score.waited_s += self.now - asked_at
        self._uses[model].add(self.now)
        self._hours[model, usage.hour_of_week(self.now)] += 1

    def _sweep(self) -> None:
        view = View(
            slots=self._slots.view(),
            now=self.now,
            own={model: self._own(use) for model, use in self._uses.items()},
            device=Bytes(self._device.total, self._device.free),
            host=Bytes(self._host.total, self._host.free),
        )
        moves = sweep(view)
        if not self.policy.host_tier:
            moves = [replace(move, to=None) for move in moves]
        for move in self._slots.apply(moves):
            if move.to is None:
                self._left_at[move.model_id] = self.now
        if self.policy.foresight:
            self._foresee()

    def _own(self, use: Use) -> Timeouts:
        given = Timeouts() if self.policy.host_tier else Timeouts(vram_s=600.0, ram_s=600.0)
        return usage.adapted(given, list(use.pauses_s), most=3.0) if self.policy.adaptive else given

    def _foresee(self) -> None:
        """As `sweeping.foresee`: one model at most, none that left within the hour."""
        histograms = {
            model: tuple(self._hours[model, hour] for hour in range(usage.HOURS))
            for model in self._uses
        }
        wanted = [
            model
            for model in usage.wanted_next(histograms, at=self.now)
            if self.now - self._left_at.get(model, 0.0) > LEFT_ALONE_S
        ]
        view = View(slots=self._slots.view(), now=self.now)
        weights = dict.fromkeys(wanted, Footprint(WEIGHT, WEIGHT))
        if move := preload(view, slots=2, wanted=wanted, weights=weights):
            asked_at = self.now
            entry = _entry(move.model_id)
            self._slots.warm(entry, to=move.to or Tier.HOST, reason=move.reason)
            self.now = asked_at  # nobody waits for it

    def _clock(self) -> float:
        return self.now

    def _pass(self, seconds: float) -> None:
        self._until(self.now + seconds)

    def _until(self, then: float) -> None:
        """Time goes on, and what is held is paid for."""
        if then > self.now:
            self.score.device_byte_s += self._device.used * (then - self.now)
            self.score.host_byte_s += self._host.used * (then - self.now)
            self.now = then


def _entry(model: str) -> Entry:
    options = {"device_bytes": WEIGHT, "host_bytes": WEIGHT, "load_s": LOAD_S, "lift_s": LIFT_S}
    return Entry(model, backend="fake", memory_gb=WEIGHT / 2**30, options=options)
