"""The whole stack around a benchmark: Valkey, beat, one worker with the seeded ViT-B-32."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from api_client import Client, Settings
from api_client.stack.up import Options, temporary_stack

from . import fixtures

READY_S = 120.0


@contextmanager
def stack(device: str, *, model: str = fixtures.MODEL_ID, **settings: str) -> Iterator[Client]:
    """A client of a stack whose model is loaded and has run once, see `running`."""
    models_dir = str(fixtures.models_dir(model.partition("/")[0]))
    with (
        running(device, model=model, models_dir=models_dir, **settings) as reached,
        Client(reached, asked_by="benchmark") as client,
    ):
        yield client


@contextmanager
def running(device: str, *, model: str, **settings: str) -> Iterator[Settings]:
    """How to reach a stack whose model is loaded and has run once.

    Args:
        settings: of the worker, by field name.
    """
    given = {
        "image_roots": json.dumps([str(fixtures.folder())]),
        "cache_dir": str(fixtures.folder() / "cache"),
        "default_model": model,
        "offline": "true",
        **settings,
    }
    env = {f"CLIPYARD_{name.upper()}": value for name, value in given.items()}
    with tempfile.TemporaryDirectory(prefix="clipyard-") as home:
        options = Options(home=Path(home), devices=(device,), env=env)
        with temporary_stack(options, tell=lambda line: None) as up:
            up.supervisor.wait_ready(within_s=READY_S)
            reached = Settings.read(redis_url=up.url)
            with Client(reached, asked_by="benchmark") as client:
                client.load(model)
                client.embed_images(fixtures.photos(*fixtures.SIZES[0]), model=model)
                client.embed_texts("a photo", model=model)
            yield reached
