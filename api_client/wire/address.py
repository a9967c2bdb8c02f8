"""The URL of Redis: whether it can be used, how Celery is told of it, as what it is shown; and how
hosts and ports stand in any URL."""

from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

import redis

__all__ = ["FILES", "for_celery", "masked", "netloc", "parsed"]

FILES = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile"})  # options that name one


def parsed(url: str) -> dict[str, Any]:
    """Host, database, login and options, as redis-py takes them.

    Raises:
        ValueError: no client could be made from it; the sentence shows no part of it.
    """
    try:
        pool = redis.ConnectionPool.from_url(url)
        pool.make_connection()  # opens nothing, and refuses options that it does not know
        # As looking it up will, and would fail then: redis://$HOST.svc without a HOST.
        pool.connection_kwargs.get("host", "").encode("idna")
        if _is_misread(url) or "decode_responses" in pool.connection_kwargs:
            raise ValueError
    except (ValueError, TypeError, redis.RedisError):
        raise ValueError(
            "no usable Redis URL; write redis://USER:PASSWORD@HOST:PORT/DATABASE, with / ? # @ "
            "of the password percent-encoded, and only options that redis-py knows, "
            "decode_responses not among them"
        ) from None
    return dict(pool.connection_kwargs)


def for_celery(url: str) -> str:
    """The same server and database, where redis-py knows more ways to write them than kombu."""
    given, asked = parsed(url), urlsplit(url)
    login = ":".join(quote(given.get(name) or "", safe="") for name in ("username", "password"))
    at = netloc(given.get("host", "localhost"), given.get("port", 6379))
    tls = [(name, value) for name, value in parse_qsl(asked.query) if name.startswith("ssl_")]
    return asked._replace(
        netloc=f"{login}@{at}".removeprefix(":@"),
        path=f"/{given.get('db', 0)}",
        query=urlencode(tls),
    ).geturl()


def netloc(host: str, port: int) -> str:
    """A host and its port; an IPv6 address stands in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def masked(url: str) -> str:
    """A URL that can be shown: `***` for the password, and no options, which may hold others."""
    head, at, tail = url.partition("?")[0].rpartition("@")
    scheme, sep, login = head.partition("://")
    return f"{scheme}{sep}{login.partition(':')[0]}:***{at}{tail}" if at else tail


def _is_misread(url: str) -> bool:
    """Whether redis-py took a / ? or # in the password for the end of the host."""
    parts = urlsplit(url)
    return not (parts.path.strip("/") or "0").isdecimal() or "@" in parts.query + parts.fragment
