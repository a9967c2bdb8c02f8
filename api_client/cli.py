"""The `clipyard` command. Each command is a few lines around the client; `--json` for scripts.

Exit codes: 0 done, 1 some items or all of it failed, 2 wrong usage, 3 nobody to ask (no Redis, no
worker, no answer), 130 interrupted, 143 terminated.
"""

import json
import os
import re
import sys
from io import TextIOWrapper
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, cast

import typer

from .options import EMPTY, FAILED, NOBODY, USAGE, Json, Model, a_client
from .quarantine import cli as quarantine
from .reembed import cli as reembed
from .stack import cli as stack
from .wire.version import VERSION

if TYPE_CHECKING:
    from .results import Item

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

app.add_typer(stack.app)
app.add_typer(reembed.app, name="reembed")
app.add_typer(quarantine.app, name="quarantine")

ModelId = Annotated[str, typer.Argument(help="A model id.")]
Images = Annotated[list[str], typer.Argument(help="Pictures, folders of them, URLs, or data URIs.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Write vectors: .npy, .parquet or .jsonl.")
]
Workers = Annotated[
    list[str] | None,
    typer.Option("--worker", "-w", help="A worker's node name, or all; repeatable."),
]


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"clipyard {VERSION}")
        raise typer.Exit


@app.callback()
def _clipyard(
    _: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_tell_version, is_eager=True),
    ] = False,
) -> None:
    """Pictures and texts into CLIP vectors, through a fleet of workers."""


def main() -> NoReturn:
    """Run the command line; every error of ours becomes one line and an exit code."""
    from .wire.errors import BadRequest, BadSettings, ClipyardError, NoAnswer, NoBroker, NoWorker

    if isinstance(sys.stdout, TextIOWrapper):  # letters that a terminal does not have are escaped
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _checked(sys.argv[1:])
        app(prog_name="clipyard")
    except (BadRequest, BadSettings) as error:
        _end(error, USAGE)
    except (NoBroker, NoWorker, NoAnswer) as error:
        _end(error, NOBODY)
    except (ClipyardError, OSError) as error:  # of files: a full disk, a folder of others
        _end(error, FAILED)
    sys.exit(0)


@app.command()
def embed(images: Images, model: Model = None, out: Out = None, as_json: Json = False) -> None:
    """Embed pictures."""
    from . import inputs, show, vectorfile

    if out:
        vectorfile.check(out)
    paths = _pictures(images)
    with a_client() as client, show.progress("embedding", len(paths)) as advance:
        items = client.embed_images_detailed(paths, model=model, progress=advance)
    _embedded([inputs.printable(path) for path in paths], items, out, as_json)


@app.command()
def text(
    texts: Annotated[list[str], typer.Argument(help="Texts to embed.")],
    model: Model = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Embed texts."""
    from . import vectorfile

    if out:
        vectorfile.check(out)
    with a_client() as client:
        items = client.embed_texts_detailed(texts, model=model)
    _embedded(texts, items, out, as_json)


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for, in words.")],
    images: Images,
    model: Model = None,
    top: Annotated[int, typer.Option("--top", "-n", min=1, help="How many to show.")] = 5,
    as_json: Json = False,
) -> None:
    """Find the pictures that fit a text best."""
    from . import inputs, show
    from .results import comparable, similarity
    from .wire.messages import AUTO

    paths = _pictures(images)
    with a_client() as client, show.progress("embedding", len(paths)) as advance:
        asked = model or client.current_model()  # one for both
        read = [] if asked == AUTO else client.embed_texts_detailed(query, model=asked)
        items = client.embed_images_detailed(paths, model=asked, also="text", progress=advance)
        if not read:  # by the model that was chosen for the pictures
            read = client.embed_texts_detailed(query, model=items[0].model if items else asked)
    names = [inputs.printable(path) for path in paths]
    found = [(item, name) for item, name in zip(items, names, strict=True) if not item.error]
    wanted, *rows = comparable([*read, *(item for item, _ in found)])
    cosines = [float(similarity(wanted, row)) for row in rows]
    named = zip(cosines, (name for _, name in found), strict=True)
    best = sorted(named, key=lambda row: row[0], reverse=True)[:top]
    show.table(
        ["picture", "cosine"],
        [{"picture": name, "cosine": round(cosine, 4)} for cosine, name in best],
        as_json=as_json,
    )
    show.failures(names, items)
    if len(found) < len(paths):
        raise typer.Exit(FAILED)


@app.command()
def models(as_json: Json = False) -> None:
    """List the models that can be asked for."""
    from . import show
    from .vigil import NOBODY as NOBODY_IS_THERE
    from .wire.errors import NoWorker

    with a_client() as client:
        entries = client.models()
    if not entries:  # each worker lists some
        raise NoWorker(NOBODY_IS_THERE)
    rows = [entry.model_dump(mode="json") for entry in sorted(entries, key=lambda one: one.id)]
    if not as_json:  # where 0 is what nobody has said
        rows = [{name: value or None for name, value in row.items()} for row in rows]
    show.table(
        ["id", "dimension", "input_size", "memory_gb", "recommended_use"],
        rows,
        as_json=as_json,
        unbroken="id",
    )


@app.command()
def load(model: ModelId, worker: Workers = None, as_json: Json = False) -> None:
    """Bring a model onto a worker's device."""
    with a_client() as client:
        _managed(client.load(model, workers=worker), as_json)


@app.command()
def switch(model: ModelId, worker: Workers = None, as_json: Json = False) -> None:
    """Make a model the current one; the one before it goes."""
    with a_client() as client:
        _managed(client.switch(model, workers=worker), as_json)


@app.command()
def reload(model: ModelId, worker: Workers = None, as_json: Json = False) -> None:
    """Read a model's checkpoint again."""
    with a_client() as client:
        _managed(client.reload(model, workers=worker), as_json)


@app.command()
def unload(
    model: Annotated[
        str | None, typer.Argument(help="A model id; the current one if none.")
    ] = None,
    scope: Annotated[
        str, typer.Option(help="one, vision, text, family, timeout, pressure or everything.")
    ] = "one",
    family: Annotated[
        str | None, typer.Option(help="With --scope family: which, e.g. ollama.")
    ] = None,
    worker: Workers = None,
    as_json: Json = False,
) -> None:
    """Let a model go, or several by their kind, or what is due."""
    with a_client() as client:
        gone = client.unload(model, scope=cast("Any", scope), family=family, workers=worker)
        _managed(gone, as_json)


@app.command("set")
def set_(
    knobs: Annotated[list[str], typer.Argument(help="NAME=VALUE, e.g. vision_ram_timeout_s=900.")],
    worker: Workers = None,
    as_json: Json = False,
) -> None:
    """Change settings of workers while they run."""
    given = dict(_name_and_value(knob) for knob in knobs)
    with a_client() as client:
        _managed(client.set_knobs(given, workers=worker), as_json)


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it, once a second.")] = False,
    as_json: Json = False,
) -> None:
    """Show which model is where, and what goes next."""
    from . import overview

    if watch and (as_json or not sys.stdout.isatty() or not overview.can_watch()):
        raise typer.BadParameter("--watch draws on a terminal; without it the status is shown once")
    with a_client() as client:
        if watch:
            overview.watch(client.status)
        elif as_json:
            print(client.status().model_dump_json())
        else:
            overview.show(client.status())


