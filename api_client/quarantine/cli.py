"""`clipyard quarantine`: messages that took their workers down, and what becomes of them."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import Json, a_client

if TYPE_CHECKING:
    from ..wire.quarantine import Evidence

app = typer.Typer(
    help="Requests set aside for taking two workers down.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Id = Annotated[str, typer.Argument(help="An id, see `clipyard quarantine list`.")]


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List what is in quarantine, the newest first."""
    from .. import show
    from . import talks

    with a_client() as client:
        found = client._hold(talks.held(client._desk.line))
    rows = [_row(evidence) for evidence in found]
    columns = ["id/task/model", "at/workers/items"]
    show.table(columns, rows, as_json=as_json, unbroken="id/task/model")


@app.command("show")
def show_(id: Id, as_json: Json = False) -> None:
    """Show of one when, which workers, and what ran beside it."""
    from .. import show
    from . import talks

    with a_client() as client:
        evidence = client._hold(talks.one(client._desk.line, id))
    if as_json:
        print(evidence.model_dump_json(exclude={"payload", "signature"}))
        return
    rows = [{"": name, " ": value} for name, value in _everything(evidence).items()]
    show.table(["", " "], rows, as_json=False)


@app.command()
def retry(id: Id, as_json: Json = False) -> None:
    """Send one again with a clean record, and wait for its answer."""
    from . import talks

    with a_client() as client:
        answer = client._hold(talks.again(client._desk.line, id))
    print(answer.model_dump_json() if as_json else f"{id} was answered")


@app.command()
def drop(ids: Annotated[list[str], typer.Argument(help="Ids; repeatable.")]) -> None:
    """Drop requests for good, with what is known of them."""
    from . import talks

    with a_client() as client:
        for id in ids:
            client._hold(talks.forgotten(client._desk.line, id))


def _row(evidence: "Evidence") -> dict[str, Any]:
    return {
        "id": evidence.id,
        "task": evidence.task,
        "model": evidence.model,
        "workers": ", ".join(dict.fromkeys(crash.worker for crash in evidence.crashes)),
        "items": " ".join(evidence.items[:2]),
        "at": _clock(evidence.at),
    }


def _everything(evidence: "Evidence") -> dict[str, Any]:
    crashes = [
        f"{_clock(crash.at)} {crash.worker}, beside it: {', '.join(crash.beside) or 'nothing'}"
        for crash in evidence.crashes
    ]
    return {
        **_row(evidence),
        "items": "\n".join(evidence.items),
        "asked by": evidence.asked_by,
        "begun": "\n".join(crashes),
        "can be sent again": "no" if evidence.payload is None else "yes",
    }


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
