"""From a checkpoint on disk to the first vector, beside `open_clip.create_model`.

Both sides load the same file, a ViT-L-14 in float32 with seeded random weights, and then embed the
same short query with the same forward pass, `TextTower`. Each has loaded the file before, so
nothing is set up for the first time and our side's note of the weights' hash exists; `first_s`
tells what that first load took. The limit is the forward pass: no loader is faster than not
loading. Imports and unloading are not timed.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from . import fixtures
from .report import Options, Report

ARCHITECTURE, TAG = "ViT-L-14", "laion2b_s32b_b82k"
# Loads a model and lends two calls: one embeds a text, one a picture.
Loader = Callable[[], AbstractContextManager[tuple[Callable[[], Any], Callable[[], Any]]]]

GOALS = {"first_vector": 10.0, "first_vector_cold": 1.0, "weights_to_peak_memory": 1 / 1.15}


def run(options: Options) -> Report:
    started = time.monotonic()
    rounds = 1 if options.quick else 5
    with tempfile.TemporaryDirectory(prefix="clipyard-load-") as folder:
        file = Path(folder) / "models" / ARCHITECTURE / f"{TAG}.safetensors"
        _write_checkpoint(file)
        weights_bytes = file.stat().st_size
        figures = _in_child(file, rounds)
    return Report(
        name="load",
        seconds=time.monotonic() - started,
        ratios={
            "first_vector": figures["open_clip_warm_s"] / figures["clipyard_warm_s"],
            "first_vector_cold": figures["open_clip_cold_s"] / figures["clipyard_cold_s"],
            "weights_to_peak_memory": weights_bytes / figures["clipyard_peak_bytes"],
            "open_clip_peak_to_ours": figures["open_clip_peak_bytes"]
            / figures["clipyard_peak_bytes"],
        },
        goals=GOALS,
        figures={"weights_bytes": weights_bytes, **figures},
    )


def _write_checkpoint(file: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from worker.backends.recipes import Recipe
    from worker.catalogue import Entry

    model = Recipe.of(Entry(id="", architecture=ARCHITECTURE, tag=TAG)).build(torch.float32)
    generator = torch.Generator().manual_seed(7)
    state = {
        name: torch.randn(tensor.shape, generator=generator) * 0.02
        for name, tensor in model.state_dict().items()
    }
    file.parent.mkdir(parents=True)
    save_file(state, file)
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)  # only clean pages can be dropped from the page cache
    os.close(descriptor)


def _in_child(file: Path, rounds: int) -> dict[str, float]:
    """Measured apart from what writing the checkpoint left in this process's memory."""
    command = [sys.executable, "-m", "benchmarks.load", str(file), str(rounds)]
    # One thread: what other programs do to a machine then slows both sides alike.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _measure(file: Path, rounds: int) -> dict[str, float]:
    """The best of some rounds in turn; the peak of one that uses all weights.

    `cold_share` is how much of the files was out of the page cache before the cold rounds.
    """
    sides = {"clipyard": _clipyard(file), "open_clip": _open_clip(file)}
    _read(file)
    first = {f"{side}_first_s": _timed(loader) for side, loader in sides.items()}
    peaks = {f"{side}_peak_bytes": _peak(loader) for side, loader in sides.items()}
    warm = _best(sides, rounds, before=lambda: None)
    shares: list[float] = []
    files = [file, *file.parents[2].rglob("prepared/*.safetensors")]  # each side maps its own
    cold = _best(sides, rounds, before=lambda: shares.extend(map(_drop, files)))
    return {
        **first,
        **{f"{side}_warm_s": seconds for side, seconds in warm.items()},
        **{f"{side}_cold_s": seconds for side, seconds in cold.items()},
        "cold_share": min(shares),
        **peaks,
    }


def _best(
    sides: Mapping[str, Loader], rounds: int, *, before: Callable[[], object]
) -> dict[str, float]:
    """The least seconds of each side. They take turns, so that noise meets both."""
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, loader in sides.items():
            before()
            seconds[side].append(_timed(loader))
    return {side: min(times) for side, times in seconds.items()}


def _peak(loader: Loader) -> int:
    """Bytes above what the process held before, with every weight used."""
    gc.collect()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    with loader() as (embed_text, embed_image):
        embed_text()
        embed_image()
        return _memory("VmHWM") - before


def _clipyard(file: Path) -> Loader:
    from PIL import Image

    from api_client.wire.messages import Kind
    from worker.backends.base import Placement
    from worker.backends.openclip import OpenClip
    from worker.catalogue import Entry

    models = file.parents[1]
    backend = OpenClip(Placement(models_dir=models, cache_dir=models.with_name("cache")))
    entry = Entry(id=f"{ARCHITECTURE}/{TAG}", architecture=ARCHITECTURE, tag=TAG)
    picture = Image.new("RGB", (224, 224))

    @contextmanager
    def load() -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
        backend.check(entry)
        model = backend.load(entry)
        model.lift()
        yield (
            lambda: model.run(Kind.TEXT, [model.prepare_text(fixtures.TEXT)]),
            lambda: model.run(Kind.IMAGE, [model.prepare_image(picture)]),
        )
        model.unload()

    return load


def _open_clip(file: Path) -> Loader:
    import open_clip
    import torch

    from worker.backends.texts import TextTower

    @contextmanager
    def load() -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
        model = open_clip.create_model(ARCHITECTURE, pretrained=str(file)).eval()
        tower = TextTower(model)
        cpu = torch.device("cpu")
        with torch.inference_mode():
            yield (
                lambda: tower.encode(open_clip.tokenize([fixtures.TEXT]).numpy(), cpu),
                lambda: model.encode_image(torch.zeros(1, 3, 224, 224)),
            )

    return load


def _timed(loader: Loader) -> float:
    """Seconds to the first text vector."""
    gc.collect()
    started = time.perf_counter()
    with loader() as (embed_text, _):
        embed_text()
        return time.perf_counter() - started


def _memory(field: str) -> int:
    """Bytes, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def _read(file: Path) -> None:
    with file.open("rb") as handle:
        while handle.read(2**24):
            pass


def _drop(file: Path) -> float:
    """Takes the file out of the page cache; the share of it that went."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(descriptor).st_size
        places = range(0, size, size // 200)
        return 1 - sum(_is_cached(descriptor, place) for place in places) / len(places)
    finally:
        os.close(descriptor)


def _is_cached(descriptor: int, offset: int) -> bool:
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False


if __name__ == "__main__":
    print(json.dumps(_measure(Path(sys.argv[1]), int(sys.argv[2]))))
