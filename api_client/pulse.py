"""Whether one process of an installation is well, asked from beside it, cheaply."""

import http.client
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

import redis

from .wire.broker import redis_client
from .wire.codec import text, unpack_record
from .wire.errors import NoBroker
from .wire.messages import WorkerStatus
from .wire.names import Keys
from .wire.settings import Settings

PATIENCE_S = 2.0  # whoever asks waits for ten seconds, and Python needs some of them to start
# The page is this machine's own: a proxy that containers are given would look for it on another.
_STRAIGHT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def sickness(*, worker: str | None, url: str | None) -> str:
    """What is wrong, in a sentence; empty if nothing is. For a page alone, Redis is not asked.

    Raises:
        NoBroker: Redis does not answer, or takes no writes, so nothing is known of the worker.
    """
    found = "" if url and not worker else _in_redis(worker)
    return found or (_page(url) if url else "")


def _in_redis(worker: str | None) -> str:
    settings = Settings.read()
    patience = {"socket_timeout": PATIENCE_S, "socket_connect_timeout": PATIENCE_S}
    try:
        with redis_client(settings, patience_s=0, **patience) as store:
            store.ping()
            if not worker:
                return ""
            keys = Keys(settings.key_prefix)
            fields = store.hgetall(keys.worker(worker))
            found = _trouble(fields) if fields else f"not there; {_others(store, keys)}"
            if not fields:
                _try_to_write(store, keys)
    except redis.RedisError as error:
        raise NoBroker(f"Redis cannot be asked: {error}") from None
    return found and f"{worker} is {found}"


def _try_to_write(store: Any, keys: Keys) -> None:
    """Where Redis takes no writes (a full disk, no memory left), nobody alive is there either."""
    with suppress(redis.exceptions.NoPermissionError):  # a login that may only look
        store.set(keys.probe, 1, px=1)


def _others(store: Any, keys: Keys) -> str:
    names = sorted(text(name) for name in store.smembers(keys.workers))
    there = [name for name in names if store.hget(keys.worker(name), "started_at")]
    return f"there are {', '.join(there)}" if there else "no worker is"


def _trouble(fields: dict[bytes, bytes]) -> str:
    status = unpack_record(WorkerStatus, fields)
    finishes_what_it_has_begun = status.state == "stopping" and not status.trouble
    if status.state == "ready" or finishes_what_it_has_begun:
        return ""
    return f"{status.state} {status.trouble}".strip()


def _page(url: str) -> str:
    try:
        with _STRAIGHT.open(url, timeout=PATIENCE_S):
            return ""
    except urllib.error.HTTPError as error:  # who asks for a password is alive
        with error:
            return "" if error.code in (401, 403) else f"{url} answers {error.code}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{url} does not answer: {getattr(error, 'reason', error)}"
