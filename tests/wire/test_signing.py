import time
from datetime import UTC, datetime

import pytest

from api_client.wire.errors import NotSigned
from api_client.wire.settings import Settings
from api_client.wire.signing import opened, signed

OLD, NEW = "o" * 32, "n" * 32
PAYLOAD = {"model": "m", "deadline": time.time() + 60, "asked_by": "café"}
HERE = {"task": "clipyard.load", "request": "1"}


def settings(key: str | None = NEW, old: str | None = None) -> Settings:
    return Settings.read(signing_key=key, old_signing_key=old)


def test_a_signed_request_opens_with_the_same_key() -> None:
    sent = signed(PAYLOAD, settings=settings(), **HERE)
    assert sent != PAYLOAD
    assert opened(sent, settings=settings(), **HERE) == PAYLOAD


def test_without_a_key_nothing_is_signed_and_nothing_asked_for() -> None:
    assert signed(PAYLOAD, settings=settings(None), **HERE) == PAYLOAD
    assert opened(PAYLOAD, settings=settings(None), **HERE) == PAYLOAD
    sent = signed(PAYLOAD, settings=settings(), **HERE)
    assert opened(sent, settings=settings(None), **HERE) == PAYLOAD


@pytest.mark.parametrize(
    "change",
    [
        {"model": "other"},
        {"deadline": PAYLOAD["deadline"] + 1},
        {"keep_alive_s": -1},
        {"signature": None},
        {"signature": ""},
        {"signature": "é"},
        {"signature": "\ud800"},
        {"signature": ["x"]},
        {"deadline": datetime.now(UTC)},
    ],
)
def test_a_changed_request_is_refused(change: dict[str, object]) -> None:
    sent = signed(PAYLOAD, settings=settings(), **HERE)
    with pytest.raises(NotSigned):
        opened(sent | change, settings=settings(), **HERE)


def test_a_signature_fits_no_other_task_and_no_other_id() -> None:
    sent = signed(PAYLOAD, settings=settings(), **HERE)
    for there in ({"task": "clipyard.unload"}, {"request": "2"}):
        with pytest.raises(NotSigned):
            opened(sent, settings=settings(), **HERE | there)


def test_an_unsigned_request_and_one_without_an_end_are_refused() -> None:
    with pytest.raises(NotSigned):
        opened(PAYLOAD, settings=settings(), **HERE)
    endless = signed({"model": "m"}, settings=settings(), **HERE)
    with pytest.raises(NotSigned, match="deadline"):
        opened(endless, settings=settings(), **HERE)


def test_while_keys_change_both_are_accepted() -> None:
    early = signed(PAYLOAD, settings=settings(OLD), **HERE)
    assert opened(early, settings=settings(NEW, OLD), **HERE) == PAYLOAD
    with pytest.raises(NotSigned):
        opened(early, settings=settings(NEW), **HERE)
