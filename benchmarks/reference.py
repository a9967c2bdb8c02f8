"""Against the usual loop: open_clip's preprocessing one by one, float32, batches of 32."""

import time
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path

import open_clip
import torch
from PIL import Image

from api_client import Client
from worker.backends.placement import best_precision

from . import fixtures
from .report import Options, Report
from .rounds import medians, per_second, ratio
from .stack import stack

SIZES = ((640, 480), (4000, 3000))
BATCH = 32
AUTO_GOALS = {"640x480": 3.3, "4000x3000": 7.5}  # where the CPU computes in bfloat16
EXACT_GOAL = 1.0
USUAL, OURS = 64, 256
WITHIN_S = 60.0  # of one size and kind


class Usual:
    """The loop of most notebooks."""

    def __init__(self, device: str) -> None:
        architecture, _, _ = fixtures.MODEL_ID.partition("/")
        file = fixtures.models_dir() / f"{fixtures.MODEL_ID}.safetensors"
        self._device = device
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(
            architecture, pretrained=str(file), device=device
        )
        self._model.eval()

    @torch.no_grad()
    def embed(self, files: Sequence[Path]) -> int:
        for at in range(0, len(files), BATCH):
            pixels = [self._preprocess(Image.open(file)) for file in files[at : at + BATCH]]
            self._model.encode_image(torch.stack(pixels).to(self._device), normalize=True).cpu()
        return len(files)


def run(options: Options) -> Report:
    begun = time.monotonic()
    usual = Usual(options.device)
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    kinds = {"auto": {}, "float32 exact": {"precision": "float32", "decode": "exact"}}
    for kind, settings in kinds.items():
        with stack(options.device, **settings) as client:
            for width, height in SIZES:
                files = fixtures.photos(width, height)
                few = list(islice(cycle(files), 32 if options.quick else USUAL))
                many = list(islice(cycle(files), 64 if options.quick else OURS))
                if kind != "auto":
                    many = few
                speeds = per_second(
                    {
                        "usual": partial(usual.embed, few),
                        "ours": partial(_ours, client, many),
                    },
                    within_s=0.0 if options.quick else WITHIN_S,
                )
                label = f"{width}x{height} {kind}"
                ratios[label] = ratio(speeds, "ours", "usual")
                figures |= medians(speeds, f"{label}: ")
    goals = {f"{size} float32 exact": EXACT_GOAL for size in AUTO_GOALS}
    if best_precision(options.device) == "bfloat16":
        goals |= {f"{size} auto": goal for size, goal in AUTO_GOALS.items()}
    return Report("reference", time.monotonic() - begun, ratios, goals, figures)


def _ours(client: Client, files: Sequence[Path]) -> int:
    return len(client.embed_images(files, model=fixtures.MODEL_ID))
