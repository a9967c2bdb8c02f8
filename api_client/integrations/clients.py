"""The client behind an adapter."""

from ..client import Client
from ..wire.errors import BadRequest

__all__ = ["client_of"]


def client_of(given: Client | None, *, asked_by: str) -> Client:
    """The one that was given, or one made from the environment.

    Raises:
        BadRequest: something else was given, such as a model's id by position.
    """
    if given is None:
        return Client(asked_by=asked_by)
    if not isinstance(given, Client):
        raise BadRequest(f"client is {given!r:.100}; pass a Client, and a model as model=...")
    return given
