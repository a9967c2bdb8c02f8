"""LangChain's own test kit, and what it does not ask."""

import asyncio
import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from api_client.integrations.langchain import ClipyardEmbeddings
from api_client.testing import FakeAsyncClient, FakeClient
from api_client.wire.errors import BadRequest


class TestUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self):
        return ClipyardEmbeddings

    @property
    def embedding_model_params(self):
        return {"client": FakeClient(), "model": "fake/large"}


class TestIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return ClipyardEmbeddings

    @property
    def embedding_model_params(self):
        return {"client": FakeClient(), "async_client": FakeAsyncClient(), "model": "fake/large"}


def test_pictures_share_the_space_of_the_texts():
    embeddings = ClipyardEmbeddings(FakeClient(), model="fake/large")
    wanted = FakeClient().embed_images([b"picture"], model="fake/large")
    assert np.allclose(embeddings.embed_image([b"picture"]), wanted)
    assert len(embeddings.embed_query("a")) == len(wanted[0])


class Cutting(FakeClient):
    def embed_texts_detailed(self, texts, **options):
        whole = super().embed_texts_detailed(texts, **options)
        return [replace(item, truncated=True) for item in whole]


def test_a_text_that_was_cut_is_warned_of():
    with pytest.warns(UserWarning, match="split texts into shorter ones"):
        ClipyardEmbeddings(Cutting()).embed_documents(["long"])


def test_an_option_that_is_none_of_ours_is_refused_at_once():
    with pytest.raises(TypeError, match="no option model_name; there are model,"):
        ClipyardEmbeddings(FakeClient(), model_name="fake/large")


@pytest.mark.parametrize("given", ["fake/large", FakeAsyncClient()])
def test_what_is_given_in_place_of_the_client_is_refused_at_once(given):
    with pytest.raises(BadRequest, match=r"client is .*; pass a Client, and a model as model="):
        ClipyardEmbeddings(given)


def test_a_client_that_waits_is_no_async_client():
    with pytest.raises(BadRequest, match=r"async_client is .*; pass an AsyncClient$"):
        ClipyardEmbeddings(FakeClient(), async_client=FakeClient())


def test_without_an_async_client_the_awaited_calls_give_the_same():
    embeddings = ClipyardEmbeddings(FakeClient())
    assert asyncio.run(embeddings.aembed_query("a")) == embeddings.embed_query("a")


def test_a_deep_copy_asks_the_same_client():
    embeddings = ClipyardEmbeddings(FakeClient(), model="fake/large")
    [again] = copy.deepcopy([embeddings])
    assert again is not embeddings
    assert again.embed_query("a") == embeddings.embed_query("a")
    assert again._client is embeddings._client


def test_embeddings_of_the_environment_are_made_anew_where_they_are_sent(monkeypatch):
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "redis://127.0.0.1:1")
    again = pickle.loads(pickle.dumps(ClipyardEmbeddings(model="fake/large")))
    assert again._options == {"model": "fake/large"}


def test_a_client_that_was_given_may_stay_in_its_process():
    with pytest.raises(TypeError, match=r"of the same CLIPYARD_\*$"):
        pickle.dumps(ClipyardEmbeddings(FakeClient()))


def test_nothing_chooses_among_models_for_an_index():
    with pytest.raises(BadRequest, match="model is 'auto'; name one"):
        ClipyardEmbeddings(FakeClient(), model="auto")
