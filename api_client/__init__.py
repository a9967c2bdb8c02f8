"""Embeddings from the Clipyard workers.

    with Client() as clip:
        vectors = clip.embed_texts(["a red bicycle"], model="ViT-B-32/openai")

Importing this costs little: torch is never loaded, Celery and NumPy only with the first name used.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .client import Client
    from .results import Item, ItemsFailed
    from .wire.errors import ClipyardError
    from .wire.settings import Settings

__all__ = ["AsyncClient", "Client", "ClipyardError", "Item", "ItemsFailed", "Settings"]

_HOMES = {
    "AsyncClient": "aio",
    "Client": "client",
    "ClipyardError": "wire.errors",
    "Item": "results",
    "ItemsFailed": "results",
    "Settings": "wire.settings",
}


if not TYPE_CHECKING:  # who checks types would take any name for one of ours

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module 'api_client' has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
