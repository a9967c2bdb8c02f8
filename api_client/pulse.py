"""Whether one process of an installation is well, asked from beside it, cheaply."""

import urllib.error
import urllib.request

import redis

from .wire.broker import redis_client
from .wire.codec import unpack_record
from .wire.errors import ClipyardError
from .wire.messages import WorkerStatus
from .wire.names import Keys
from .wire.settings import Settings

PATIENCE_S = 2.0


def sickness(*, worker: str | None, url: str | None) -> str:
    """What is wrong, in a sentence; empty if nothing is."""
    try:
        settings = Settings.read()
        with redis_client(settings, patience_s=PATIENCE_S) as store:
            store.ping()
            fields = store.hgetall(Keys(settings.key_prefix).worker(worker)) if worker else None
    except (redis.RedisError, ClipyardError) as error:
        return f"Redis cannot be asked: {error}"
    if worker is not None and (not fields or (found := _trouble(fields))):
        return f"{worker} is {found if fields else 'not there'}"
    return _page(url) if url else ""


def _trouble(fields: dict[bytes, bytes]) -> str:
    status = unpack_record(WorkerStatus, fields)
    return "" if status.state == "ready" else f"{status.state} {status.trouble}".strip()


def _page(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE_S):
            return ""
    except urllib.error.HTTPError as error:  # who asks for a password is alive
        return "" if error.code < 500 else f"{url} answers {error.code}"
    except OSError as error:
        return f"{url} does not answer: {error}"
