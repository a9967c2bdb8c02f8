import asyncio
import copy
import io
import pickle
from pathlib import Path

import numpy as np
import pytest

from api_client.client import Client
from api_client.testing import FakeClient
from api_client.wire.errors import BadRequest


def embedding(*args, **options):
    from api_client.integrations.llamaindex import ClipyardEmbedding  # takes seconds

    return ClipyardEmbedding(*args, **options)


def test_texts_and_queries_are_embedded_one_by_one_and_in_batches():
    model, fake = embedding(FakeClient(), model="fake/large"), FakeClient()
    wanted = fake.embed_texts(["a", "b"], model="fake/large")
    assert np.allclose(model.get_text_embedding_batch(["a", "b"]), wanted)
    assert np.allclose(model.get_text_embedding("a"), wanted[0])
    assert np.allclose(model.get_query_embedding("b"), wanted[1])


def test_pictures_are_embedded_from_paths_and_from_memory():
    model, fake = embedding(FakeClient()), FakeClient()
    wanted = fake.embed_images(["a.jpg", b"bytes", b"bytes", "a.jpg"])
    pictures = ["a.jpg", io.BytesIO(b"bytes"), b"bytes", Path("a.jpg")]
    assert np.allclose(model.get_image_embedding_batch(pictures), wanted)
    assert np.allclose(model.get_image_embedding("a.jpg"), wanted[0])


def test_an_option_that_is_none_of_ours_is_refused_at_once():
    with pytest.raises(TypeError, match="no option model_name; there are model,"):
        embedding(FakeClient(), model_name="fake/large")


def test_a_model_that_is_given_in_place_of_the_client_is_refused_at_once():
    with pytest.raises(BadRequest, match=r"client is 'fake/large'; .* model=\.\.\."):
        embedding("fake/large")


def test_the_awaited_calls_give_the_same():
    model = embedding(FakeClient())

    async def story():
        return (
            await model.aget_text_embedding_batch(["a", "b"]),
            await model.aget_query_embedding("a"),
            await model.aget_image_embedding_batch(["a.jpg"]),
            await model.aget_image_embedding("a.jpg"),
        )

    texts, query, images, image = asyncio.run(story())
    assert texts == model.get_text_embedding_batch(["a", "b"])
    assert query == model.get_query_embedding("a")
    assert images == [image] == [model.get_image_embedding("a.jpg")]


@pytest.mark.parametrize("client", [lambda: None, Client])
def test_a_pipeline_of_several_processes_has_the_same_model_in_each(monkeypatch, client):
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "redis://127.0.0.1:1")
    model = embedding(client(), model="fake/large", embed_batch_size=7, timeout=5)
    again = pickle.loads(pickle.dumps(model))
    assert again.to_dict() == model.to_dict()
    assert again._options == {"model": "fake/large", "timeout": 5}


def test_a_client_that_was_given_may_stay_in_its_process():
    with pytest.raises(TypeError, match=r"of the same CLIPYARD_\*$"):
        pickle.dumps(embedding(FakeClient()))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: model.model_copy(deep=True)])
def test_a_deep_copy_asks_the_same_client(copied):
    model = embedding(FakeClient(), model="fake/large", embed_batch_size=7)
    again = copied(model)
    assert again is not model
    assert again.to_dict() == model.to_dict()
    assert again.get_text_embedding("a") == model.get_text_embedding("a")
    assert again._client is model._client


def test_nothing_chooses_among_models_for_an_index():
    with pytest.raises(BadRequest, match="model is 'auto'; name one"):
        embedding(FakeClient(), model="auto")


def test_what_is_made_of_a_dictionary_embeds_by_the_same_model():
    for options in ({"model": "fake/large", "timeout": 5}, {}):
        model = embedding(FakeClient(), embed_batch_size=7, **options)
        again = type(model).from_dict(model.to_dict(), client=FakeClient())
        assert again.to_dict() == model.to_dict()
        assert again.get_text_embedding("a") == model.get_text_embedding("a")
