"""What a single text costs beside its forward pass: on an idle stack, and under bulk load."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from statistics import median
from typing import NamedTuple

import numpy as np

from api_client import Client
from api_client.wire.messages import Kind, Priority
from worker.backends.base import Model
from worker.backends.placement import resolve
from worker.backends.registry import Families
from worker.settings import WorkerSettings

from . import fixtures
from .report import Options, Report
from .rounds import in_turns, p99, timed
from .stack import stack

ADDED_MS = 3.0
SLACK_MS = 25.0
PAUSE_S = 0.005
FILL_S = 2.0  # until the worker is full of bulk
BATCH = 32  # the worker's setting


class Counts(NamedTuple):
    """Calls on an idle and on a busy stack, and batches that each thread is timed with."""

    idle: int
    busy: int
    micro_batches: int


FULL, QUICK = Counts(300, 100, 8), Counts(40, 10, 3)


def run(options: Options) -> Report:
    begun = time.monotonic()
    counts = QUICK if options.quick else FULL
    with stack(options.device) as client:
        ours = partial(client.embed_texts, fixtures.TEXT, model=fixtures.MODEL_ID)
        model = _model(options.device)
        bare, idle = _idle(model, ours, counts.idle)
        micro_batch_ms = _micro_batch(model, counts.micro_batches)
        with _bulk(client):
            busy = timed(ours, counts.busy)
    added_ms = median(idle) - median(bare)
    bound_ms = 2 * micro_batch_ms + SLACK_MS
    busy_p99_ms = p99(busy)
    return Report(
        name="latency",
        seconds=time.monotonic() - begun,
        ratios={
            f"idle: {ADDED_MS:g} ms / added at p50": ADDED_MS / max(added_ms, 1e-3),
            "busy: bound / p99": bound_ms / busy_p99_ms,
        },
        goals={f"idle: {ADDED_MS:g} ms / added at p50": 1.0, "busy: bound / p99": 1.0},
        figures={
            "bare forward p50 ms": median(bare),
            "idle p50 ms": median(idle),
            "idle p99 ms": p99(idle),
            "busy p50 ms": median(busy),
            "busy p99 ms": busy_p99_ms,
            "micro-batch ms": micro_batch_ms,
            "busy bound ms": bound_ms,
        },
        note="the bound under bulk load is two micro-batches of the worker plus 25 ms",
    )


def _model(device: str) -> Model:
    settings = WorkerSettings.read(
        device=device,
        models_dir=fixtures.models_dir(),
        cache_dir=fixtures.folder() / "cache",
        offline=True,
    )
    placement = resolve(settings)
    families = Families(placement)
    model = families.load(families.catalogue()[fixtures.MODEL_ID])
    model.lift()
    return model


def _idle(model: Model, ours: Callable[[], object], calls: int) -> tuple[list[float], list[float]]:
    """ms of tokens and forward pass of one text in this process, and of the same through the stack.

    In turns, and after a pause: both find the machine as an idle one is, with cold caches.
    """

    def bare() -> object:
        return model.run(Kind.TEXT, [model.prepare_text(fixtures.TEXT)])

    return in_turns(bare, ours, calls=calls, pause_s=PAUSE_S)


def _micro_batch(model: Model, batches: int) -> float:
    """Pictures on every core at once, as the worker runs them while texts come too, ms."""
    rows = min(BATCH, model.traits.brief)
    size = model.traits.input_size or 1
    batch = [np.zeros((size, size, 3), np.uint8)] * rows
    runners = model.traits.parallel
    with ThreadPoolExecutor(runners) as pool:
        work = [
            pool.submit(timed, lambda: model.run(Kind.IMAGE, batch), batches)
            for _ in range(runners)
        ]
        return median(ms for one in work for ms in one.result())


@contextmanager
def _bulk(client: Client) -> Iterator[None]:
    """More bulk than the worker can do, for as long as the block lasts."""
    stop = threading.Event()

    def send() -> None:
        files = cycle(fixtures.photos(640, 480))
        work = client.stream_images(files, model=fixtures.MODEL_ID, priority=Priority.BULK)
        for _ in work:
            if stop.is_set():
                break  # what is on the way is withdrawn

    with ThreadPoolExecutor(1) as pool:
        sending = pool.submit(send)
        try:
            time.sleep(FILL_S)
            yield
        finally:
            stop.set()
    sending.result()  # had it ended early, an idle stack would have been measured
