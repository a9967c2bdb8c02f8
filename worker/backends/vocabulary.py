"""Whether a tokenizer of transformers has the words that it is to know.

Where its files are missing, transformers makes one that knows none, without a word: each text is
then a row of unknown tokens, or of nothing, and many of them have one and the same vector.
"""

from typing import Any

FILES = "tokenizer.json, or vocab.txt and the like"


def is_empty(tokenizer: Any) -> bool:
    """One piece is left to those that are made for SentencePiece: what stands for a space."""
    special = getattr(tokenizer, "all_special_tokens", None)  # tokenizers of others have none
    return special is not None and len(tokenizer.get_vocab().keys() - set(special)) <= 1
