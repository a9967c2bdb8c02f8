"""LangChain's own suite for embeddings against a real worker."""

import pytest_asyncio
from langchain_tests.integration_tests import EmbeddingsIntegrationTests

from api_client import AsyncClient, Settings
from api_client.integrations.langchain import ClipyardEmbeddings


class TestReal(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return ClipyardEmbeddings

    @pytest_asyncio.fixture
    async def model(self, running, client):
        async with AsyncClient(Settings.read(redis_url=running.url)) as awaiting:
            yield ClipyardEmbeddings(client, async_client=awaiting, model="fake/vision")
