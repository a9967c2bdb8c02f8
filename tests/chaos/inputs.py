"""What a world is fed with: checkpoints and pictures, all seeded."""

import io
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.flow.processes import ROOT
from tools import train_shapes

PICTURES = 32


def checkpoints(folder: Path) -> list[Path]:
    """Two small open_clip checkpoints, in the serving form, so that they are mapped as they lie."""
    shipped = load_file(ROOT / "worker/models/shapes-demo/open_clip_model.safetensors")
    seeded = train_shapes.build(folder / "seeded", seed=7).model.state_dict()
    files = []
    for name, state in (("shipped", shipped), ("seeded", seeded)):
        files.append(folder / f"{name}.safetensors")
        save_file({key: tensor.float().contiguous() for key, tensor in state.items()}, files[-1])
    return files


def seeded_real(folder: Path) -> Path:
    """A checkpoint of the true ViT-B-32."""
    torch.manual_seed(7)
    model = open_clip.create_model("ViT-B-32", pretrained=None)
    save_file(model.state_dict(), folder / "ViT-B-32.safetensors")
    return folder / "ViT-B-32.safetensors"


def pictures(seed: int) -> dict[str, bytes]:
    """Small pictures, no two alike, as PNG."""
    dice = np.random.default_rng(seed)
    found = {}
    for n in range(PICTURES):
        with io.BytesIO() as file:
            Image.fromarray(dice.integers(0, 256, (12, 12, 3), np.uint8)).save(file, "PNG")
            found[f"{n:03}.png"] = file.getvalue()
    return found
