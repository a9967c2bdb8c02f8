"""One real stack for all tests that want one: Valkey, a worker process, beat; and clients of it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from api_client import Client, Settings
from api_client.stack.up import Options, Stack, temporary_stack

CATALOGUE = """
["fake/vision"]
backend = "fake"
options = { dimension = 16, fail_on = "break", nan_on = "nan", context_chars = 20 }

["fake/text"]
backend = "fake"
kinds = ["text"]

["fake/broken"]
backend = "fake"
options = { fail_load = "the weights of fake/broken are made of sand" }

["tiny/ViT-B-32"]
architecture = "ViT-B-32"
checkpoint = "ViT-B-32.safetensors"
dimension = 512
input_size = 224

["shapes/seeded"]
architecture = "shapes-seeded/open_clip_config.json"
checkpoint = "shapes-seeded/open_clip_model.safetensors"
dimension = 64
input_size = 64
"""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a catalogue and a seeded checkpoint of the true ViT-B-32."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    from tools import train_shapes

    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(7)
    model = open_clip.create_model("ViT-B-32", pretrained=None)
    save_file(model.state_dict(), folder / "ViT-B-32.safetensors")
    by_tag = folder / "by-tag" / "ViT-B-32"
    by_tag.mkdir(parents=True)
    save_file(model.state_dict(), by_tag / "openai.safetensors")  # QuickGELU has no weights
    seeded = train_shapes.build(folder / "shapes-seeded", seed=7)
    train_shapes.save(seeded.model, folder / "shapes-seeded")
    (folder / "catalogue.toml").write_text(CATALOGUE)
    return folder


@pytest.fixture(scope="session")
def running(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The stack. Exact decoding in float32, so that vectors can be held against open_clip's."""
    home = tmp_path_factory.mktemp("stack")
    env = {
        "CLIPYARD_CATALOGUE": str(models / "catalogue.toml"),
        "CLIPYARD_MODELS_DIR": str(models / "by-tag"),
        "CLIPYARD_CACHE_DIR": str(home / "cache"),
        "CLIPYARD_IMAGE_ROOTS": json.dumps([str(tmp_path_factory.getbasetemp())]),
        "CLIPYARD_SINK_ROOTS": json.dumps([str(tmp_path_factory.getbasetemp())]),
        "CLIPYARD_JOBS_DIR": str(home / "jobs"),
        "CLIPYARD_TEND_INTERVAL_S": "1",
        "CLIPYARD_DEFAULT_MODEL": "fake/vision",
        "CLIPYARD_PRECISION": "float32",
        "CLIPYARD_DECODE": "exact",
        "CLIPYARD_OFFLINE": "true",
    }
    options = Options(home=home, devices=("cpu",), env=env)
    with temporary_stack(options, tell=print) as stack:
        stack.supervisor.wait_ready(within_s=90)
        yield stack


@pytest.fixture
def client_of(running: Stack) -> Iterator[Callable[..., Client]]:
    """Makes clients of the stack, with other settings where a test wants them."""
    made: list[Client] = []

    def make(**given: Any) -> Client:
        made.append(Client(Settings.read(redis_url=running.url, **given), asked_by="test"))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(client_of: Callable[..., Client]) -> Client:
    return client_of()
