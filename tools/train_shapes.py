"""Trains `shapes/demo`, the small CLIP that the repository carries, and measures the written file.

    python -m tools.train_shapes [DIRECTORY]

The result is a directory that open_clip itself loads (`local-dir:DIRECTORY`): a JSON config,
float16 weights, and `report.json`. The same seed on the same machine gives the same weights.
"""

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import PIL
import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from api_client.quickstart import shapes
from tools import shape_examples
from tools.shape_examples import FIELDS, Example

__all__ = ["DIRECTORY", "Clip", "Measured", "build", "main", "measure", "save", "train"]

DIRECTORY = Path(__file__).parents[1] / "worker" / "models" / "shapes-demo"
SEED = 20
HELD_OUT_SEED = 1_000_003
HELD_OUT = 4 * len(shapes.CAPTIONS)
STEPS = 1000
BATCH = 64
LEARNING_RATE = 3e-3
WARM_UP_STEPS = 30
SMALLEST_ACCURACY = 0.98
SMALLEST_BFLOAT16_ACCURACY = 0.95
LARGEST_FILE_BYTES = 8_000_000

CONFIG: dict[str, Any] = {
    "model_cfg": {
        "embed_dim": 64,
        # The vocabulary table takes 6.3 MB of the file, so the rest must be slim (mlp_ratio).
        "vision_cfg": {
            "image_size": 64,
            "patch_size": 8,
            "width": 128,
            "layers": 4,
            "mlp_ratio": 2.0,
        },
        "text_cfg": {
            "context_length": 32,
            "vocab_size": 49408,
            "width": 64,
            "heads": 4,
            "layers": 2,
        },
    },
    "preprocess_cfg": {
        key: value for key, value in asdict(PreprocessCfg()).items() if key not in ("size", "mode")
    },
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train the shapes/demo model.")
    parser.add_argument("directory", nargs="?", type=Path, default=DIRECTORY)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=SEED)
    asked = parser.parse_args(argv)

    torch.set_num_threads(1)  # sums depend on how they are split, and the second core draws
    started = time.monotonic()
    clip = build(asked.directory, seed=asked.seed)
    batches = shape_examples.batches(
        clip.preprocess, clip.tokenize, seed=asked.seed, count=asked.steps, size=BATCH
    )
    for step, loss in enumerate(train(clip.model, batches, steps=asked.steps), start=1):
        if step % 50 == 0:
            print(f"step {step} of {asked.steps}, loss {loss:.3f}", file=sys.stderr, flush=True)
    weights = save(clip.model, asked.directory)
    seconds, cpu_seconds = time.monotonic() - started, time.process_time()

    pictures = shapes.collection(HELD_OUT, seed=HELD_OUT_SEED)
    float32 = measure(asked.directory, pictures, precision="fp32")
    bfloat16 = measure(asked.directory, pictures, precision="bf16")
    report = {
        "accuracy": float32.accuracy,
        "accuracy_bfloat16": bfloat16.accuracy,
        "query_precision": float32.query_precision,
        "captions": len(shapes.CAPTIONS),
        "held_out_pictures": HELD_OUT,
        "held_out_seed": HELD_OUT_SEED,
        "seed": asked.seed,
        "steps": asked.steps,
        "batch": BATCH,
        "bytes": weights.stat().st_size,
        "training_seconds": round(seconds),
        "training_cpu_seconds": round(cpu_seconds),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__.split("+")[0],
            "open_clip": open_clip.__version__,
            "pillow": PIL.__version__,
            "numpy": np.__version__,
        },
    }
    text = json.dumps(report, indent=2)
    (asked.directory / "report.json").write_text(text + "\n")
    print(text)
    if float32.accuracy < SMALLEST_ACCURACY or bfloat16.accuracy < SMALLEST_BFLOAT16_ACCURACY:
        sys.exit(
            f"held-out accuracy must be {SMALLEST_ACCURACY}, {SMALLEST_BFLOAT16_ACCURACY} "
            "in bfloat16"
        )
    if weights.stat().st_size > LARGEST_FILE_BYTES:
        sys.exit(f"the weights must not exceed {LARGEST_FILE_BYTES} bytes")


@dataclass(frozen=True)
class Clip:
    """A model with the preprocessing and the tokenizer that open_clip makes of its config."""

    model: Any
    preprocess: shape_examples.Preprocess
    tokenize: shape_examples.Tokenize


