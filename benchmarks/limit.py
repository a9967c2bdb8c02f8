"""The best loop that a specialist would write by hand for one machine and one model.

No queue, no worker, no errors: a pool decodes ahead, threads run the model. Same decoder, same
precision and same batch as the worker; how many threads do what is tried out first.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from threading import Lock

import numpy as np
import open_clip
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch.nn.functional import interpolate
from torch.utils.dlpack import from_dlpack

from worker.backends.placement import name_kernels
from worker.datapath import decoding

from . import fixtures

BATCH = 32
EDGE = 224
LIMITS = decoding.Limits(pixels=10**8, scales=True)
MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD

Embed = Callable[[Sequence[Path]], NDArray[np.float32]]


@dataclass(frozen=True)
class Plan:
    """Who does what: decoding threads, threads that run the model, and cores for each of these."""

    decoders: int
    runners: int
    cores: int

    def __str__(self) -> str:
        return f"{self.decoders} decode, {self.runners} x {self.cores} run"


def plans(cores: int) -> list[Plan]:
    """Those worth a try, the most promising ones first."""
    shares = dict.fromkeys([(1, cores), (cores, 1), (1, max(1, cores - 1))])
    return [
        Plan(decoders, runners, each)
        for decoders in sorted({1, max(1, cores // 2), cores}, reverse=True)
        for runners, each in shares
    ]


class HandWritten:
    """The loop, with its model loaded."""

    def __init__(self, *, device: str, dtype: torch.dtype) -> None:
        name_kernels()
        architecture, _, _ = fixtures.MODEL_ID.partition("/")
        self._model = open_clip.create_model(architecture)
        self._model.load_state_dict(load_file(fixtures.weights()))
        self._model.to(device, dtype).eval()
        self._device, self._dtype = device, dtype
        self._mean, self._std = (
            torch.tensor(values).view(1, 3, 1, 1).to(device) for values in (MEAN, STD)
        )

    def embed(self, files: Sequence[Path], plan: Plan) -> NDArray[np.float32]:
        """(files, dimension), L2-normalised."""
        rows = np.empty((len(files), 512), np.float32)
        with ThreadPoolExecutor(plan.decoders) as pool, ThreadPoolExecutor(plan.runners) as runners:
            batches = _ahead(pool, files, (plan.runners + 1) * BATCH)
            lock = Lock()

            def work() -> None:
                torch.get_num_threads()  # else the first operation would set another number
                torch.set_num_threads(plan.cores)  # counts for the thread that says it
                while True:
                    with lock:
                        start, batch = next(batches, (0, []))
                    if not batch:
                        return
                    rows[start : start + len(batch)] = self.run(np.stack(batch))

            for done in [runners.submit(work) for _ in range(plan.runners)]:
                done.result()
        return rows

    @torch.inference_mode()
    def run(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(rows, dimension) of (rows, height, width, 3)."""
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float() / 255
        images = ((images - self._mean) / self._std).to(self._dtype)
        rows: NDArray[np.float32] = (
            self._model.encode_image(images, normalize=True).float().cpu().numpy()
        )
        return rows

    def images_per_s(self, files: Sequence[Path], plan: Plan, *, images: int) -> float:
        many = list(islice(cycle(files), images))
        start = time.perf_counter()
        self.embed(many, plan)
        return images / (time.perf_counter() - start)


def _ahead(
    pool: ThreadPoolExecutor, files: Sequence[Path], ahead: int
) -> Iterator[tuple[int, list[NDArray[np.uint8]]]]:
    """Batches with the position of their first row; so many files are decoded before their time."""
    coming: deque[Future[NDArray[np.uint8]]] = deque()
    left = iter(files)
    coming.extend(pool.submit(decode, file) for file in islice(left, ahead))
    position = 0
    while coming:
        batch = [coming.popleft().result() for _ in range(min(BATCH, len(coming)))]
        coming.extend(pool.submit(decode, file) for file in islice(left, len(batch)))
        yield position, batch
        position += len(batch)


def decode(file: Path) -> NDArray[np.uint8]:
    """(224, 224, 3), decoded at 1.5 times that or more, then as open_clip resizes and crops."""
    image = decoding.decode(file.read_bytes(), name=file.name, near=EDGE, limits=LIMITS)
    cells = from_dlpack(pa.array(image).values).view(1, image.height, image.width, 4)
    size = [EDGE * length // min(image.size) for length in reversed(image.size)]
    small = interpolate(cells.permute(0, 3, 1, 2), size, mode="bicubic", antialias=True)
    top, left = (round((length - EDGE) / 2) for length in size)
    return small[0, :3, top : top + EDGE, left : left + EDGE].permute(1, 2, 0).numpy()
