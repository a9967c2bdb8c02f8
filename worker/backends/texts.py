"""The text side of an open_clip model: a text to its tokens, tokens to vectors."""

import threading
from collections.abc import Iterator
from copy import copy
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from open_clip.transformer import TextTransformer
from torch import Tensor

MAX_KNOWN_WORDS = 100_000  # open_clip's tokenizer remembers every word it ever saw
# Lengths are rounded up to these, so that few shapes occur. With steps of 8 from the start, the ten
# tokens of a short query in float32 would take 21 ms in the place of 15.
SHORT, SHORT_STEP, STEP = 16, 2, 8
# So many places of padding at the end of a row, and its text was not cut. One would not tell:
# SigLIP pads with the token that ends a cut row.
PADDED = 2
# Up to the first end of a line behind so many characters a text is tried alone: of 100,000 in short
# lines, open_clip's tokenizer would clean all for 12 s, and every other text would wait meanwhile.
HEAD = 4096


class Tokens:
    """Turns texts into rows of token ids. Safe to call from many threads.

    Args:
        tokenizer: a `recipes.Tokenizer`; open_clip's kinds of them have no type in common.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._alone = threading.Lock()  # Hugging Face's tokenizers refuse a second thread
        self._length: int = tokenizer.context_length
        # Of this one, what follows the end of a line changes nothing of the tokens before it.
        kind = open_clip.SimpleTokenizer
        self._goes_by_lines = isinstance(tokenizer, kind) and tokenizer.reduction_fn is None
        # Each tokenizer ends a cut row in its own way, and none like a longer row goes on; only in
        # the mode `clips` does the last place hold the same token in every row.
        self._compared = self._length - (getattr(tokenizer, "tokenizer_mode", "") == "clips")
        self._padding = self._row("", self._length)[self._compared - PADDED : self._compared]

    def of(self, text: str) -> tuple[NDArray[np.int64], bool]:
        """The row for one text, cut to the context length as open_clip cuts it; and if it was."""
        with self._alone:
            for part in self._parts(text):
                row = self._row(part, self._length)
                if truncated := self._is_full(row) and self._goes_on(part, row):
                    break
            self._forget_words()
        return row.numpy(), truncated

    def _parts(self, text: str) -> Iterator[str]:
        """Its first lines, if a cut in the rest would change nothing, and all of it."""
        if self._goes_by_lines and (end := text.find("\n", HEAD)) >= 0:
            yield text[: end + 1]
        yield text

    def _row(self, text: str, length: int) -> Tensor:
        row: Tensor = self._tokenizer([text], context_length=length)[0]
        return row

    def _is_full(self, row: Tensor) -> bool:
        return not torch.equal(row[self._compared - PADDED : self._compared], self._padding)

    def _goes_on(self, text: str, row: Tensor) -> bool:
        longer = self._row(text, self._length + 1)
        return not torch.equal(row[: self._compared], longer[: self._compared])

    def _forget_words(self) -> None:
        if len(getattr(self._tokenizer, "cache", ())) > MAX_KNOWN_WORDS:
            self._tokenizer.cache = {word: word for word in ("<start_of_text>", "<end_of_text>")}


class TextTower:
    """Runs a model's text tower over no more positions than the batch's longest text needs.

    A causal tower that takes its answer from the end-of-text token never looks at what follows
    it, so the padding behind need not be computed: a short query costs a fifth of 77 positions.
    Other towers get their rows whole. Safe to call from many threads.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._causal = _causal_tower(model)

    def length(self, tokens: NDArray[np.int64]) -> int:
        """How many positions the tower needs for one row; 0 where every row takes them all."""
        return _length(tokens) if self._causal is not None else 0

    def encode(self, tokens: NDArray[np.int64], device: torch.device) -> Tensor:
        """(rows, dimension) for (rows, context length) token ids on the host."""
        model = self._model
        if self._causal is not None:
            longest = _length(tokens)
            step = SHORT_STEP if longest <= SHORT else STEP
            length = min(-(-longest // step) * step, tokens.shape[1])
            tokens = tokens[:, :length]
            model = _shortened(model, self._causal, length)
        rows: Tensor = model.encode_text(torch.from_numpy(tokens).to(device), normalize=False)
        return rows


def _length(tokens: NDArray[np.int64]) -> int:
    """Up to the end of the longest row: end-of-text has the highest id."""
    return int(tokens.argmax(axis=-1).max()) + 1


def _shortened(model: Any, tower: Any, length: int) -> Any:
    """A model with fewer positions that shares every weight with this one.

    Made anew for each call: it costs a handful of references, and weights move in between.
    """
    shorter = _twin(tower)
    shorter._parameters["positional_embedding"] = tower.positional_embedding[:length]
    shorter._buffers["attn_mask"] = tower.attn_mask[:length, :length]
    if tower is model:
        return shorter
    twin = _twin(model)
    twin._modules["text"] = shorter
    return twin


def _twin(module: Any) -> Any:
    """A copy with tables of its own, which refer to the same parameters, buffers and modules."""
    twin = copy(module)
    twin._parameters = dict(module._parameters)
    twin._buffers = dict(module._buffers)
    twin._modules = dict(module._modules)
    return twin


def _causal_tower(model: Any) -> Any:
    """The part that holds the positions and the mask, if those may be shortened; else None."""
    if type(model) is open_clip.CLIP:
        return model if model.text_pool_type == "argmax" and _is_causal(model) else None
    text = getattr(model, "text", None)
    if type(model) is open_clip.CustomTextCLIP and isinstance(text, TextTransformer):
        plain = text.cls_emb is None and not text.use_pad_mask and text.pool_type == "argmax"
        return text if plain and _is_causal(text) else None
    return None


def _is_causal(tower: Any) -> bool:
    return tower.attn_mask is not None
