"""How much of a GPU the stack uses, and how fast models are lifted: three sizes of CLIP.

Beside each model stand its own limits, measured in the same run: the bare forward pass at its best
batch, the device's matrix units, and the bus from page-locked memory.
"""

import time
from itertools import cycle, islice
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from api_client import Client
from worker.backends.base import Placement
from worker.backends.clip_model import ClipModel
from worker.backends.placement import best_precision
from worker.backends.registry import Families

from . import fixtures
from .report import Options, Report
from .stack import stack

ARCHITECTURES = ("ViT-B-32", "ViT-L-14", "ViT-H-14")
BATCHES = (32, 64, 128, 256, 512)
GOALS = {"ViT-L-14: stack / bare forward": 0.90}
REPEATS = 10
SQUARE = 8192  # of the matrices that show the device's peak
COPIED = 2**30  # bytes


def run(options: Options) -> Report:
    begun = time.monotonic()
    if not options.device.startswith("cuda"):
        return Report("gpu", seconds=0.0, note="nothing measured: run it with --device cuda")
    device = "cuda:0" if options.device == "cuda" else options.device
    peak, bus = _peak_flops(device), _bus_bytes_per_s(device)
    ratios: dict[str, float] = {}
    figures: dict[str, float] = {"peak TFLOP/s": peak / 1e12, "bus GB/s": bus / 1e9}
    for architecture in ARCHITECTURES[: 1 if options.quick else None]:
        model = _model(architecture, device)
        lift_s, lifted = _lift(model)
        bare, batch, flops = _bare(model)
        model.unload()
        with stack(
            device, model=f"{architecture}/seeded", batch_size=str(batch), decode_threads="16"
        ) as client:
            ours = _ours(client, f"{architecture}/seeded", images=int(bare * 5))
        ratios |= {
            f"{architecture}: stack / bare forward": ours / bare,
            f"{architecture}: bare forward / peak": bare * flops / peak,
            f"{architecture}: lift / bus": lifted / lift_s / bus,
        }
        figures |= {
            f"{architecture} stack images/s": ours,
            f"{architecture} bare images/s": bare,
            f"{architecture} best batch": batch,
            f"{architecture} lift ms": 1000 * lift_s,
        }
    return Report(
        name="gpu",
        seconds=time.monotonic() - begun,
        ratios=ratios,
        goals={name: goal for name, goal in GOALS.items() if name in ratios},
        figures=figures,
        note=torch.cuda.get_device_name(device),
    )


def _model(architecture: str, device: str) -> ClipModel:
    placement = Placement(
        device=device,
        precision=best_precision(device),
        models_dir=fixtures.models_dir(architecture),
        cache_dir=fixtures.folder() / "cache",
        offline=True,
    )
    families = Families(placement)
    model = families.load(families.catalogue()[f"{architecture}/seeded"])
    assert isinstance(model, ClipModel)
    model.lift()
    return model


def _lift(model: ClipModel) -> tuple[float, int]:
    """Seconds from page-locked host memory to the device, and the bytes that moved."""
    spans = []
    for _ in range(REPEATS):
        model.lower()
        begun = time.perf_counter()
        model.lift()
        torch.cuda.synchronize()
        spans.append(time.perf_counter() - begun)
    return median(spans), model.footprint().device_bytes


@torch.inference_mode()
def _bare(model: ClipModel) -> tuple[float, int, float]:
    """Images/s of the module alone, its pixels on the device already, at its best batch; that
    batch, and FLOP per image."""
    size = model.traits.input_size or 1
    speeds = {}
    for rows in BATCHES:
        pixels = torch.zeros(rows, 3, size, size, device=model.device, dtype=model.dtype)
        model.module.encode_image(pixels).cpu()
        begun = time.perf_counter()
        for _ in range(REPEATS):
            vectors = model.module.encode_image(pixels)
        vectors.cpu()
        speeds[rows] = REPEATS * rows / (time.perf_counter() - begun)
    best = max(speeds, key=lambda rows: speeds[rows])
    with FlopCounterMode(display=False) as counter:
        model.module.encode_image(pixels[:1])
    return speeds[best], best, float(counter.get_total_flops())


def _ours(client: Client, model: str, *, images: int) -> float:
    many = list(islice(cycle(fixtures.photos(640, 480)), images))
    begun = time.perf_counter()
    client.embed_images(many, model=model, batch_size=256)
    return images / (time.perf_counter() - begun)


def _peak_flops(device: str) -> float:
    """FLOP/s of a large product in the serving precision: what the matrix units reach."""
    dtype: torch.dtype = getattr(torch, best_precision(device))
    a, b = (torch.randn(SQUARE, SQUARE, device=device, dtype=dtype) for _ in range(2))
    a @ b
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(REPEATS):
        a @ b
    torch.cuda.synchronize()
    return REPEATS * 2 * SQUARE**3 / (time.perf_counter() - begun)


def _bus_bytes_per_s(device: str) -> float:
    host = torch.empty(COPIED, dtype=torch.uint8).pin_memory()
    host.to(device)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(REPEATS):
        host.to(device)
    torch.cuda.synchronize()
    return REPEATS * COPIED / (time.perf_counter() - begun)
