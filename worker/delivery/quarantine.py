"""Where a message goes that took its workers down, with what is known of it."""

import json
import time
from typing import Any
from urllib.parse import urlsplit

import redis

from api_client.wire.messages import BlobRef, PathRef, Request, UrlRef
from api_client.wire.names import Keys
from api_client.wire.quarantine import KEPT, KEPT_S, Crash, Evidence
from api_client.wire.signing import FIELD

__all__ = ["of_request", "put", "reference"]

ITEMS_TOLD = 16
REF_CHARS = 80
PAYLOAD_CHARS = 64 * 1024

# Bounded: the oldest goes. KEYS: the quarantine. ARGV: id, evidence, how many, seconds.
_PUT = """
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], ARGV[4])
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[3]) then
  local held, oldest, at = redis.call('HGETALL', KEYS[1]), nil, nil
  for i = 1, #held, 2 do
    local since = cjson.decode(held[i + 1]).at
    if not at or since < at then oldest, at = held[i], since end
  end
  redis.call('HDEL', KEYS[1], oldest)
end
"""


def put(store: redis.Redis, keys: Keys, evidence: Evidence) -> None:
    """Keep it, a week or until there are many newer ones."""
    store.eval(_PUT, 1, keys.quarantine, evidence.id, evidence.model_dump_json(), KEPT, KEPT_S)


def of_request(task: Any, request: Request, crashes: tuple[Crash, ...]) -> Evidence:
    """The evidence against a request.

    Args:
        task: Celery's, bound to the message.
    """
    # As text, for a stranger's message may hold what is no JSON.
    fields = json.loads(json.dumps(task.request.kwargs, default=str))
    signature = str(fields.pop(FIELD, ""))[:64]
    refs = [*getattr(request, "images", ()), *getattr(request, "texts", ())]
    told = [_shortened(ref) for ref in refs[:ITEMS_TOLD]]
    if (untold := len(refs) - len(told)) > 0:
        told.append(f"and {untold} more")
    delivery = task.request.delivery_info or {}
    return Evidence(
        id=task.request.id,
        task=task.name,
        model=getattr(request, "model", None) or "",
        items=tuple(told),
        asked_by=request.asked_by,
        at=time.time(),
        crashes=crashes,
        queue=delivery.get("routing_key") or "",
        priority=delivery.get("priority") or 0,
        payload=fields if len(json.dumps(fields)) <= PAYLOAD_CHARS else None,
        signature=signature,
    )


def _shortened(ref: PathRef | UrlRef | BlobRef | str) -> str:
    """Enough of a reference to find the picture by; of a text, its length only."""
    match ref:
        case PathRef(path=path):
            return reference(path)
        case UrlRef(url=url):
            return reference(url)
        case BlobRef(blob=number):
            return f"picture {number}, sent by value"
        case _:
            return f"a text of {len(ref)} characters"


def reference(ref: str) -> str:
    """The end of a path or URL, without login and query."""
    if "://" in ref:
        try:
            place = urlsplit(ref)
            ref = f"{place.scheme}://{place.hostname or ''}{place.path}"
        except ValueError:  # as http://[x/a.jpg: nobody could fetch it, but it may be told
            scheme, _, rest = ref.partition("?")[0].partition("://")
            ref = f"{scheme}://{rest.rpartition('@')[2]}"
    return ref if len(ref) <= REF_CHARS else f"...{ref[-REF_CHARS:]}"
