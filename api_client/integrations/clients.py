"""The client behind an adapter, and what each call asks of it."""

from ..client import Client
from ..requests import EmbedOptions, checked, own_model
from ..wire.errors import BadRequest

__all__ = ["client_of", "options_of"]


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


def options_of(given: EmbedOptions) -> EmbedOptions:
    """The options of every call.

    Raises:
        BadRequest: one cannot be used, or the model is `auto`: each call would choose for itself,
            and an index hold vectors of two models. TypeError: there is no such option.
    """
    if (model := checked(given).get("model")) is not None:
        own_model(model)
    return given
