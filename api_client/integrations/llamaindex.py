"""LlamaIndex's multi-modal embedding."""

import asyncio
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any, Self, Unpack

from llama_index.core.base.embeddings.base import Embedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.core.schema import ImageType

from ..client import Client
from ..inputs import Picture
from ..requests import EmbedOptions
from .clients import client_of, options_of
from .rows import rows

CURRENT = "clipyard"  # the name of whatever model is the current one


class ClipyardEmbedding(MultiModalEmbedding):
    """Embeds texts and pictures into one space.

    Args:
        client: made from the environment unless given.
        embed_batch_size: items that LlamaIndex collects for one call.
        options: of every call, see `EmbedOptions`. Name the `model` that an index was made with:
            the current one may be switched, and vectors of two models cannot be compared.

    Raises:
        BadRequest: an argument has a value that cannot be used. TypeError: there is no such option.
    """

    _client: Client = PrivateAttr()
    _options: EmbedOptions = PrivateAttr()

    def __init__(
        self,
        client: Client | None = None,
        *,
        embed_batch_size: int = 256,
        **options: Unpack[EmbedOptions],
    ) -> None:
        super().__init__(
            model_name=options_of(options).get("model") or CURRENT,
            embed_batch_size=embed_batch_size,
        )
        self._client = client_of(client, asked_by="llamaindex")
        self._options = options

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        """Made anew, as a pipeline of several processes (`num_workers`) hands it to each.

        LlamaIndex leaves out what cannot be sent: a client that stays in its process, say.
        """
        again = partial(type(self), self._client, embed_batch_size=self.embed_batch_size)
        return partial(again, **self._options), ()

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """As of any other model, but that both have one client: threads may share it."""
        memo = {} if memo is None else memo
        memo[id(self._client)] = self._client
        return super().__deepcopy__(memo)

    @classmethod
    def from_dict(cls, data: dict[str, Any], **given: Any) -> Self:
        """One of the same model, of what `to_dict` tells; client and other options are given."""
        model = None if data["model_name"] == CURRENT else data["model_name"]
        same = {"model": model, "embed_batch_size": data["embed_batch_size"]}
        return cls(**same | given)

    @classmethod
    def class_name(cls) -> str:
        return "ClipyardEmbedding"

    def _get_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return rows(self._client.embed_texts_detailed(texts, **self._options))

    def _get_text_embedding(self, text: str) -> Embedding:
        return self._get_text_embeddings([text])[0]

    def _get_query_embedding(self, query: str) -> Embedding:
        return self._get_text_embedding(query)

    def _get_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        pictures = [_picture(one) for one in img_file_paths]
        return rows(self._client.embed_images_detailed(pictures, **self._options))

    def _get_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return self._get_image_embeddings([img_file_path])[0]

    async def _aget_text_embeddings(self, texts: list[str]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)

    async def _aget_text_embedding(self, text: str) -> Embedding:
        return (await self._aget_text_embeddings([text]))[0]

    async def _aget_query_embedding(self, query: str) -> Embedding:
        return await self._aget_text_embedding(query)

    async def _aget_image_embeddings(self, img_file_paths: list[ImageType]) -> list[Embedding]:
        return await asyncio.to_thread(self._get_image_embeddings, img_file_paths)

    async def _aget_image_embedding(self, img_file_path: ImageType) -> Embedding:
        return (await self._aget_image_embeddings([img_file_path]))[0]


def _picture(one: ImageType | Picture) -> Picture:
    return one.getvalue() if isinstance(one, BytesIO) else one
