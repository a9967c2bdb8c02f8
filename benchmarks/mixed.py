"""A thousand single-image tasks of eight clients, against the same images in full batches."""

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

from api_client import Client
from api_client.wire.messages import Priority

from . import fixtures
from .report import Options, Report
from .rounds import Contestant, medians, per_second, ratio
from .stack import stack

CLIENTS = 8
# Tasks of a warm-up and of a round. Cores wait as a round begins and ends, so fewer tasks a round
# would count that more often than a thousand in one go do.
WARM_UPS, TASKS = 128, 1000
QUICK_WARM_UPS, QUICK_TASKS = 32, 96
WITHIN_S = 240.0
GOAL = 0.90


def run(options: Options) -> Report:
    begun = time.monotonic()
    quick = options.quick
    files = list(islice(cycle(fixtures.photos(640, 480)), TASKS))
    with stack(options.device) as client, ThreadPoolExecutor(CLIENTS) as pool:

        def singles(files: list[Path]) -> int:
            shares = [files[number::CLIENTS] for number in range(CLIENTS)]
            return sum(pool.map(lambda share: _one_by_one(client, share), shares))

        def ways(tasks: int) -> dict[str, Contestant]:
            some = files[:tasks]
            return {
                "batches": lambda: len(client.embed_images(some, model=fixtures.MODEL_ID)),
                "singles": lambda: singles(some),
            }

        speeds = per_second(
            ways(QUICK_TASKS if quick else TASKS),
            within_s=0.0 if quick else WITHIN_S,
            warm_ups=ways(QUICK_WARM_UPS if quick else WARM_UPS),
        )
    return Report(
        name="mixed",
        seconds=time.monotonic() - begun,
        ratios={"singles / batches": ratio(speeds, "singles", "batches")},
        goals={"singles / batches": GOAL},
        figures=medians(speeds),
    )


def _one_by_one(client: Client, files: list[Path]) -> int:
    """One message per image, a window of them on the way."""
    items = client.stream_images(
        files, model=fixtures.MODEL_ID, batch_size=1, priority=Priority.INTERACTIVE
    )
    return sum(item.vector is not None for item in items)
