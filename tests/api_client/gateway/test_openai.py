"""The real openai client and langchain-openai against a gateway that listens."""

import asyncio
import base64
import itertools
import threading

import httpx
import numpy as np
import openai
import pytest

from api_client.gateway import inputs
from api_client.gateway import openai as openai_paths
from api_client.gateway.app import build
from api_client.gateway.settings import GatewaySettings
from api_client.testing import FakeAsyncClient, FakeClient

HERE = "http://127.0.0.1"
TOKEN = "a-token-of-some-length"


@pytest.fixture
def url(listening):
    settings = GatewaySettings.read(redis_url="redis://127.0.0.1:1/0", gateway_tokens=[TOKEN])
    return listening(build(FakeAsyncClient(), settings)) + "/v1"


@pytest.fixture
def client(url):
    with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_texts_in_every_encoding(client, form):
    answer = client.embeddings.create(model="fake/large", input=["one", "two"], **form)
    rows = [row.embedding for row in answer.data]
    if form.get("encoding_format") == "base64":
        rows = [np.frombuffer(base64.b64decode(row), "<f4") for row in rows]
    wanted = FakeClient().embed_texts(["one", "two"], model="fake/large")
    assert np.allclose(rows, wanted, atol=1e-6)
    assert answer.model == "fake/large"


def test_a_picture_as_a_data_uri(client):
    uri = "data:image/png;base64," + base64.b64encode(b"picture").decode()
    [row] = client.embeddings.create(model="fake/small", input=uri).data
    assert np.allclose(row.embedding, FakeClient().embed_images([b"picture"])[0], atol=1e-6)


def test_others_are_answered_while_pictures_are_read(client, monkeypatch):
    read, answered = inputs.of_data_uri, []

    def reading(uri):
        answered.extend(client.with_options(timeout=2).models.list())
        return read(uri)

    monkeypatch.setattr(inputs, "of_data_uri", reading)
    uri = "data:image/png;base64," + base64.b64encode(b"picture").decode()
    client.embeddings.create(model="fake/small", input=uri)
    assert answered


@pytest.mark.parametrize("other", ["a text", "http://a/b.jpg"])
def test_pictures_that_are_read_take_no_thread_that_others_need(monkeypatch, other):
    goes_on = threading.Event()
    monkeypatch.setattr(inputs, "of_data_uri", lambda _: goes_on.wait() and b"picture")

    async def asked(given):
        return await inputs.embed(FakeAsyncClient(), [given], model=None, modality=None)

    async def all_of_them():
        uploads = [asyncio.create_task(asked("data:image/png;base64,")) for _ in range(40)]
        try:
            await asyncio.sleep(0)  # each has asked for its thread
            await asyncio.wait_for(asked(other), 10)
        finally:
            goes_on.set()
            await asyncio.gather(*uploads)

    asyncio.run(all_of_them())


def test_others_have_their_turns_while_many_vectors_are_written(monkeypatch, settings):
    monkeypatch.setattr(openai_paths, "TURN_S", 0)
    turns, seen = itertools.count(), []
    encoded = openai_paths.encoded
    monkeypatch.setattr(
        openai_paths, "encoded", lambda *asked: seen.append(next(turns)) or encoded(*asked)
    )

    async def others():
        while True:
            next(turns)
            await asyncio.sleep(0)

    async def ask():
        gateway = httpx.ASGITransport(build(FakeAsyncClient(), settings))
        async with httpx.AsyncClient(transport=gateway, base_url=HERE) as http:
            others_ask = asyncio.create_task(others())
            answer = await http.post("/v1/embeddings", json={"input": ["a", "b", "c"]})
            others_ask.cancel()
            return answer.json()["data"]

    rows = asyncio.run(ask())
    assert [row["index"] for row in rows] == [0, 1, 2]
    assert np.diff(seen).min() > 1


def test_models_are_listed_and_found(client):
    assert [model.id for model in client.models.list()] == ["fake/small", "fake/large"]
    assert client.models.retrieve("fake/large").owned_by == "fake"


@pytest.mark.parametrize(
    ("asked", "raised"),
    [
        ({"model": "no/such", "input": "a"}, openai.NotFoundError),
        ({"model": "fake/small", "input": "a", "dimensions": 7}, openai.BadRequestError),
        ({"model": "fake/small", "input": ""}, openai.UnprocessableEntityError),
        ({"model": "fake/small", "input": [[1, 2]]}, openai.UnprocessableEntityError),
    ],
)
def test_a_refusal_is_raised_with_its_sentence(client, asked, raised):
    with pytest.raises(raised) as refused:
        client.embeddings.create(**asked)
    assert refused.value.body["message"]
    assert refused.value.code


def test_a_wrong_key_is_an_authentication_error(url):
    with (
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError),
    ):
        client.models.list()


def test_langchain_openai_embeds(url):
    # It would send token numbers of OpenAI's own vocabulary otherwise.
    from langchain_openai import OpenAIEmbeddings  # takes seconds

    embeddings = OpenAIEmbeddings(
        model="fake/large", base_url=url, api_key=TOKEN, check_embedding_ctx_length=False
    )
    rows = embeddings.embed_documents(["one", "two"])
    fake = FakeClient()
    assert np.allclose(rows, fake.embed_texts(["one", "two"], model="fake/large"), atol=1e-6)
    assert np.allclose(
        embeddings.embed_query("one"), fake.embed_texts("one", model="fake/large")[0], atol=1e-6
    )
