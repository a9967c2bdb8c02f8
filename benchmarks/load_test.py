"""Beyond saturation: 1 to 64 clients who ask at their own pace, whether they were answered or not.

Each client sends at the moments of a Poisson process, and 64 of them three times what the worker
can do. Every request has a deadline. How many answers come in time (goodput), what becomes of
interactive requests beside bulk, and how soon is all as before once the load has gone?

The model is the fake one, which sleeps where another would compute, 40 ms for one row and 130 for
four: the senders, Valkey and the worker share one machine, and a model that computes would get
slower by what the senders take. What is measured is how requests wait, are served and are refused.
"""

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from math import ceil, isfinite
from pathlib import Path

from api_client import AsyncClient, Client, Settings
from api_client.wire.messages import Priority

from . import fixtures
from .open_loop import Ask, Level, Request, arrivals, level, offer, recovered_s
from .report import Options, Report
from .rounds import p99
from .stack import running

MODEL = "fake/ViT-B-32"
BATCH, PASS_S, ROW_S = 4, 0.01, 0.03
CATALOGUE = f"""
["{MODEL}"]
backend = "fake"
options = {{ dimension = 512, run_s = {PASS_S}, row_s = {ROW_S} }}
"""
TIMEOUT_S = 2.0

MOST_CLIENTS, MOST_OFFERED = 64, 3.0  # so many offer so many times the saturation
BEYOND = {43: "2x", 64: "3x"}
LEVEL_S, QUICK_LEVEL_S = 10.0, 6.0
SETTLING_S = 3.0  # of each level, until the queue is about as long as it gets
BESIDE_BULK = 4.0  # interactive requests a second
PROBING, PROBES_S = 0.25, 8.0  # of the saturation, and for how long
GIVE_UP_S = TIMEOUT_S + 10.0

SLACK_MS = 25.0
BOUND_MS = 2 * 1000 * (PASS_S + BATCH * ROW_S) + SLACK_MS  # two micro-batches, as for `latency`
RECOVERY_S = 2 * TIMEOUT_S  # the queue of one timeout goes while the probes lengthen it


@dataclass(frozen=True)
class Load:
    """What each client asks again and again.

    Attributes:
        clients: how many there are, level by level.
    """

    name: str
    priority: Priority
    items: int
    clients: tuple[int, ...]
    quick_clients: tuple[int, ...]

    @property
    def alone_ms(self) -> float:
        """One request's own forward passes."""
        return 1000 * (ceil(self.items / BATCH) * PASS_S + self.items * ROW_S)

    def of(self, client: AsyncClient) -> Ask:
        return partial(
            client.embed_texts,
            [fixtures.TEXT] * self.items,
            model=MODEL,
            priority=self.priority,
            timeout=TIMEOUT_S,
        )


INTERACTIVE = Load(
    "interactive",
    Priority.INTERACTIVE,
    items=1,
    clients=(1, 4, 8, 16, 20, 24, 32, 43, 64),
    quick_clients=(4, 20, 64),
)
BULK = Load(
    "bulk",
    Priority.BULK,
    items=2 * BATCH,
    clients=(1, 8, 16, 20, 24, 32, 43, 64),
    quick_clients=(20, 64),
)


@dataclass
class Curve:
    """What one load came to.

    Attributes:
        levels: by number of clients; items a second in place of requests.
        requests: all of them, and those beside them.
        beside: interactive requests while more bulk was offered than can be done.
        recovered_s: after the last level.
    """

    load: Load
    levels: dict[int, Level] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    beside: list[Request] = field(default_factory=list)
    recovered_s: float = 0.0


def run(options: Options) -> Report:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clipyard-") as folder:
        catalogue = Path(folder) / "catalogue.toml"
        catalogue.write_text(CATALOGUE)
        worker = {"catalogue": str(catalogue), "batch_size": str(BATCH)}
        with running(options.device, model=MODEL, **worker) as settings:
            saturation = _saturation(settings, items=96 if options.quick else 320)
            interactive, bulk = asyncio.run(_curves(settings, saturation, quick=options.quick))
    return _report(interactive, bulk, saturation, seconds=time.monotonic() - begun)


def _saturation(settings: Settings, *, items: int) -> float:
    """Items a second for a caller who always has more."""
    with Client(settings) as client:
        begun = time.monotonic()
        client.embed_texts([fixtures.TEXT] * items, model=MODEL)
        return items / (time.monotonic() - begun)


