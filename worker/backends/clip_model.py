"""An open_clip model in memory: pictures and texts in, rows of its vector space out."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from api_client.wire.errors import ImageTooLarge, ImageUnreadable
from api_client.wire.messages import Kind

from .attention import without_detour
from .base import Footprint, Prepared, PreparedText, Traits
from .cores import Cores
from .recipes import Tokenizer
from .residence import Residence, memory_errors
from .texts import TextTower, Tokens

MAX_RESIZED_PIXELS = 32_000_000  # of a long strip, before it is cropped to the model's square


class ClipModel:
    """Keeps the contract of `base.Model`.

    Args:
        model: open_clip's, with its weights in host memory.
        preprocessing: the fields of its PreprocessCfg.
        cores: of the CPU, where that is the device.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        preprocessing: dict[str, Any],
        tokenizer: Tokenizer,
        traits: Traits,
        cores: Cores | None = None,
    ) -> None:
        config = PreprocessCfg(**preprocessing)
        # open_clip's own transform; its last two steps, to float and normalise, are in `run`.
        self._to_pixels = image_transform_v2(config, is_train=False).transforms[:-2]
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1)
            for values in (config.mean, config.std)
        )
        without_detour(model)
        self._model: Any = model
        self._text_tower = TextTower(model)
        self._tokens = Tokens(tokenizer)
        self._residence = Residence(model, device)
        self._device = device
        self._dtype = next(model.parameters()).dtype
        self._traits = traits
        self._cores = cores

    @property
    def traits(self) -> Traits:
        return self._traits

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """(height, width, 3), the pixels that open_clip's preprocessing would normalise."""
        _refuse_strips(image, self._traits.input_size or 1)
        try:
            for step in self._to_pixels:
                image = step(image)
        except ValueError as error:  # e.g. nothing is left of a thin strip
            raise ImageUnreadable(
                f"a picture of {image.width}x{image.height} cannot be resized: {error}"
            ) from None
        return np.asarray(image)

    def prepare_text(self, text: str) -> PreparedText:
        return self._tokens.of(text)

    @torch.inference_mode()
    def run(self, kind: Kind, batch: Sequence[Prepared]) -> NDArray[np.float32]:
        with memory_errors(), self._cores.share() if self._cores else nullcontext():
            if kind is Kind.IMAGE:
                pixels = np.stack(cast(Sequence[NDArray[np.uint8]], batch))
                rows = self._model.encode_image(self._normalised(pixels), normalize=False)
            else:
                texts = cast(Sequence[PreparedText], batch)
                tokens = np.stack([cast(NDArray[np.int64], text.tokens) for text in texts])
                rows = self._text_tower.encode(tokens, self._device)
            vectors: NDArray[np.float32] = rows.float().cpu().numpy()
            return vectors

    def footprint(self) -> Footprint:
        return self._residence.footprint()

    def lift(self) -> None:
        self._residence.lift()

    def lower(self) -> None:
        self._residence.lower()

    def unload(self) -> None:
        self._residence.unload()

    def _normalised(self, pixels: NDArray[np.uint8]) -> Tensor:
        """(rows, 3, height, width); the same float32 steps as torchvision's, then cast.

        Bytes cross the bus, a quarter of what floats would be.
        """
        rows = torch.from_numpy(pixels)
        if self._device.type == "cuda":
            rows = rows.pin_memory()
        rows = rows.to(self._device, non_blocking=True).permute(0, 3, 1, 2)
        return ((rows.float() / 255 - self._mean) / self._std).to(self._dtype)


def _refuse_strips(image: Image.Image, size: int) -> None:
    """open_clip enlarges the short edge first, which would take gigabytes for a thin strip."""
    short, long = sorted(image.size)
    if size * size * (long / short) > MAX_RESIZED_PIXELS:
        raise ImageTooLarge(f"a picture of {image.width}x{image.height} is too thin to embed")
