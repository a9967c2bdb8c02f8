"""Bearer tokens, and how much whoever holds one may ask."""

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from ..wire.errors import BadSettings

__all__ = ["Pass", "Unit", "holder"]

SHORTEST_TOKEN = 16  # characters


class Unit(StrEnum):
    """What is counted per minute, under the names that others' gateways have for it."""

    REQUESTS = "rpm"
    ITEMS = "ipm"  # texts and pictures that are to be embedded


_LIMIT = re.compile(rf"({'|'.join(Unit)})=(\d{{1,18}})")


@dataclass(frozen=True)
class Pass:
    """One token.

    Attributes:
        limits: per minute; what is not in it is not limited.
    """

    token: str = field(repr=False)
    limits: Mapping[Unit, int]

    @classmethod
    def parse(cls, entry: str) -> Self:
        """A token, and its limits after it if it has any: `TOKEN rpm=600 ipm=20000`.

        Raises:
            BadSettings: the token can be guessed, or a limit is none. It quotes no token.
        """
        token, *rest = entry.split() or [""]
        if len(token) < SHORTEST_TOKEN:
            raise BadSettings(
                f"CLIPYARD_GATEWAY_TOKENS: one has fewer than {SHORTEST_TOKEN} characters and "
                "could be guessed; make one with `openssl rand -hex 24`"
            )
        if not token.isascii():  # programs put other letters into a header each in its own way
            raise BadSettings(
                "CLIPYARD_GATEWAY_TOKENS: one has letters beyond ASCII, which not every caller can "
                "send; make one with `openssl rand -hex 24`"
            )
        limits = {}
        for word in rest:
            limit = _LIMIT.fullmatch(word)
            if limit is None or not int(limit[2]):
                raise BadSettings(
                    "CLIPYARD_GATEWAY_TOKENS: after a token stand its limits per minute, "
                    "as rpm=600 ipm=20000; between two tokens stands a comma or a new line"
                )
            limits[Unit(limit[1])] = int(limit[2])
        return cls(token, limits)

    @property
    def name(self) -> str:
        """For Redis, where the token itself must not stand."""
        return hashlib.sha256(self.token.encode()).hexdigest()[:32]


def holder(headers: Mapping[str, str], passes: Sequence[Pass]) -> Pass | None:
    """Whose token a request carries; takes the same time whichever it is."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    said = given.strip().encode()
    matches = [one for one in passes if hmac.compare_digest(said, one.token.encode())]
    return matches[0] if matches and scheme.lower() == "bearer" else None
