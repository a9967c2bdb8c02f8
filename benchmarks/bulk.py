"""End to end through Redis and Celery, against the best loop written by hand for the same cores."""

import tempfile
import time
from functools import partial
from itertools import cycle, islice
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from api_client import Client
from api_client.wire.messages import Priority
from worker import processors
from worker.backends.placement import best_precision

from . import fixtures
from .limit import BATCH, HandWritten, Plan, plans
from .report import Options, Report
from .rounds import medians, per_second, ratio
from .stack import stack

IMAGES = {(640, 480): 384, (4000, 3000): 192}  # of each size; fewer where they take longer
ROUND_S = 10.0
GOAL = 0.95
QUICK_IMAGES, QUICK_PLANS = 64, 2  # of the first size; the second is left out
WITHIN_S = 70.0  # of one size
PROMISING = 4  # plans of the hand-written loop that are tried twice
TRIED = 64  # images that each plan is tried with, and of our warm-up
# Images that the two best are tried with again: with fewer, a plan whose threads all wait for the
# first pictures looks worse than it is.
TRIED_AGAIN = 128


def run(options: Options) -> Report:
    begun = time.monotonic()
    dtype: torch.dtype = getattr(torch, best_precision(options.device))
    limit = HandWritten(device=options.device, dtype=dtype)
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    loops: list[str] = []
    with stack(options.device) as client, tempfile.TemporaryDirectory() as folder:
        for width, height in list(IMAGES)[:1] if options.quick else IMAGES:
            images = QUICK_IMAGES if options.quick else IMAGES[width, height]
            files = fixtures.photos(width, height)
            # Of a size the first run may take twice as long, and the first plan would look worse.
            limit.images_per_s(files, plans(processors.available())[0], images=TRIED)
            plan, per_s = _best_of_few(limit, files) if options.quick else _best(limit, files)
            turn = plan.runners * BATCH  # else some of its threads would be done before others
            # Two at least: the way into a round and out of it should not be most of it.
            turns = max(2, round(per_s * ROUND_S / turn))
            many = list(islice(cycle(files), min(images, turns * turn)))
            sink = Path(folder) / "vectors.npy"
            speeds = per_second(
                {
                    "limit": partial(_limit, limit, many, plan),
                    "ours": partial(_ours, client, many, sink),
                },
                within_s=0.0 if options.quick else WITHIN_S,
                warm_ups={"ours": partial(_ours, client, many[:TRIED], sink)},
            )
            size = f"{width}x{height}"
            ratios[size] = ratio(speeds, "ours", "limit")
            figures |= medians(speeds, f"{size} ")
            loops.append(f"{size} {plan}")
    return Report(
        name="bulk",
        seconds=time.monotonic() - begun,
        ratios=ratios,
        goals=dict.fromkeys(ratios, GOAL),
        figures=figures,
        note=f"{dtype} on {options.device}; the loops written by hand: {'; '.join(loops)}",
    )


def _limit(loop: HandWritten, files: list[Path], plan: Plan) -> int:
    return len(loop.embed(files, plan))


def _ours(client: Client, files: list[Path], sink: Path) -> int:
    # Said, as a call of a single message goes as an interactive one, and makes bulk brief.
    vectors = client.embed_images(files, model=fixtures.MODEL_ID, priority=Priority.BULK)
    np.save(sink, vectors)
    return len(vectors)


def _best(limit: HandWritten, files: list[Path]) -> tuple[Plan, float]:
    """The best of all plans, and its images/s.

    A machine may be half as fast for seconds, so a try that went badly may be the machine's.
    """
    tries = _tried(limit, files, plans(processors.available()), images=TRIED)
    speeds = dict(tries)
    promising = [plan for plan, _ in reversed(tries[:PROMISING])]
    for plan, speed in _tried(limit, files, promising, images=TRIED):
        speeds[plan] = max(speed, speeds[plan])
    near = sorted(speeds, key=speeds.__getitem__, reverse=True)[:2]
    return _tried(limit, files, near, images=TRIED_AGAIN)[0]


def _best_of_few(limit: HandWritten, files: list[Path]) -> tuple[Plan, float]:
    return _tried(limit, files, plans(processors.available())[:QUICK_PLANS], images=TRIED)[0]


def _tried(
    limit: HandWritten, files: list[Path], some: list[Plan], *, images: int
) -> list[tuple[Plan, float]]:
    """With their images/s, the best first."""
    speeds = [(plan, limit.images_per_s(files, plan, images=images)) for plan in some]
    return sorted(speeds, key=itemgetter(1), reverse=True)
