"""A bulk job with the real model beside requests for the same pictures: what its books cost."""

import json
import time
from itertools import count, cycle, islice
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from api_client import Client
from api_client.wire.jobs import JobState

from . import fixtures
from .report import Options, Report
from .rounds import medians, per_second, ratio
from .stack import stack

IMAGES, QUICK_IMAGES = 1024, 96
WITHIN_S, PATIENCE_S = 240.0, 600.0
GOAL = 0.95


def run(options: Options) -> Report:
    begun = time.monotonic()
    images = QUICK_IMAGES if options.quick else IMAGES
    folder = Path(mkdtemp(prefix="job-", dir=fixtures.folder()))
    try:
        files = _links(folder / "pictures", images)
        numbers = count()
        with stack(
            options.device, sink_roots=json.dumps([str(folder)]), jobs_dir=str(folder / "books")
        ) as client:
            speeds = per_second(
                {
                    "requests": lambda: _requests(client, files),
                    "job": lambda: _job(client, folder, f"sink-{next(numbers)}"),
                },
                within_s=0.0 if options.quick else WITHIN_S,
                warm_ups={"requests": lambda: _requests(client, files[:QUICK_IMAGES])},
            )
    finally:
        rmtree(folder)
    name = "job / requests"
    return Report(
        name="reembed",
        seconds=time.monotonic() - begun,
        ratios={name: ratio(speeds, "job", "requests")},
        goals={name: GOAL},
        figures=medians(speeds),
        note=f"{images} pictures of 640x480; the job from its submission to its report",
    )


def _links(folder: Path, images: int) -> list[Path]:
    """As many names for the fixtures' pictures: every item of a job has its own."""
    folder.mkdir()
    links = []
    for number, photo in enumerate(islice(cycle(fixtures.photos(640, 480)), images)):
        links.append(folder / f"{number:05}.jpg")
        links[-1].hardlink_to(photo)
    return links


def _requests(client: Client, files: list[Path]) -> int:
    rows = client.embed_images(files, model=fixtures.MODEL_ID, priority="bulk", timeout=PATIENCE_S)
    return len(rows)


def _job(client: Client, folder: Path, sink: str) -> int:
    job = client.reembed(folder / "pictures", sink=folder / sink, model=fixtures.MODEL_ID)
    status = job.wait()
    assert status.state is JobState.COMPLETE, status
    return status.done
