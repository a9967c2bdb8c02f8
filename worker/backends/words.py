"""open_clip's own tokenizer, with the same rows in less time where a text is long."""

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Any

import open_clip

LONG = 100  # bytes; what is longer is no word any more, and not remembered


class Tokenizer(open_clip.SimpleTokenizer):  # type: ignore[misc]  # open_clip has no types
    """100,000 digits took it half a second, 20,000 letters without a space ten."""

    def encode(self, text: str) -> list[int]:
        """Up to those tokens that a row which is one longer would cut off as well."""
        ids: list[int] = []
        for found in self.pat.finditer(self.clean_fn(text)):
            word = "".join(self.byte_encoder[byte] for byte in found[0].encode())
            ids.extend(self.encoder[part] for part in self.bpe(word).split(" "))
            if len(ids) > self.context_length and self.reduction_fn is None:
                break
        return ids

    def bpe(self, token: str) -> str:
        if len(token) <= LONG:
            known: str = super().bpe(token)
            return known
        return " ".join(merged([*token[:-1], f"{token[-1]}</w>"], self.bpe_ranks))


def merged(parts: list[Any], ranks: Mapping[tuple[str, str], int]) -> list[str]:
    """The parts of a word after all merges, the one of the lowest rank first, each from left to
    right: as `SimpleTokenizer.bpe`, which goes through the whole word for every one of them."""
    before, after = list(range(-1, len(parts) - 1)), list(range(1, len(parts) + 1))
    places: dict[tuple[str, str], list[int]] = {}  # where a pair stands, or stood
    lowest: list[tuple[int, tuple[str, str]]] = []

    def note(left: int, right: int) -> None:
        if left < 0 or right == len(parts) or (pair := (parts[left], parts[right])) not in ranks:
            return
        if pair not in places:
            places[pair] = []
            heappush(lowest, (ranks[pair], pair))
        places[pair].append(left)

    for right in range(1, len(parts)):
        note(right - 1, right)
    while lowest:
        _, (first, second) = heappop(lowest)
        for left in sorted(places.pop((first, second))):
            right = after[left]
            if parts[left] != first or right == len(parts) or parts[right] != second:
                continue
            parts[left], parts[right] = first + second, None
            after[left] = following = after[right]
            if following < len(parts):
                before[following] = left
            note(before[left], left)
            note(left, following)
    return [part for part in parts if part is not None]
