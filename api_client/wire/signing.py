"""Signed requests: with a key set, only its holders can make a worker load or embed.

The signature covers the task, the request's id and every field, so it fits no other request. A
request that is heard and sent again has the same id, is known to be answered until its deadline,
and ends with that, without which nothing signed is accepted. Why not Celery's own
`auth` serializer: docs/security.md, "Signed requests".
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any, NoReturn

from .errors import NotSigned
from .settings import Settings

FIELD = "signature"


def signed(
    payload: Mapping[str, Any], *, task: str, request: str, settings: Settings
) -> dict[str, Any]:
    """The payload as it is to be sent: with a signature where a key is set."""
    if settings.signing_key is None:
        return dict(payload)
    mac = _mac(settings.signing_key.get_secret_value(), task, request, payload)
    return {**payload, FIELD: mac}


def opened(
    payload: Mapping[str, Any], *, task: str, request: str, settings: Settings
) -> dict[str, Any]:
    """The payload without its signature.

    Raises:
        NotSigned: a key is set, and the signature is missing, wrong, or never ends.
    """
    plain = {name: value for name, value in payload.items() if name != FIELD}
    keys = accepted(settings)
    if not keys:
        return plain
    given = payload.get(FIELD)
    if not (isinstance(given, str) and given.isascii()) or not any(
        hmac.compare_digest(_mac(key, task, request, plain), given) for key in keys
    ):
        raise NotSigned(
            "the request is not signed with this installation's key: set CLIPYARD_SIGNING_KEY "
            "to what the workers have"
        )
    if not isinstance(plain.get("deadline"), int | float):
        raise NotSigned("a signed request needs a deadline")
    return plain


def accepted(settings: Settings) -> list[str]:
    """The keys, with one of which a request has to be signed; without any, none has to be."""
    return [
        key.get_secret_value() for key in (settings.signing_key, settings.old_signing_key) if key
    ]


def _mac(key: str, task: str, request: str, payload: Mapping[str, Any]) -> str:
    whole = [task, request, payload]
    canonical = json.dumps(whole, sort_keys=True, separators=(",", ":"), default=_refuse)
    return hmac.new(key.encode(), canonical.encode(), hashlib.sha256).hexdigest()


def _refuse(value: Any) -> NoReturn:
    """Kombu makes dates, decimals and the like of what a stranger's message marks as such."""
    raise NotSigned(f"the request holds a {type(value).__name__}, and none that is signed does")
