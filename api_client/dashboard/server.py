"""Flower as we run it: one door before every path, a link to the Models page, and the page.

Flower 2.2 has no plug-ins. What is used of it: its `Flower` application class and its options
(both as its own command uses them), its thread that listens for events, Tornado's `add_handlers`,
`add_transform` and template loaders, and the place of the last link in its `navbar.html`, which a
test watches.
"""

import hmac
import logging
import signal
import time
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from celery import Celery
from celery.events import EventReceiver
from flower.app import Flower
from flower.events import Events
from flower.options import options
from flower.urls import settings as flower_settings
from kombu import Producer
from tornado import ioloop, template, web
from tornado.httputil import HTTPHeaders, HTTPServerRequest

from ..client import Client
from ..wire.address import netloc
from ..wire.broker import celery_app
from ..wire.settings import cannot_listen
from .buttons import Buttons
from .pages import Models, ModelsAction, ModelsNow, QueueLengths
from .settings import DashboardSettings

__all__ = ["Dashboard", "give_up_soon", "serve", "trust_as_the_url_says"]

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
LAST_LINK = ">Broker</a>\n        </li>\n"
OUR_LINK = """\
        <li class="nav-item">
          <a class="nav-link{% if active_tab == 'models' %} active{% end %}" href="/models"
            {% if active_tab == 'models' %}aria-current="page"{% end %}>Models</a>
        </li>
"""
TASKS_KEPT = 10_000  # Flower's 100,000 take a gigabyte
AGAIN_S = 1.0
BUTTONS = 32  # that may wait at once


class Dashboard(Flower):  # type: ignore[misc]  # flower has no types
    """The application.

    Args:
        capp: the Celery app whose workers it shows.
        client: carries out what the buttons ask for.
    """

    def __init__(self, settings: DashboardSettings, *, capp: Celery, client: Client) -> None:
        _set_options(settings)
        known = {"template_loader": _Loader(), "basic_auth": None}
        events = _Events(
            capp,
            ioloop.IOLoop.current(),
            max_workers_in_memory=options.max_workers,
            max_tasks_in_memory=options.max_tasks,
        )
        super().__init__(capp=capp, options=options, events=events, **(flower_settings | known))
        self._login = b"Basic " + b64encode(settings.guarded().login.encode())
        self.add_transform(_Unframed)
        # Threads of their own: a button waits as long as a load, and meanwhile the page is redrawn.
        parts = {"client": client, "settings": settings, "buttons": Buttons(BUTTONS)}
        self.add_handlers(
            r".*$",
            [
                (r"/api/queues/length", QueueLengths),
                (r"/models", Models, parts),
                (r"/models/now", ModelsNow, parts),
                (r"/models/do/(load|switch|unload|set|sweep)", ModelsAction, parts),
                (r"/models/static/(.*)", _Static, {"path": HERE / "static"}),
            ],
        )

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """One door before every path: Flower leaves /metrics, /healthcheck and more open."""
        given = request.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(given, self._login):
            return self.get_handler_delegate(request, _Stranger)
        if "%00" in request.path:  # no file has such a name, and Tornado answers 500 then
            return self.get_handler_delegate(request, web.ErrorHandler, {"status_code": 404})
        return super().find_handler(request, **kwargs)


def serve(settings: DashboardSettings) -> None:
    """Listen until SIGINT or SIGTERM.

    Raises:
        BadSettings: no password is configured, or nobody can listen there.
    """
    settings.guarded()
    with celery_app(settings) as capp, Client(settings, asked_by="flower") as client:
        give_up_soon(capp)
        trust_as_the_url_says(capp)
        app = Dashboard(settings, capp=capp, client=client)
        signal.signal(signal.SIGTERM, lambda *_: app.io_loop.add_callback_from_signal(app.stop))
        try:
            port = app.start_http_server()
        except OSError as error:
            address = netloc(settings.dashboard_host, settings.dashboard_port)
            raise cannot_listen("dashboard", address, error.strerror) from None
        print(
            f"the dashboard is ready. http://{netloc(settings.dashboard_host, port)}/models",
            flush=True,
        )
        try:
            app.start()
        except KeyboardInterrupt:
            app.stop()


def give_up_soon(capp: Celery) -> None:
    """Commands to workers, such as revoke, fail while Redis is away: kombu would try to publish
    them until it is back, and keep one of Flower's five threads for each."""

    class Bounded(Producer):  # type: ignore[misc]  # kombu has no types
        def publish(self, *args: Any, retry_policy: Any = None, **options: Any) -> Any:
            policy = retry_policy or {"max_retries": 1, "interval_start": 0.2}
            return super().publish(*args, retry_policy=policy, **options)

    capp.amqp.producer_pool.Producer = Bounded


def trust_as_the_url_says(capp: Celery) -> None:
    """For its Broker page, Flower looks in this setting only for what the URL says of TLS."""
    with capp.connection() as connection:
        capp.conf.broker_use_ssl = connection.ssl


def _set_options(settings: DashboardSettings) -> None:
    """Flower's options are one object for the whole process."""
    options.address, options.port = settings.dashboard_host, settings.dashboard_port
    options.basic_auth = [settings.login]  # also switches its check against other sites' pages on
    options.read_only = settings.dashboard_read_only
    options.max_tasks = TASKS_KEPT


class _Events(Events):  # type: ignore[misc]  # flower has no types
    """Flower's own doubles its pauses without end: when Redis has been away for an hour, it may
    take another until tasks are seen again."""

    def run(self) -> None:
        is_away = False
        while True:
            try:
                with self.capp.connection() as connection:
                    receiver = EventReceiver(
                        connection, handlers={"*": self.on_event}, app=self.capp
                    )
                    is_away = False
                    receiver.capture(limit=None, timeout=None, wakeup=True)
            except Exception as error:
                if not is_away:
                    log.warning("tasks are not seen until Redis is back: %s", error)
                is_away = True
                time.sleep(AGAIN_S)

    def on_event(self, event: Mapping[str, Any]) -> None:
        """Flower's page shows a worker's count of active tasks as markup: it has to be a number."""
        if isinstance(event.get("active", 0), int):
            super().on_event(event)


@web.stream_request_body  # they are answered before it comes: else 100 MB of each are kept
class _Stranger(web.RequestHandler):
    """Answers those who did not give the password."""

    def check_xsrf_cookie(self) -> None:
        pass  # they learn nothing but this

    def data_received(self, chunk: bytes) -> None:
        pass

    def prepare(self) -> None:
        self.set_status(401)
        self.set_header("WWW-Authenticate", 'Basic realm="clipyard"')
        self.finish("Access denied")


class _Static(web.StaticFileHandler):
    """A browser asks each time whether it has what is served: else it goes on with the script and
    style from before an upgrade, for a tenth of the files' age."""

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")


class _Unframed(web.OutputTransform):
    """Another site must not show a page in its own, for people to press our buttons unawares."""

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        headers["X-Frame-Options"] = "DENY"
        return status_code, headers, chunk


class _Loader(template.BaseLoader):
    """Our templates, and Flower's with our link in its bar."""

    def resolve_path(self, name: str, parent_path: str | None = None) -> str:
        return name

    def _create_template(self, name: str) -> template.Template:
        for folder in (HERE / "templates", Path(flower_settings["template_path"])):
            if (folder / name).is_file():
                text = (folder / name).read_text()
                break
        else:
            raise FileNotFoundError(name)
        if name == "navbar.html":
            text = text.replace(LAST_LINK, LAST_LINK + OUR_LINK, 1)
        return template.Template(text, name=name, loader=self)
