"""One run: a world, its callers and jobs, the faults, and what is left when all is quiet again."""

import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from api_client.wire.errors import Quarantined

from . import inputs, plan, remains
from .callers import Account, Callers, calls
from .faults import Chaos
from .invariants import recoveries_s
from .jobs import Coverage, Jobs
from .report import Report
from .truth import Truth
from .watch import Watch
from .world import FILE_MODEL, World

READY_S = 90.0  # for a start on a busy machine
BACK_S = 30.0  # for all workers, after the last fault
SETTLE_S = 300.0  # for what is still asked for
THREADS = 6
LEAST_JOBS = 4
MODELS = ("fake/text", "fake/words", "fake/vision", FILE_MODEL)
REAL = "tiny/ViT-B-32"
TOLD = 40  # violations in a report


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    faults: int
    items: int
    seed: int
    model: str = "fake/vision"
    workers: int = 3
    gap_s: float = 2.4
    longest_s: float = 60.0
    visibility_s: float = 120.0
    job_items: int = 5000
    keep_logs: Path | None = None


def run(options: Options, *, tell: Callable[[str], None] = lambda line: None) -> Report:
    """The whole of it; takes about `faults * gap_s` seconds and a minute."""
    with tempfile.TemporaryDirectory(prefix="clipyard-chaos-") as folder:
        home = Path(folder)
        world = World(
            home / "world",
            workers=options.workers,
            versions=inputs.checkpoints(home / "versions"),
            pictures=inputs.pictures(options.seed),
            visibility_s=options.visibility_s,
            real=inputs.seeded_real(home / "versions") if options.model == REAL else None,
        )
        try:
            with world:
                report = _Run(world, options).report(tell)
            left = [" ".join(process.cmdline()) for process in world.processes()]
            report.violations += [f"a process is left: {one[:200]}" for one in left]
            return report
        finally:
            if options.keep_logs is not None:
                options.keep_logs.mkdir(parents=True, exist_ok=True)
                for log in (world.folder / "logs").glob("*.log"):
                    log.rename(options.keep_logs / log.name)


class _Run:
    """Everybody who takes part, on a world that is ready."""

    def __init__(self, world: World, options: Options) -> None:
        self._world, self._options = world, options
        self._faults = plan.draw(
            options.seed,
            options.faults,
            workers=world.workers,
            gap_s=options.gap_s,
            longest_s=options.longest_s,
            kinds=world.kinds,
        )
        self._over_s = max((fault.over_s for fault in self._faults), default=0.0)
        models = MODELS
        if options.model not in models:
            models = (options.model, options.model, "fake/text", "fake/vision")
        truth = Truth(
            world.models / "catalogue.toml",
            file_model=FILE_MODEL,
            versions=world.versions,
            used=set(models),
        )
        in_jobs = options.items // 2
        todo = calls(options.seed, options.items - in_jobs, over_s=self._over_s, models=models)
        self._callers = Callers(world, truth, todo, threads=THREADS)
        self._jobs = Jobs(
            world,
            truth,
            items=in_jobs,
            each=min(options.job_items, max(1, in_jobs // LEAST_JOBS)),
            over_s=self._over_s,
            model=options.model,
        )
        self._chaos = Chaos(world, self._faults, clock=time.monotonic)
        world.supervisor.wait_ready(within_s=READY_S)
        until(lambda: not remains.away(world), READY_S)

    def report(self, tell: Callable[[str], None]) -> Report:
        world, begun = self._world, time.monotonic()
        tell(f"{len(self._faults)} faults in {self._over_s:.0f} s, {self._options.items} items")
        with Watch(world) as watch:
            self._callers.start()
            self._jobs.start()
            self._chaos.run(threading.Event())
            mended = time.monotonic()
            tell(f"the last fault is mended after {mended - begun:.0f} s")
            back_s = until(lambda: not remains.away(world), BACK_S)
            away, silent = remains.away(world), remains.not_answering(world)
            waiting = self._callers.join(SETTLE_S)
            jobs_are_over = self._jobs.join(SETTLE_S)
            until(lambda: watch.was_answered_since(mended), BACK_S)
            watched_until = time.monotonic()
            tell(f"all is answered after {watched_until - begun:.0f} s")
        # Once nobody looks any more whether they answer, and before they are asked once more.
        gone_s = until(lambda: not remains.held(world), self._options.visibility_s * 2 + 30)
        held = remains.held(world)
        until(lambda: not remains.leased(world), BACK_S)
        account, covered = self._callers.account, self._jobs.coverage
        violations = [
            *(f"not ready again: {one}" for one in away),
            *silent,
            *(f"a message is left: {one}" for one in held),
            *sorted(watch.told),
            *self._chaos.failed,
            *account.told,
            *covered.told,
            *unaccounted(account, covered, of=self._options.items),
            *remains.violations(world),
        ]
        over = [at for at, _ in self._chaos.over]
        recoveries = recoveries_s(over, watch.probes, end=watched_until)
        seconds = [took for _, took in account.seconds]
        return Report(
            faults=dict(Counter(str(fault.kind) for fault in self._chaos.done)),
            items=account.asked + covered.items,
            lost=account.lost + covered.lost,
            doubled=account.doubled + covered.doubled,
            stuck=account.stuck + covered.stuck + waiting + (not jobs_are_over) + len(away),
            slowest_recovery_s=round(max(recoveries, default=0.0), 2),
            seed=self._options.seed,
            violations=violations[:TOLD],
            figures={
                "model": self._options.model,
                "workers": self._options.workers,
                "seconds": round(time.monotonic() - begun, 1),
                "recovery_median_s": round(float(np.median(recoveries or [0])), 2),
                "workers_back_s": round(back_s, 1),
                "messages_gone_s": round(gone_s, 1),
                "calls": len(seconds),
                "call_median_s": round(float(np.median(seconds or [0])), 3),
                "call_slowest_s": round(max(seconds, default=0.0), 1),
                "answered": account.answered,
                "refused": account.refused,
                "jobs": covered.jobs,
                "in_jobs": covered.items,
                "recorded_as_failed": covered.failed,
                "told_to_callers": dict(account.codes + covered.codes),
                "set_aside": (account.codes + covered.codes)[Quarantined.code],
                "workers_started": world.started(),
            },
            not_covered=[str(kind) for kind in plan.Kind if kind not in world.kinds],
        )


def unaccounted(account: Account, covered: Coverage, *, of: int) -> list[str]:
    """Items that nobody asked for, or of whose end nobody knows."""
    ended = account.answered + account.refused + account.lost + account.stuck
    asked, told = account.asked + covered.items, []
    if ended != account.asked:
        told.append(f"calls asked for {account.asked} items, of which {ended} ended")
    if asked != of:
        told.append(f"{asked} items were asked for, of {of}")
    return told


def until(condition: Callable[[], bool], within_s: float) -> float:
    """Waits for what other processes do; gives how long."""
    begun = time.monotonic()
    while not condition() and time.monotonic() - begun < within_s:
        time.sleep(0.2)
    return time.monotonic() - begun
