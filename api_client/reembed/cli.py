"""`clipyard reembed`: bulk jobs from the command line."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..options import EMPTY, FAILED, Json, Model, a_client

if TYPE_CHECKING:
    from ..client import Client
    from ..wire.jobs import JobStatus
    from ..wire.messages import Managed

app = typer.Typer(
    help="Bulk jobs: millions of pictures or texts to vectors.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

JobArgument = Annotated[str, typer.Argument(help="A job's id, see `clipyard reembed list`.")]
Sink = Annotated[
    str, typer.Option("--sink", "-o", help="A folder, or e.g. qdrant:http://host:6333#photos.")
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="An option of the job, e.g. chunk_size=256; repeatable."),
]
SourceOptions = Annotated[
    list[str] | None,
    typer.Option("--from", help="An option of the source, e.g. column=url; repeatable."),
]
SinkOptions = Annotated[
    list[str] | None,
    typer.Option("--to", help="An option of the sink, e.g. tower=text; repeatable."),
]
OldOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--old-option", help="An option of the old collection, e.g. vector=image; repeatable."
    ),
]
Watch = Annotated[bool, typer.Option("--watch", help="Stay, and show how far the job has come.")]


@app.command()
def submit(
    source: Annotated[
        str, typer.Argument(help="A folder, glob, list, shards or collection, as workers see it.")
    ],
    sink: Sink,
    model: Model = None,
    settings: Settings = None,
    source_options: SourceOptions = None,
    sink_options: SinkOptions = None,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Submit a job and print its id. Nobody needs to wait for it."""
    options: dict[str, Any] = {
        **_settings(settings),
        "source_options": _pairs(source_options),
        "sink_options": _pairs(sink_options),
    }
    with a_client() as client:
        job = client.reembed(source, sink=sink, model=model, **options)
        _submitted(client, job.id, watch=watch, as_json=as_json)


@app.command()
def migrate(
    alias: Annotated[str, typer.Argument(help="The name that people search by.")],
    old: Annotated[str, typer.Option("--old", help="The collection it leads to now.")],
    into_new: Annotated[str, typer.Option("--into-new", help="The collection to fill.")],
    source: Annotated[
        str | None, typer.Option("--source", help="The items; those of the old one if not given.")
    ] = None,
    model: Model = None,
    settings: Settings = None,
    source_options: SourceOptions = None,
    old_options: OldOptions = None,
    watch: Watch = False,
    as_json: Json = False,
) -> None:
    """Fill a shadow of a collection with another model's vectors. Then see `switch`."""
    from . import places
    from .job import shadow

    before = places.sink(old, _pairs(old_options))
    held, sink, migration = shadow(alias, before, into_new)
    options: dict[str, Any] = {**_settings(settings), "source_options": _pairs(source_options)}
    with a_client() as client:
        job = client.reembed(source or held, sink=sink, model=model, migration=migration, **options)
        _submitted(client, job.id, watch=watch, as_json=as_json)


@app.command()
def watch(job: JobArgument, as_json: Json = False) -> None:
    """Show how far a job has come until it is over or pauses. Ctrl-C leaves it at work."""
    with a_client() as client:
        status = _watched(client, job)
    if as_json:
        print(status.model_dump_json())
    _end_as(status)


@app.command("list")
def list_(as_json: Json = False) -> None:
    """List the jobs of the last month, the newest first."""
    from .. import show

    with a_client() as client:
        rows = [_row(status) for status in client.jobs()]
    columns = ["id/state", "done", "failed", "items", "model/sink"]
    show.table(columns, rows, as_json=as_json, unbroken="id/state")


@app.command()
def show(job: JobArgument, as_json: Json = False) -> None:
    """Everything about one job."""
    with a_client() as client:
        _show(client.job(job).status(), as_json=as_json)


@app.command()
def pause(job: JobArgument, as_json: Json = False) -> None:
    """Start nothing more of a job; what is at work is finished."""
    with a_client() as client:
        _show(client.job(job).pause(), as_json=as_json)


@app.command()
def resume(job: JobArgument, as_json: Json = False) -> None:
    """Go on with a paused job."""
    with a_client() as client:
        _show(client.job(job).resume(), as_json=as_json)


