"""An open_clip model in memory: pictures and texts in, rows of its vector space out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn

from ..catalogue import Entry
from .base import Placement, PreparedText, Traits
from .blocks import lay_out_blocks, without_detours
from .layout import lay_out_trunk
from .recipes import Tokenizer
from .resize import pixels_of, steps_for
from .texts import TextTower, Tokens
from .torch_model import Normalised, TorchModel


class ClipModel(TorchModel):
    """Made by its family, which has its weights and traits already.

    Args:
        module: open_clip's, with its weights in host memory.
        preprocessing: the fields of its PreprocessCfg.
    """

    def __init__(
        self,
        entry: Entry,
        placement: Placement,
        *,
        module: nn.Module,
        preprocessing: dict[str, Any],
        tokenizer: Tokenizer,
        traits: Traits,
    ) -> None:
        super().__init__(entry, placement)
        config = PreprocessCfg(**preprocessing)
        # open_clip's own transform; its last two steps, to float and normalise, are `Normalised`.
        *steps, _, normalise = image_transform_v2(config, is_train=False).transforms
        self._to_pixels = steps_for(placement.decode, steps)
        self._normalised = Normalised(
            normalise.mean, normalise.std, device=self.device, dtype=self.dtype
        )
        without_detours(module)
        self.settle(module)
        self._text_tower = TextTower(module)
        self._tokens = Tokens(tokenizer)
        self.traits = traits

    def lay_out(self) -> None:
        lay_out_blocks(self.module)
        lay_out_trunk(self.module)

    def prepare_image(self, image: Image.Image) -> NDArray[np.uint8]:
        """(height, width, 3), the pixels that open_clip's preprocessing would normalise."""
        return pixels_of(image, self._to_pixels)

    def prepare_text(self, text: str) -> PreparedText:
        row, truncated = self._tokens.of(text)
        return PreparedText(row, truncated, length=self._text_tower.length(row))

    def embed_images(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return _on_host(self.module.encode_image(self._normalised(pixels), normalize=False))

    def embed_texts(self, texts: Sequence[Any]) -> NDArray[np.float32]:
        """Of rows of token ids."""
        return _on_host(self._text_tower.encode(np.stack(texts), self.device))


def _on_host(rows: Tensor) -> NDArray[np.float32]:
    return rows.float().cpu().numpy()
