"""python -m tests.soak --minutes N: a stack at moderate work, and whether anything of it grows."""

import argparse
import json
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from api_client.wire.codec import pack_record
from api_client.wire.errors import ClipyardError
from api_client.wire.messages import Event, EventKind
from tests import reliability
from tests.chaos import inputs
from tests.chaos.callers import Callers, calls
from tests.chaos.jobs import Jobs
from tests.chaos.run import MODELS, READY_S, SETTLE_S, unaccounted
from tests.chaos.truth import Truth
from tests.chaos.watch import Watch
from tests.chaos.world import FILE_MODEL, World
from tests.chaos.world import replace as put
from worker.tracker import EVENTS_KEPT

from . import picture, samples, slopes

ANSWERS_KEPT_S = "60"
WARM_SHARE = 0.5  # of the run; not counted: pools, caches and the allocator fill up
THREADS = 4
LEAST = 5  # points of a series
CHURN_S = 20.0  # between two changes to the models
ITEMS_PER_S = 20.0
JOB_ITEMS, JOB_EVERY_S = 500, 60.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pace", type=float, default=1.0, help="times the usual work")
    parser.add_argument("--keep", action="store_true", help="in docs/reliability")
    given = vars(parser.parse_args())
    keep = given.pop("keep")
    result, graphs = soak(**given)
    if keep:
        reliability.keep("soak", result)
        graphs.save(reliability.FOLDER / "soak.png", optimize=True)
    print(json.dumps(result | {"series": len(result["series"])}))
    return not result["ok"]


def soak(
    *, minutes: float, workers: int, seed: int, pace: float
) -> tuple[dict[str, Any], Image.Image]:
    """The line of JSON, and the picture."""
    with tempfile.TemporaryDirectory(prefix="clipyard-soak-") as folder:
        home = Path(folder)
        versions = inputs.checkpoints(home / "versions")
        with World(
            home / "world",
            workers=workers,
            versions=versions,
            pictures=inputs.pictures(seed),
            visibility_s=120.0,
            env={"CLIPYARD_ANSWER_TTL_S": ANSWERS_KEPT_S},
        ) as world:
            return _soak(world, minutes * 60, seed, pace)


def _soak(
    world: World, over_s: float, seed: int, pace: float
) -> tuple[dict[str, Any], Image.Image]:
    catalogue = world.models / "catalogue.toml"
    truth = Truth(catalogue, file_model=FILE_MODEL, versions=world.versions, used=MODELS)
    world.supervisor.wait_ready(within_s=READY_S)
    _fill_the_event_stream(world)
    items, jobs = int(over_s * pace * ITEMS_PER_S), max(1, int(over_s * pace / JOB_EVERY_S))
    todo = calls(seed, items, over_s=over_s, models=MODELS)
    callers = Callers(world, truth, todo, threads=THREADS)
    bulk = Jobs(
        world, truth, items=jobs * JOB_ITEMS, each=JOB_ITEMS, over_s=over_s, model="fake/vision"
    )
    stop = threading.Event()
    churn = threading.Thread(target=_churn, args=(world, seed, stop, CHURN_S / pace))
    with Watch(world) as watch, samples.Sampler(world, watch) as sampler:
        for part in (callers, bulk, churn):
            part.start()
        waiting = callers.join(over_s + SETTLE_S)
        over = bulk.join(SETTLE_S)
        stop.set()
        churn.join()
    account, covered = callers.account, bulk.coverage
    warm_s = over_s * WARM_SHARE
    found = {
        name: slopes.slope(*zip(*counted, strict=True))
        for name, points in sampler.series.items()
        if len(counted := [(s, v) for s, v in points if s >= warm_s]) >= LEAST
    }
    bounds = {name: samples.BOUNDS[name.partition(": ")[2]] for name in found}
    growing = [name for name, one in found.items() if one.grows(bounds[name])]
    told = {name: _told(one, bounds[name]) for name, one in found.items()}
    lost = account.lost + account.stuck + covered.lost + covered.stuck + waiting + (not over)
    open_ones = unaccounted(account, covered, of=items + jobs * JOB_ITEMS)
    wrong = [*account.told, *covered.told, *watch.told, *open_ones][:20]
    doubled = account.doubled + covered.doubled
    result = {
        "minutes": over_s / 60,
        "pace": pace,
        "seed": seed,
        "items": account.asked + covered.items,
        "lost": lost,
        "doubled": doubled,
        "wrong": wrong,
        "growing": growing,
        "slopes": {
            name: {key: float(f"{value:.3g}") for key, value in asdict(one).items()}
            | {"bound": bounds[name]}
            for name, one in found.items()
        },
        "series": {
            name: [[round(s), float(f"{value:.5g}")] for s, value in points]
            for name, points in sampler.series.items()
        },
        "ok": bool(found) and not (growing or lost or doubled or wrong),
    }
    return result, picture.draw(sampler.series, told, warm_s=warm_s)


def _told(one: slopes.Slope, bound: float) -> str:
    return f"{one.per_hour:+.2g} an hour ({one.low:+.2g} to {one.high:+.2g}); at most {bound:g}"


def _fill_the_event_stream(world: World) -> None:
    """What is bounded begins at its bound, or its way there would look like growth."""
    event = Event(kind=EventKind.LOADED, model="fake/text", reason="asked for", at=time.time())
    with world.store.pipeline(transaction=False) as pipe:
        for _ in range(EVENTS_KEPT):
            pipe.xadd(world.keys.events, pack_record(event))
        pipe.execute()


def _churn(world: World, seed: int, stop: threading.Event, every_s: float) -> None:
    """Models come and go: switched, unloaded, and read again from a file that changes."""
    dice = random.Random(seed)
    with world.client() as client:
        for turn in count():
            if stop.wait(every_s):
                return
            with suppress(ClipyardError):
                match turn % 4:
                    case 0:
                        client.switch(dice.choice(MODELS))
                    case 1:
                        client.unload(scope="everything")
                    case 2:
                        put(world.checkpoint, dice.choice(world.versions))
                    case 3:
                        client.set_knobs({"slots": 2})


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # with everything it started
    sys.exit(main())
