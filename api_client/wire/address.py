"""The URL of Redis: whether it can be used, and as what it may be shown."""

from typing import Any
from urllib.parse import urlsplit

import redis

__all__ = ["masked", "parsed"]


def parsed(url: str) -> dict[str, Any]:
    """Host, database, login and options, as redis-py takes them.

    Raises:
        ValueError: no client could be made from it; the sentence shows no part of it.
    """
    try:
        pool = redis.ConnectionPool.from_url(url)
        pool.make_connection()  # opens nothing, and refuses options that it does not know
        if _is_misread(url):
            raise ValueError
    except (ValueError, TypeError, redis.RedisError):
        raise ValueError(
            "no usable Redis URL; write redis://USER:PASSWORD@HOST:PORT/DATABASE, with / ? # @ "
            "of the password percent-encoded, and only options that redis-py knows"
        ) from None
    return dict(pool.connection_kwargs)


def masked(url: str) -> str:
    """A URL that can be shown: `***` for the password, and no options, which may hold others."""
    head, at, tail = url.partition("?")[0].rpartition("@")
    scheme, sep, login = head.partition("://")
    return f"{scheme}{sep}{login.partition(':')[0]}:***{at}{tail}" if at else tail


def _is_misread(url: str) -> bool:
    """Whether redis-py took a / ? or # in the password for the end of the host."""
    parts = urlsplit(url)
    path_is_odd = parts.scheme != "unix" and not (parts.path.strip("/") or "0").isdecimal()
    return path_is_odd or "@" in parts.query + parts.fragment
