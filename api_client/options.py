"""What several commands take, whom they ask, and how they end."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .client import Client

FAILED, USAGE, NOBODY = 1, 2, 3
EMPTY = "is empty; give it a value, or leave it out"  # of a variable that is not set

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Model = Annotated[
    str | None, typer.Option("--model", "-m", help="A model id; the current model if not given.")
]


def a_client() -> "Client":
    from .client import Client

    return Client(asked_by="cli")
