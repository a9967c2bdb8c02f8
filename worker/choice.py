"""Which model answers a request for `auto`, and why: pure, so that it can be foretold.

Of the models that embed what is asked for and do not take more than the budget, the first by

1. how much of the longest text its context leaves out (where unknown, that of CLIP);
2. whether it knows many languages, if most letters are of another script than Latin;
3. where it is: on the device, in host memory, not here;
4. whether it is the current model;
5. the catalogue's order, toys last.

Of pictures nothing is known before they are opened, so the kind alone counts.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from api_client.wire.messages import Kind

from .backends.base import Tier
from .catalogue import Entry

__all__ = ["Candidate", "Choice", "Wish", "ranked"]

CLIP_CHARS = 300  # 77 tokens of about four characters
LAST_LATIN = "\u024f"  # of Latin Extended-B


@dataclass(frozen=True)
class Wish:
    """What a request says of itself.

    Attributes:
        kinds: what the model has to embed.
        longest_chars: of its texts; 0 for pictures.
        foreign: whether most letters are of another script than Latin.
    """

    kinds: tuple[Kind, ...]
    longest_chars: int = 0
    foreign: bool = False

    @classmethod
    def of(cls, kinds: tuple[Kind, ...], texts: Sequence[str]) -> "Wish":
        letters = [letter for text in texts for letter in text if letter.isalpha()]
        other = sum(letter > LAST_LATIN for letter in letters)
        return cls(kinds, max(map(len, texts), default=0), other * 2 > len(letters))

    def is_met(self, kinds: Collection[Kind]) -> bool:
        """Whether a model that embeds these would do."""
        return {*self.kinds} <= {*kinds}

    def __str__(self) -> str:
        return " and ".join(f"{kind}s" for kind in self.kinds)


@dataclass(frozen=True)
class Candidate:
    """One model of the catalogue, as it stands on this worker.

    Attributes:
        tier: where it is; None is not here.
        size: bytes it takes, measured or the catalogue's guess; 0 where nobody knows.
    """

    entry: Entry
    tier: Tier | None = None
    size: int = 0


@dataclass(frozen=True)
class Choice:
    """A model and a phrase for people."""

    entry: Entry
    why: str


def ranked(
    wish: Wish, candidates: Iterable[Candidate], *, current: str, budget_bytes: int | None
) -> list[Choice]:
    """Who would do, the best first.

    Args:
        current: id of the current model.
        budget_bytes: what a model may take; None is no limit.
    """

    def rank(candidate: Candidate) -> tuple[int, bool, int, bool, bool]:
        entry = candidate.entry
        return (
            _missing_chars(entry, wish),
            wish.foreign and not entry.multilingual,
            TIERS.index(candidate.tier),
            entry.id != current,
            entry.performance_rating == "toy",
        )

    able = [
        candidate
        for candidate in candidates
        if wish.is_met(candidate.entry.kinds)
        and (budget_bytes is None or candidate.size <= budget_bytes)
    ]
    return [Choice(one.entry, _why(wish, one, current=current)) for one in sorted(able, key=rank)]


TIERS = (Tier.DEVICE, Tier.HOST, None)


def _missing_chars(entry: Entry, wish: Wish) -> int:
    return max(0, wish.longest_chars - (entry.context_chars or CLIP_CHARS))


def _why(wish: Wish, candidate: Candidate, *, current: str) -> str:
    entry = candidate.entry
    reasons = []
    if wish.longest_chars > CLIP_CHARS:
        fits = "comes nearest to" if _missing_chars(entry, wish) else "takes"
        reasons.append(f"{fits} texts of {wish.longest_chars} characters")
    if wish.foreign:
        knows = "knows" if entry.multilingual else "is the best there is for"
        reasons.append(f"{knows} other scripts than Latin")
    where = {Tier.DEVICE: "is on the device", Tier.HOST: "waits in host memory"}
    reasons += [where[candidate.tier]] if candidate.tier else []
    reasons += ["is the current model"] if entry.id == current else []
    return f"{entry.id} {', '.join(reasons) or f'embeds {wish}'}"