def build(directory: Path, *, seed: int) -> Clip:
    """Writes the config into the directory; the model's weights follow from the seed."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    torch.manual_seed(seed)
    return _opened(directory, precision="fp32", load_weights=False)


def save(model: torch.nn.Module, directory: Path) -> Path:
    path = directory / "open_clip_model.safetensors"
    save_file({name: t.half().contiguous() for name, t in model.state_dict().items()}, path)
    return path


def _opened(directory: Path, *, precision: str, load_weights: bool) -> Clip:
    name = f"local-dir:{directory}"
    model, _, preprocess = open_clip.create_model_and_transforms(
        name, precision=precision, load_weights=load_weights
    )
    return Clip(model, preprocess, open_clip.get_tokenizer(name))


def train(model: Any, batches: Iterable[Example], *, steps: int) -> Iterator[float]:
    """Trains in place, one batch a step, and yields each step's contrastive loss.

    Contrast alone is slow to start, because neither half has anything yet for the other to agree
    with. So a linear layer, dropped afterwards, names the words of each scene from the picture's
    vector, which teaches the picture's half from the first step on.
    """
    words = torch.nn.Linear(CONFIG["model_cfg"]["embed_dim"], sum(map(len, FIELDS)))
    optimizers = _optimizers(model, words)

    def share(step: int) -> float:
        """Of the learning rate: a linear warm-up, then half a cosine."""
        return min((step + 1) / WARM_UP_STEPS, (1 + math.cos(math.pi * step / steps)) / 2)

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, share) for o in optimizers]
    model.train()
    for batch in batches:
        pictures = model.encode_image(batch.pixels)
        texts = model.encode_text(batch.tokens, normalize=True)
        cosines = functional.normalize(pictures, dim=-1) @ texts.T
        contrast = contrastive_loss(cosines * model.logit_scale.exp(), batch.is_true())
        loss = contrast + naming_loss(words(pictures), batch.facts)
        model.zero_grad()
        words.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        yield contrast.item()


def _optimizers(*modules: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the transformers' matrices, which halves the pictures needed; AdamW for the rest."""
    parameters = [named for module in modules for named in module.named_parameters()]
    matrices = [p for name, p in parameters if "resblocks" in name and p.ndim == 2]
    others = [p for name, p in parameters if "resblocks" not in name or p.ndim != 2]
    return [
        torch.optim.Muon(
            matrices, lr=LEARNING_RATE, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=LEARNING_RATE, weight_decay=0.0, betas=(0.9, 0.98)),
    ]


def contrastive_loss(logits: Tensor, is_true: Tensor) -> Tensor:
    """CLIP's loss, in which what is true of a picture is never held against it.

    A batch holds "a red circle" and "a small red circle" side by side; beside its own pair, each
    row and column is compared with the pairs that are false only.
    """
    own = torch.eye(len(logits), dtype=torch.bool)
    logits = logits.masked_fill(is_true & ~own, -math.inf)
    target = torch.arange(len(logits))
    return (
        functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    ) / 2


def naming_loss(logits: Tensor, facts: Tensor) -> Tensor:
    widths = [len(field) for field in FIELDS]
    told, true = torch.split(logits, widths, dim=1), torch.split(facts, widths, dim=1)
    return torch.stack(list(map(functional.cross_entropy, told, true))).sum()


@dataclass(frozen=True)
class Measured:
    """Shares, 0 to 1: pictures whose best caption is their own; queries whose best pictures fit."""

    accuracy: float
    query_precision: float


def measure(
    directory: Path, pictures: Sequence[tuple[str, Image.Image]], *, precision: str
) -> Measured:
    """What the weights in a directory reach, by open_clip's own loading and preprocessing.

    A query is "a red circle", for every colour and shape; its best two pictures must both fit.
    """
    clip = _opened(directory, precision=precision, load_weights=True)
    clip.model.eval()
    kinds = [(colour, shape) for colour in shapes.COLOURS for shape in shapes.SHAPES]
    queries = [f"{shapes.article(colour)} {colour} {shape}" for colour, shape in kinds]
    pixels = torch.stack([clip.preprocess(picture) for _, picture in pictures])
    with torch.inference_mode():
        images = _float32(clip.model.encode_image, pixels.to(open_clip.get_input_dtype(precision)))
        captions = _float32(clip.model.encode_text, clip.tokenize(list(shapes.CAPTIONS)))
        asked = _float32(clip.model.encode_text, clip.tokenize(queries))

    told = [shapes.CAPTIONS[i] for i in (images @ captions.T).argmax(dim=1).tolist()]
    right = [caption == best for (caption, _), best in zip(pictures, told, strict=True)]

    scenes = [shapes.SCENES[caption] for caption, _ in pictures]
    found = (asked @ images.T).topk(2).indices.tolist()
    fits = [
        all((scenes[i].colour, scenes[i].shape, scenes[i].count) == (*kind, 1) for i in best)
        for kind, best in zip(kinds, found, strict=True)
    ]
    return Measured(accuracy=sum(right) / len(right), query_precision=sum(fits) / len(fits))


def _float32(encode: Any, inputs: Tensor) -> Tensor:
    return torch.cat([encode(part, normalize=True).float() for part in torch.split(inputs, 256)])


if __name__ == "__main__":
    main()
