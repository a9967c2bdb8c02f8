import json
from decimal import Decimal
from types import SimpleNamespace

import pytest

from api_client.wire.messages import EmbedBatch, PathRef, UrlRef
from api_client.wire.quarantine import KEPT_S, Crash, Evidence
from api_client.wire.settings import Settings
from api_client.wire.signing import FIELD, opened, signed
from worker.delivery import quarantine
from worker.delivery.quarantine import ITEMS_TOLD, of_request, put, reference

CRASHES = (Crash(worker="gpu0@a", at=1.0),)


def task(id="r", **payload):
    delivery = {"routing_key": "embed", "priority": 9}
    return SimpleNamespace(
        name="clipyard.embed_batch",
        request=SimpleNamespace(id=id, delivery_info=delivery, kwargs=payload),
    )


def evidence(id, at):
    return Evidence(id=id, task="t", at=at, crashes=CRASHES)


def test_the_quarantine_is_bounded_and_the_oldest_goes(store, keys, monkeypatch):
    monkeypatch.setattr(quarantine, "KEPT", 3)
    for n in (1, 5, 3, 4, 2, 6):
        put(store, keys, evidence(f"m{n}", at=n))
    assert sorted(store.hkeys(keys.quarantine)) == [b"m4", b"m5", b"m6"]
    assert 0 < store.ttl(keys.quarantine) <= KEPT_S


def test_the_same_message_is_there_once(store, keys):
    put(store, keys, evidence("m", at=1))
    put(store, keys, evidence("m", at=2))
    assert store.hlen(keys.quarantine) == 1


def test_the_evidence_names_pictures_and_shows_no_text():
    pictures = EmbedBatch(images=tuple(PathRef(path=f"/a/{n}.jpg") for n in range(20)), model="m")
    found = of_request(task(**pictures.model_dump(mode="json")), pictures, CRASHES)
    assert found.items[0] == "/a/0.jpg"
    assert found.items[ITEMS_TOLD] == "and 4 more"
    assert (found.model, found.queue, found.priority) == ("m", "embed", 9)
    assert EmbedBatch.model_validate(found.payload) == pictures
    assert of_request(task(), EmbedBatch(texts=("secret",)), CRASHES).items == (
        "a text of 6 characters",
    )


def test_a_url_is_told_without_its_login_and_query():
    url = UrlRef(url="https://me:pass@host/a/b.jpg?token=1")
    [item] = of_request(task(), EmbedBatch(images=(url,)), CRASHES).items
    assert item == "https://host/a/b.jpg"


@pytest.mark.parametrize("host", ["[x", "me:pass@[x"])
def test_a_url_that_cannot_be_read_is_told_too(host):
    assert reference(f"http://{host}/b.jpg?token=1") == "http://[x/b.jpg"


def test_a_long_path_is_told_by_its_end():
    assert reference("/x" * 200 + "/b.jpg").endswith("/x/b.jpg")
    assert len(reference("/x" * 200 + "/b.jpg")) < 90


@pytest.mark.parametrize(("length", "kept"), [(10, True), (70_000, False)])
def test_a_message_is_kept_to_be_sent_again_unless_it_is_large(length, kept):
    texts = ["a" * length]
    found = of_request(task(texts=texts), EmbedBatch(texts=texts), CRASHES)
    assert (found.payload is not None) is kept


def test_a_message_is_kept_as_it_was_signed():
    """Also one that spells out what need not be said."""
    address = {"task": "clipyard.embed_batch", "request": "r"}
    settings = Settings.read(signing_key="a key of sixteen and more")
    fields = {"images": [{"blob": 0, "sha256": "0" * 64}], "deadline": 5, "keep_alive_s": None}
    sent = json.loads(json.dumps(signed(fields, settings=settings, **address)))
    found = of_request(task(**sent), EmbedBatch(**fields), CRASHES)
    kept = found.payload | {FIELD: found.signature}
    assert opened(kept, settings=settings, **address) == fields


def test_what_is_no_json_is_kept_as_text():
    found = of_request(task(deadline=Decimal("1.5")), EmbedBatch(texts=("a",)), CRASHES)
    assert found.payload == {"deadline": "1.5"}
