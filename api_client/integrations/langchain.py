"""LangChain's `Embeddings`, for pictures too."""

from collections.abc import Sequence
from copy import copy
from typing import Any, Self, Unpack

from langchain_core.embeddings import Embeddings

from ..aio import AsyncClient
from ..client import Client
from ..inputs import Picture
from ..requests import EmbedOptions
from ..wire.errors import BadRequest
from .clients import client_of, options_of
from .rows import rows


class ClipyardEmbeddings(Embeddings):
    """Embeds texts and pictures into one space.

    Args:
        client: made from the environment unless given.
        async_client: for the awaited calls; without it they wait for `client` in a thread.
        options: of every call, see `EmbedOptions`. Name the `model` that an index was made with:
            the current one may be switched, and vectors of two models cannot be compared.

    Raises:
        BadRequest: an argument has a value that cannot be used. TypeError: there is no such option.
    """

    def __init__(
        self,
        client: Client | None = None,
        *,
        async_client: AsyncClient | None = None,
        **options: Unpack[EmbedOptions],
    ) -> None:
        self._options = options_of(options)
        if not isinstance(async_client, AsyncClient | None):
            raise BadRequest(f"async_client is {async_client!r:.100}; pass an AsyncClient")
        self._client = client_of(client, asked_by="langchain")
        self._async_client = async_client

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Both have one client: threads may share it."""
        return copy(self)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return rows(self._client.embed_texts_detailed(texts, **self._options))

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]

    def embed_image(self, uris: Sequence[Picture]) -> list[list[float]]:
        """One vector per picture: paths, URLs, data URIs, bytes, Pillow images or arrays."""
        return rows(self._client.embed_images_detailed(uris, **self._options))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        if self._async_client is None:
            return await super().aembed_documents(texts)
        return rows(await self._async_client.embed_texts_detailed(texts, **self._options))

    async def aembed_query(self, text: str) -> list[float]:
        return (await self.aembed_documents([text]))[0]
