"""The id under which one caller's work is found in every log, from the gateway to the batch.

It travels as a header of the message, and as a context variable within a process. Where no caller
gave one, it is the request's own id.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["about", "about_many", "accepted", "current"]

SHOWN = 3  # of those who share a forward pass
_FITS = re.compile(r"[A-Za-z0-9._:-]{1,64}")

_current: ContextVar[str] = ContextVar("correlation", default="")


def current() -> str:
    """The id of what this thread or task works on; empty outside of any."""
    return _current.get()


class about:
    """What is logged and sent in the block belongs to this id."""

    def __init__(self, correlation: str) -> None:
        self._correlation = correlation

    def __enter__(self) -> None:
        self._token = _current.set(self._correlation)

    def __exit__(self, *raised: object) -> None:
        _current.reset(self._token)


@contextmanager
def about_many(correlations: Iterable[str]) -> Iterator[None]:
    """As `about`, for a batch that several callers share."""
    ids = list(dict.fromkeys(filter(None, correlations)))
    more = f"+{len(ids) - SHOWN}" if len(ids) > SHOWN else ""
    with about(",".join(ids[:SHOWN]) + more):
        yield


def accepted(given: object) -> str:
    """An id from outside if it may stand in a log or a header, else nothing."""
    fits = isinstance(given, str) and _FITS.fullmatch(given)
    return str(given) if fits else ""
