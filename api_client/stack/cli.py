"""`clipyard up` and what else runs the parts of an installation, or looks after one."""

import json
from pathlib import Path
from typing import Annotated

import typer

from ..options import FAILED, Json

app = typer.Typer()


@app.command()
def up(
    device: Annotated[
        list[str] | None, typer.Option("--device", help="cpu or cuda:N; all visible if not given.")
    ] = None,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Only open pictures below this folder.")
    ] = None,
    flower: Annotated[
        bool, typer.Option("--flower", help="Also run the dashboard, and tell it of every task.")
    ] = False,
    gateway: Annotated[bool, typer.Option("--gateway", help="Also answer HTTP.")] = False,
) -> None:
    """Run a private stack: Redis, one worker per device, beat. Ctrl-C drains and stops it."""
    from .. import show
    from ..dashboard import child as dashboard_child
    from ..gateway import child as gateway_child
    from . import up as stack
    from .devices import visible_devices
    from .settings import StackSettings

    settings = StackSettings.read(**({"image_roots": images} if images else {}))
    options = stack.Options(
        home=settings.home,
        devices=tuple(device or visible_devices(cuda_visible=settings.cuda_visible_devices)),
        redis_url=settings.redis_url.get_secret_value() if settings.redis_url else None,
        metrics_host=settings.metrics_host,
        metrics_port=settings.metrics_port,
        env=settings.for_workers() | (dashboard_child.WORKER_ENV if flower else {}),
        extras=(
            *((dashboard_child.extra(),) if flower else ()),
            *((gateway_child.extra(),) if gateway else ()),
        ),
    )
    stack.run(options, console=show.console())


@app.command()
def gateway(
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 0 takes a free one.")] = None,
) -> None:
    """Answer HTTP for those who do not speak Celery. Ctrl-C finishes what was begun."""
    from ..gateway.settings import GatewaySettings
    from ..wire.errors import BadSettings

    try:
        from ..gateway import app as application
    except ImportError as error:
        raise BadSettings(
            f"the gateway is an extra ({error}): pip install -e '.[gateway]' in the checkout"
        ) from None

    given = {"gateway_host": host, "gateway_port": port}
    settings = GatewaySettings.read(**{k: v for k, v in given.items() if v is not None})
    application.serve(settings)


@app.command()
def dashboard() -> None:
    """Run Flower, with a page of which model is where."""
    from ..dashboard.settings import DashboardSettings
    from ..wire.errors import BadSettings

    settings = DashboardSettings.read()
    try:
        from ..dashboard.server import serve
    except ImportError as error:
        raise BadSettings(
            f"the dashboard is an extra ({error}): pip install -e '.[dashboard]' in the checkout"
        ) from None
    serve(settings)


@app.command()
def quickstart(
    images: Annotated[Path | None, typer.Option(help="A folder of your own pictures.")] = None,
    model: Annotated[str, typer.Option(help="A model id.")] = "shapes/demo",
    queries: Annotated[str | None, typer.Option(help="Texts, separated by ';'.")] = None,
    out: Annotated[Path, typer.Option(file_okay=False, help="Where the results go.")] = Path(
        "out/quickstart"
    ),
    as_json: Json = False,
) -> None:
    """Embed pictures and find them by text: a first run."""
    from ..quickstart import run

    summary = run.quickstart(
        images=images,
        model=model,
        queries=[q.strip() for q in (queries or "").split(";") if q.strip()],
        out=out,
        as_json=as_json,
    )
    if as_json:
        print(json.dumps(summary))
    if summary["failed"]:
        raise typer.Exit(FAILED)


@app.command()
def doctor(as_json: Json = False) -> None:
    """Find what is wrong, and say how to mend it."""
    from .. import doctor as examination
    from .. import show

    findings = examination.examine()
    show.doctor(findings, as_json=as_json)
    if findings.sick:
        raise typer.Exit(FAILED)


@app.command()
def acl(
    secrets: Annotated[
        Path, typer.Option(file_okay=False, help="Where the passwords are; missing ones are made.")
    ],
    url: Annotated[
        str | None, typer.Option(help="Where Redis is, without a login: also write <role>.url.")
    ] = None,
) -> None:
    """Print an ACL file for Redis: least rights, by role."""
    from .. import acl as rights
    from ..wire.settings import Settings

    prefix = Settings.read().key_prefix
    db = rights.database_of(url) if url else 0
    passwords = rights.passwords_in(secrets)
    if url:
        rights.write_urls(secrets, passwords, url=url, prefix=prefix)
    print(rights.acl_file(passwords, prefix=prefix, db=db), end="")


@app.command()
def health(
    worker: Annotated[str | None, typer.Option(help="A node name: is it ready?")] = None,
    url: Annotated[str | None, typer.Option(help="Does this page answer (no proxy)?")] = None,
    as_json: Json = False,
) -> None:
    """Exit with 0 if Redis, a worker or a page is well. With 3 if Redis cannot tell."""
    from .. import pulse

    sickness = pulse.sickness(worker=worker, url=url)
    if as_json:
        print(json.dumps({"healthy": not sickness, "trouble": sickness}))
    else:
        print(sickness or "healthy")
    if sickness:
        raise typer.Exit(FAILED)