@app.command()
def why(
    model: Annotated[str, typer.Argument(help="A model id or alias.")], as_json: Json = False
) -> None:
    """Tell why a model is here, why it went, and what goes next."""
    from . import show
    from .desk import entry_of, unlisted
    from .story import why as sentences

    with a_client() as client:
        entries, fleet = client.models(), client.status()
    entry = entry_of(entries, model)
    if not entry and not fleet.tells_of(model):
        raise unlisted(entries, model)
    told = sentences(fleet, entry.id if entry else model)
    show.line(json.dumps(told) if as_json else "\n".join(told))


def _checked(words: list[str]) -> None:
    """Refuse what is empty: a variable that is not set is no choice of this folder or a default."""
    from .wire.errors import BadRequest

    for before, word in pairwise(("clipyard", *words)):
        if not word or re.fullmatch("--[a-z-]+=", word):
            place = repr(word) if word else f"what follows {before!r:.100}"
            raise BadRequest(f"{place} {EMPTY}")


def _pictures(places: list[str]) -> list[str]:
    """What is named, and in place of a folder the pictures below it, sorted.

    A folder without any is said on standard error: an empty table would not tell why.
    """
    from . import inputs, show
    from .wire.endings import PICTURES

    found: list[str] = []
    for place in places:
        if "://" not in place and os.path.isdir(place):  # a name that cannot be one is none
            if not (inside := inputs.pictures_in(place)):
                endings = ", ".join(sorted(PICTURES))
                show.line(f"{inputs.printable(place)} holds no pictures ({endings})", stderr=True)
            found += map(str, inside)
        else:
            found.append(place)
    return found


def _embedded(names: list[str], items: "list[Item]", out: Path | None, as_json: bool) -> None:
    """Write and show what came of each."""
    from . import show, vectorfile

    written = out and vectorfile.write(out, names, items)
    if written != out:
        print(f"some failed, and {out} holds vectors alone: all is in {written}", file=sys.stderr)
    show.items(names, items, out=written, as_json=as_json)
    if any(item.error for item in items):
        raise typer.Exit(FAILED)


def _name_and_value(knob: str) -> tuple[str, Any]:
    name, equals, value = knob.partition("=")
    if not equals:
        raise typer.BadParameter(f"{knob!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        # Model ids, or what Pydantic reads of the environment too, such as `yes`.
        return name, [part for part in value.split(",") if part] if name == "pinned" else value


def _managed(answers: Any, as_json: bool) -> None:
    from . import show

    rows = [answer.model_dump(mode="json") for answer in answers]
    if not as_json:
        rows = [{**row, "seconds": round(row["seconds"], 2)} for row in rows]
    columns = ["worker/model", "changed/seconds", "message"]
    show.table(columns, rows, as_json=as_json, unbroken="worker/model")


def _end(error: Exception, code: int) -> NoReturn:
    from . import show

    show.line(f"error: {error}", stderr=True)
    sys.exit(code)