async def _curves(settings: Settings, saturation: float, *, quick: bool) -> tuple[Curve, Curve]:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(8))
    async with AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(AsyncClient(settings, asked_by="benchmark"))
            for _ in range(MOST_CLIENTS)
        ]
        interactive = await _curve(crowd, INTERACTIVE, saturation, quick=quick)
        return interactive, await _curve(crowd, BULK, saturation, quick=quick)


async def _curve(
    crowd: Sequence[AsyncClient], load: Load, saturation: float, *, quick: bool
) -> Curve:
    curve = Curve(load)
    rate = saturation / load.items
    each = rate * MOST_OFFERED / MOST_CLIENTS
    seconds = QUICK_LEVEL_S if quick else LEVEL_S
    for number in load.quick_clients if quick else load.clients:
        calls = [
            (at, load.of(client))
            for which, client in enumerate(crowd[:number])
            for at in arrivals(each, seconds, seed=f"{load.name} {number} {which}")
        ]
        beside = [
            (at, INTERACTIVE.of(crowd[0]))
            for at in (arrivals(BESIDE_BULK, seconds, seed=f"{number}") if load is BULK else ())
        ]
        probes = [
            (n / (PROBING * rate), load.of(crowd[0]))
            for n in range(round(PROBING * rate * PROBES_S) if number == MOST_CLIENTS else 0)
        ]
        requests, others, probed = await asyncio.gather(
            offer(calls, give_up_s=GIVE_UP_S),
            offer(beside, give_up_s=GIVE_UP_S),
            _after(seconds, probes),
        )
        curve.levels[number] = level(requests, since=SETTLING_S, until=seconds, items=load.items)
        curve.requests += [*requests, *others]
        if each * number > rate:
            curve.beside += [other for other in others if other.at >= SETTLING_S]
        curve.recovered_s = recovered_s(probed, bound_ms=2 * load.alone_ms + SLACK_MS)
    return curve


async def _after(seconds: float, probes: Sequence[tuple[float, Ask]]) -> list[Request]:
    await asyncio.sleep(seconds if probes else 0)
    return await offer(probes, give_up_s=GIVE_UP_S)


def _report(interactive: Curve, bulk: Curve, saturation: float, *, seconds: float) -> Report:
    ratios: dict[str, float] = {}
    goals: dict[str, float] = {}
    figures = {"saturation items/s": saturation, "timeout s": TIMEOUT_S}
    for curve in interactive, bulk:
        name = curve.load.name
        peak = max(one.goodput for one in curve.levels.values())
        for number in sorted(curve.levels.keys() & BEYOND.keys()):
            at = f"{name}: goodput at {BEYOND[number]} / peak"
            ratios[at], goals[at] = curve.levels[number].goodput / peak, 0.9
        back = f"{name}: {RECOVERY_S:g} s / recovery"
        ratios[back], goals[back] = RECOVERY_S / max(curve.recovered_s, 0.1), 1.0
        if isfinite(curve.recovered_s):  # JSON knows no infinity
            figures[f"{name}: recovery s"] = curve.recovered_s
    beside_ms = p99([request.ms for request in bulk.beside])
    ratios["interactive beside bulk: bound / p99"] = BOUND_MS / beside_ms
    goals["interactive beside bulk: bound / p99"] = 1.0
    requests = interactive.requests + bulk.requests
    refused = [request for request in requests if request.code]
    sound = [r for r in requests if not r.code or (r.typed and r.retryable)]
    ratios["answered or refused for now / sent"] = len(sound) / len(requests)
    goals["answered or refused for now / sent"] = 1.0
    return Report(
        name="load-test",
        seconds=seconds,
        ratios=ratios,
        goals=goals,
        figures=figures
        | {"interactive beside bulk: p99 ms": beside_ms, "the bound ms": BOUND_MS}
        | {"requests": len(requests), "sent late by at most ms": max(r.late_ms for r in requests)}
        | {f"ended with {code}": n for code, n in Counter(r.code for r in refused).items()},
        curves={curve.load.name: _rows(curve) for curve in (interactive, bulk)},
        note=f"2x and 3x are times the saturation; every request has {TIMEOUT_S:g} s; beside bulk "
        f"there are {BESIDE_BULK:g} interactive requests a second, which take their part",
    )


def _rows(curve: Curve) -> list[dict[str, float | None]]:
    return [
        {
            "clients": number,
            "offered items/s": one.offered,
            "goodput items/s": one.goodput,
            "p50 ms": one.p50_ms,
            "p99 ms": one.p99_ms,
        }
        for number, one in curve.levels.items()
    ]
