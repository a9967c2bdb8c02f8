"""Texts of all lengths in whatever order, against the same ones sorted by length beforehand."""

import time

import numpy as np

from api_client import Client
from api_client.wire.messages import Priority

from . import fixtures
from .report import Options, Report
from .rounds import Contestant, medians, per_second, ratio
from .stack import stack

# Words of a text: median, and the spread of its logarithm; as in captions, and in whatever people
# index. The longest are cut by the model.
CORPORA = {"captions": (10, 0.5), "titles and passages": (20, 0.9)}
LONGEST = 70
TEXTS, QUICK_TEXTS, WARM_UPS, ROUNDS = 512, 128, 64, 3
WITHIN_S = 110.0  # for each corpus
GOAL = 0.90
SEED = 7
WORDS = ("a", "the", "red", "small", "old", "dog", "beach", "light", "street", "over", "with", "of")


def run(options: Options) -> Report:
    begun = time.monotonic()
    quick = options.quick
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {}
    with stack(options.device) as client:
        for name, (median, spread) in CORPORA.items():
            speeds = per_second(
                _ways(client, _texts(QUICK_TEXTS if quick else TEXTS, median, spread)),
                within_s=0.0 if quick else WITHIN_S,
                at_least=1 if quick else ROUNDS,
                warm_ups=_ways(client, _texts(WARM_UPS, median, spread)),
            )
            ratios[f"{name}: any order / sorted"] = ratio(speeds, "any order", "sorted")
            figures |= medians(speeds, f"{name}: ", what="texts")
    return Report(
        name="texts",
        seconds=time.monotonic() - begun,
        ratios=ratios,
        goals=dict.fromkeys(ratios, GOAL),
        figures=figures,
    )


def _texts(count: int, median: float, spread: float) -> list[str]:
    random = np.random.default_rng(SEED)
    words = random.lognormal(np.log(median), spread, count).clip(1, LONGEST).astype(int)
    return [" ".join(random.choice(WORDS, number)) for number in words]


def _ways(client: Client, texts: list[str]) -> dict[str, Contestant]:
    def embed(texts: list[str]) -> int:
        rows = client.embed_texts(texts, model=fixtures.MODEL_ID, priority=Priority.BULK)
        return len(rows)

    by_length = sorted(texts, key=lambda text: len(text.split()))
    return {"any order": lambda: embed(texts), "sorted": lambda: embed(by_length)}