@app.command()
def cancel(job: JobArgument, as_json: Json = False) -> None:
    """Stop a job for good; what is in the sink stays there."""
    with a_client() as client:
        _show(client.job(job).cancel(), as_json=as_json)


@app.command("retry-failed")
def retry_failed(job: JobArgument, as_json: Json = False) -> None:
    """Do the chunks again in which items failed."""
    with a_client() as client:
        _show(client.job(job).retry_failed(), as_json=as_json)


@app.command()
def verify(job: JobArgument, as_json: Json = False) -> None:
    """Check every item again. What has no vector and no recorded failure is done again."""
    with a_client() as client:
        handle = client.job(job)
        handle.verify()
        status = handle.wait()
        _show(status, as_json=as_json)
    _end_as(status)


@app.command()
def switch(job: JobArgument, as_json: Json = False) -> None:
    """Let a migration's name lead to the new collection."""
    with a_client() as client:
        _switched(client.job(job).switch(), as_json=as_json)


@app.command("switch-back")
def switch_back(job: JobArgument, as_json: Json = False) -> None:
    """Let a migration's name lead to the old collection again."""
    with a_client() as client:
        _switched(client.job(job).switch_back(), as_json=as_json)


def _submitted(client: "Client", job: str, *, watch: bool, as_json: bool) -> None:
    import json

    print(json.dumps({"id": job}) if as_json else job, flush=True)  # a log has it while it watches
    if watch:
        _end_as(_watched(client, job))


def _watched(client: "Client", job: str) -> "JobStatus":
    from .watching import watch

    return watch(client.job(job))


def _end_as(status: "JobStatus") -> None:
    if status.state != "complete" or status.failed:
        raise typer.Exit(FAILED)


def _switched(answer: "Managed", *, as_json: bool) -> None:
    from .. import show

    if as_json:
        print(answer.model_dump_json())
    else:
        show.line(answer.message)


def _settings(given: list[str] | None) -> dict[str, str]:
    from ..wire.errors import BadRequest
    from .job import JobOptions

    names = JobOptions.__annotations__.keys() - {"source_options", "sink_options"}
    settings = _pairs(given)
    if unknown := settings.keys() - names:
        raise BadRequest(f"--set knows no {min(unknown)!r}; it sets {', '.join(sorted(names))}")
    return settings


def _pairs(given: list[str] | None) -> dict[str, str]:
    from ..wire.errors import BadRequest

    pairs = [text.partition("=") for text in given or ()]
    if wrong := [name for name, sign, _ in pairs if not sign]:
        raise BadRequest(f"{wrong[0]!r} is not name=value")
    if empty := [name for name, _, value in pairs if not value]:  # as `cli._checked`
        raise BadRequest(f"what follows '{empty[0]}=' {EMPTY}")
    return {name: value for name, _, value in pairs}


def _show(status: "JobStatus", *, as_json: bool) -> None:
    from .. import show

    if as_json:
        print(status.model_dump_json())
        return
    rows = [{"": name, " ": value} for name, value in _everything(status).items()]
    show.table(["", " "], rows, as_json=False)


def _everything(status: "JobStatus") -> dict[str, Any]:
    from .watching import stages

    spec = status.spec
    return {
        "id": status.id,
        "state": status.state,
        "reason": status.reason or status.trouble,
        "items": f"{status.done} done, {status.failed} failed, of {status.items}"
        + (f"; {status.cut} texts were cut" if status.cut else ""),
        "chunks": f"{status.chunks_done} of {status.chunks}, {status.in_flight} at work",
        "model": f"{spec.model} {status.fingerprint}",
        "from": f"{spec.source.kind}: {spec.source.where}",
        "to": f"{spec.sink.kind}: {spec.sink.where} {dict(spec.sink.options) or ''}",
        "papers": status.papers,
        "stages": stages(status),
        "workers": ", ".join(f"{name} {items}" for name, items in status.workers.items()),
    }


def _row(status: "JobStatus") -> dict[str, Any]:
    from .places import NAMED

    sink = status.spec.sink
    name = sink.options.get(NAMED.get(sink.kind, ""))
    return {
        "id": status.id,
        "state": status.state,
        "done": status.done,
        "failed": status.failed,
        "items": status.items,
        "model": status.spec.model,
        "sink": f"{sink.kind}: {sink.where}" + (f"#{name}" if name else ""),
    }
