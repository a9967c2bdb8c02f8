"""The text side of an open_clip model: a text to its tokens, tokens to vectors."""

import threading
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transformer import TextTransformer
from torch import Tensor, nn
from torch.func import functional_call

from .base import PreparedText
from .recipes import Tokenizer

MAX_KNOWN_WORDS = 100_000  # open_clip's tokenizer remembers every word it ever saw
STEP = 8  # lengths are rounded up to this, so that few shapes occur


class Tokens:
    """Turns texts into rows of token ids. Safe to call from many threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer: Any = tokenizer
        self._alone = threading.Lock()  # Hugging Face's tokenizers refuse a second thread

    def of(self, text: str) -> PreparedText:
        """The row for one text, cut to the context length as open_clip cuts it."""
        length: int = self._tokenizer.context_length
        with self._alone:
            row = self._tokenizer([text], context_length=length)[0]
            longer = self._tokenizer([text], context_length=length + 1)[0]
            self._forget_words()
        # Each tokenizer ends a cut row in its own way, and none like the longer row goes on;
        # only in the mode `clips` does the last place hold the same token in every row.
        compared = length - (getattr(self._tokenizer, "tokenizer_mode", "") == "clips")
        truncated = not torch.equal(row[:compared], longer[:compared])
        return PreparedText(tokens=row.numpy(), truncated=truncated)

    def _forget_words(self) -> None:
        if len(getattr(self._tokenizer, "cache", ())) > MAX_KNOWN_WORDS:
            self._tokenizer.cache = {word: word for word in ("<start_of_text>", "<end_of_text>")}


class TextTower(nn.Module):
    """Runs a model's text tower over no more positions than the batch's longest text needs.

    A causal tower that takes its answer from the end-of-text token never looks at what follows
    it, so the padding behind need not be computed: a short query costs a fifth of 77 positions.
    Other towers get their rows whole.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._prefix = _causal_prefix(model)

    def forward(self, tokens: Tensor) -> Tensor:
        rows: Tensor = self.model.encode_text(tokens, normalize=False)
        return rows

    def encode(self, tokens: NDArray[np.int64], device: torch.device) -> Tensor:
        """(rows, dimension) for (rows, context length) token ids on the host."""
        if self._prefix is None:
            return self.forward(torch.from_numpy(tokens).to(device))
        longest = int(tokens.argmax(axis=1).max()) + 1  # end-of-text has the highest id
        length = min(-(-longest // STEP) * STEP, tokens.shape[1])
        position, mask = f"{self._prefix}positional_embedding", f"{self._prefix}attn_mask"
        shorter = {
            position: self.get_parameter(position)[:length],
            mask: self.get_buffer(mask)[:length, :length],
        }
        rows: Tensor = functional_call(
            self, shorter, (torch.from_numpy(tokens[:, :length]).to(device),)
        )
        return rows


def _causal_prefix(model: Any) -> str | None:
    """Where the positions and the mask of a tower are that may be shortened; None if it may not."""
    if type(model) is open_clip.CLIP:
        return "model." if model.text_pool_type == "argmax" and _is_causal(model) else None
    text = getattr(model, "text", None)
    if type(model) is open_clip.CustomTextCLIP and isinstance(text, TextTransformer):
        plain = text.cls_emb is None and not text.use_pad_mask and text.pool_type == "argmax"
        return "model.text." if plain and _is_causal(text) else None
    return None


def _is_causal(tower: Any) -> bool:
    return tower.attn_mask is not None
