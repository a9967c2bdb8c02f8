"""What several commands take, whom they ask, and how they end."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .client import Client

FAILED, USAGE, NOBODY = 1, 2, 3

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="A model id; the current model if not given.")
]


def a_client() -> "Client":
    from .client import Client

    return Client(asked_by="cli")


def patience_s(items: int) -> float:
    """How long each message of a call may take that somebody watches: as long as all that are on
    the way, one after another. On a CPU the last of eight was given up while the first one ran."""
    from .wire.settings import LONGEST_S, Settings

    settings = Settings.read()
    messages = -(-items // settings.chunk_size)
    at_once = max(1, min(messages, settings.in_flight))
    return min(at_once * settings.answer_timeout_s, LONGEST_S)
