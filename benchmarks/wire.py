"""Bytes and time of one answer of 64 vectors, against JSON lists."""

import json
import time
from collections.abc import Callable

import numpy as np

from api_client.wire.codec import Vectors, pack_answer, unpack_answer
from api_client.wire.messages import Embedded

from .report import Options, Report

ROWS, DIMENSION = 64, 768


def run(options: Options) -> Report:
    start = time.perf_counter()
    vectors = np.random.default_rng(0).standard_normal((ROWS, DIMENSION), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    answer = Embedded(model="ViT-L-14/openai", dimension=DIMENSION, fingerprint="f", items=ROWS)

    def ours() -> int:
        frame = pack_answer(answer, vectors)
        unpack_answer(frame)
        return len(frame)

    def lists() -> int:
        text = json.dumps({"vectors": vectors.tolist()})
        back: Vectors = np.asarray(json.loads(text)["vectors"], np.float32)
        assert back.shape == vectors.shape
        return len(text.encode())

    times = 20 if options.quick else 100
    our_s, list_s = _fastest_s(ours, 10 * times), _fastest_s(lists, times)
    return Report(
        name="wire",
        seconds=time.perf_counter() - start,
        ratios={"smaller": lists() / ours(), "faster": list_s / our_s},
        goals={"smaller": 5.0, "faster": 50.0},
        figures={
            "our_bytes": ours(),
            "list_bytes": lists(),
            "our_us": our_s * 1e6,
            "list_us": list_s * 1e6,
        },
    )


def _fastest_s(action: Callable[[], int], times: int) -> float:
    """The fastest of many: on a shared machine the others measure somebody else's work."""
    fastest = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        action()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest
