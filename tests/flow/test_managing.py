"""Loading, switching and unloading through a real worker, while it works."""

import pytest

from api_client.wire.errors import UnknownModel


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
