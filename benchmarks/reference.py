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

BATCH = 32
# Of each size, where the CPU computes in bfloat16.
AUTO_GOALS = {(640, 480): 3.3, (4000, 3000): 7.5}
EXACT_GOAL = 1.0
USUAL, OURS = 64, 256
QUICK, QUICK_WARM_UPS = 32, 8  # pictures of the first size; the second is left out
WITHIN_S = 60.0  # of one size and kind


class Usual:
    """The loop of most notebooks."""

    def __init__(self, device: str) -> None:
        architecture, _, _ = fixtures.MODEL_ID.partition("/")
        self._device = device
        self._model, _, self._preprocess = open_clip.create_model_and_transforms(
            architecture, pretrained=str(fixtures.weights()), device=device
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
    sizes = list(AUTO_GOALS)[:1] if options.quick else list(AUTO_GOALS)
    in_bfloat16 = best_precision(options.device) == "bfloat16"
    ratios: dict[str, float] = {}
    goals: dict[str, float] = {}
    figures: dict[str, float] = {}
    kinds = {"auto": {}, "float32 exact": {"precision": "float32", "decode": "exact"}}
    for kind, settings in kinds.items():
        with stack(options.device, **settings) as client:
            for width, height in sizes:
                files = fixtures.photos(width, height)
                few = list(islice(cycle(files), QUICK if options.quick else USUAL))
                warm_ups = QUICK_WARM_UPS if options.quick else None
                is_short = options.quick or kind != "auto"
                many = few if is_short else list(islice(cycle(files), OURS))
                speeds = per_second(
                    {"usual": partial(usual.embed, few), "ours": partial(_ours, client, many)},
                    within_s=0.0 if options.quick else WITHIN_S,
                    warm_ups={
                        "usual": partial(usual.embed, few[:warm_ups]),
                        "ours": partial(_ours, client, many[:warm_ups]),
                    },
                )
                label = f"{width}x{height} {kind}"
                ratios[label] = ratio(speeds, "ours", "usual")
                if kind != "auto":
                    goals[label] = EXACT_GOAL
                elif in_bfloat16:
                    goals[label] = AUTO_GOALS[width, height]
                figures |= medians(speeds, f"{label}: ")
    return Report("reference", time.monotonic() - begun, ratios, goals, figures)


def _ours(client: Client, files: Sequence[Path]) -> int:
    return len(client.embed_images(files, model=fixtures.MODEL_ID))
