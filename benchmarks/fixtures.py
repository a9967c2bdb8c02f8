"""What every benchmark feeds on: photo-like JPEGs and a true ViT-B-32, drawn here and kept.

Both are seeded and are written once into a folder of the temporary directory, so that the second
benchmark of a machine starts at once.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZES = ((640, 480), (1920, 1280), (4000, 3000))  # width, height
PICTURES = 8  # different ones of each size; a benchmark walks over them again and again
QUALITY = 90
MODEL_ID = "ViT-B-32/seeded"
TEXT = "a photo of a dog on a beach"

_VERSION = 1  # of the drawings: other pictures, other folder
_OCTAVES = (4, 9, 21, 53, 141, 401)  # cells along the shorter edge


def folder() -> Path:
    """Where fixtures are kept on this machine, for this user."""
    kept = Path(tempfile.gettempdir()) / f"clipyard-benchmarks-{os.getuid()}-{_VERSION}"
    kept.mkdir(mode=0o700, exist_ok=True)
    return kept


def photos(width: int, height: int) -> list[Path]:
    """JPEGs of 0.2 to 0.4 bytes per pixel, as cameras make them."""
    below = folder() / f"{width}x{height}"
    below.mkdir(exist_ok=True)
    files = [below / f"{number:02}.jpg" for number in range(PICTURES)]
    for number, file in enumerate(files):
        if not file.exists():
            fresh = file.with_suffix(f".{os.getpid()}")
            _draw(width, height, seed=number).save(fresh, "JPEG", quality=QUALITY)
            fresh.rename(file)
    return files


def _draw(width: int, height: int, *, seed: int) -> Image.Image:
    """Soft shapes at every scale, a few hard edges, and a sensor's grain."""
    dice = np.random.default_rng(seed)
    picture = Image.fromarray(_clouds(width, height, dice))
    draw = ImageDraw.Draw(picture)
    for _ in range(12):
        x, y = dice.integers(0, (width, height))
        reach = dice.integers(height // 20, height // 4)
        colour = tuple(int(value) for value in dice.integers(0, 256, 3))
        draw.polygon(
            [(x + dx * reach, y + dy * reach) for dx, dy in dice.uniform(-1, 1, (4, 2))], colour
        )
    pixels = np.asarray(picture, np.float32)
    grain = dice.standard_normal((height, width, 1), np.float32) * 5
    return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def _clouds(width: int, height: int, dice: np.random.Generator) -> NDArray[np.uint8]:
    total = np.zeros((height, width, 3), np.float32)
    for cells in _OCTAVES:
        noise = dice.integers(0, 256, (cells, cells * width // height, 3), dtype=np.uint8)
        smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(smooth, np.float32) / cells**0.75
    total -= total.min()
    pixels: NDArray[np.uint8] = (total * (255 / total.max())).astype(np.uint8)
    return pixels


def models_dir(architecture: str = "ViT-B-32") -> Path:
    """A folder that holds `<architecture>/seeded` as a checkpoint: random weights, true shape."""
    # torch is slow to import, and who only wants pictures should not wait for it.
    import open_clip
    import torch
    from safetensors.torch import save_file

    below = folder() / "models"
    file = below / architecture / "seeded.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        state = open_clip.create_model(architecture).state_dict()
        fresh = file.with_suffix(f".{os.getpid()}")
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, fresh)
        fresh.rename(file)
    return below


def weights() -> Path:
    """The checkpoint of `MODEL_ID`."""
    return models_dir() / f"{MODEL_ID}.safetensors"
