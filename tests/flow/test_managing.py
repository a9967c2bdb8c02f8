"""Loading, switching and unloading through a real worker, while it works."""

import pytest

from api_client.testing import FakeClient
from api_client.wire.errors import ClipyardError, UnknownModel
from api_client.wire.messages import CatalogueEntry, Kind


def loaded(client):
    return {status.id for worker in client.status().workers for status in worker.models}


def test_load_switch_and_unload_are_answered_by_the_worker(client):
    [there] = client.load("fake/vision")
    assert there.model == "fake/vision"
    [again] = client.load("fake/vision")
    assert not again.changed
    [switched] = client.switch("fake/text")
    assert switched.changed
    assert client.embed_texts_detailed(["hello"])[0].model == "fake/text"
    [back] = client.switch("fake/vision")
    assert "fake/text" in back.message
    [gone] = client.unload("fake/vision")
    assert gone.changed
    [nothing] = client.unload("fake/vision")
    assert not nothing.changed


def test_an_unknown_model_changes_nothing(client):
    client.load("fake/vision")
    with pytest.raises(UnknownModel):
        client.switch("fake/visions")
    [still] = client.load("fake/vision")
    assert not still.changed


CALLS = (
    lambda c: c.reload("fake/vision"),
    lambda c: c.load("fake/vision"),
    lambda c: c.unload("fake/vision"),
    lambda c: c.switch("fake/vision"),  # which is the current one, and not there
    lambda c: c.switch("fake/text"),
    lambda c: c.embed_images_detailed([b"a picture"]),
    lambda c: c.unload(scope="text"),
    lambda c: c.unload(scope="family", family="fake"),
    lambda c: c.unload(scope="family", family="nobody's"),
    lambda c: c.unload(scope="timeout"),
    lambda c: c.load("fake/text"),
    lambda c: c.set_knobs({"pinned": ["fake/text"]}),
    lambda c: c.switch("fake/vision"),
    lambda c: c.set_knobs({"pinned": []}),
    lambda c: c.unload(scope="vision"),
)


def told(client, call):
    """What comes of it, and what is in memory then."""
    try:
        what = [(answer.model, getattr(answer, "changed", None)) for answer in call(client)]
    except ClipyardError as error:
        what = error.code
    return what, sorted((model.id, model.type) for model in client.loaded_models())


def test_the_fake_client_answers_as_one_with_a_worker(client):
    entries = [
        CatalogueEntry(id="fake/vision", name="", family="fake", dimension=16),
        CatalogueEntry(id="fake/text", name="", family="fake", dimension=8, kinds=(Kind.TEXT,)),
    ]
    client.unload(scope="everything")
    with FakeClient(models=entries) as fake:
        assert [told(fake, call) for call in CALLS] == [told(client, call) for call in CALLS]
