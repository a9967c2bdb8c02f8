"""The Models page, what it polls, and what its buttons do: handlers of Flower's own kind."""

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

from flower.api.tasks import GetQueueLengths
from flower.views import BaseHandler
from tornado import web

from ..client import Client
from ..wire.errors import BadRequest, ClipyardError
from ..wire.messages import Managed
from ..wire.patience import LOST
from . import picture
from .settings import DashboardSettings

__all__ = ["Models", "ModelsAction", "ModelsNow", "QueueLengths"]

Action = Callable[[Client, dict[str, Any]], list[Managed]]

ACTIONS: dict[str, Action] = {
    "load": lambda client, asked: client.load(asked["model"], workers=_workers(asked)),
    "switch": lambda client, asked: client.switch(asked["model"], workers=_workers(asked)),
    "unload": lambda client, asked: client.unload(asked["model"], workers=_workers(asked)),
    "set": lambda client, asked: client.set_knobs(
        {asked["name"]: asked["value"]}, workers=_workers(asked)
    ),
    "sweep": lambda client, asked: [
        *client.unload(scope="timeout", workers=_workers(asked)),
        *client.unload(scope="pressure", workers=_workers(asked)),
    ],
}


def _workers(asked: dict[str, Any]) -> list[str] | None:
    worker = asked.get("worker")
    return [str(worker)] if worker else None


class _Handler(BaseHandler):  # type: ignore[misc]  # flower has no types
    def initialize(self, client: Client, settings: DashboardSettings, buttons: Executor) -> None:
        self.client, self.ours = client, settings  # Tornado has settings of its own
        self.buttons = buttons


class Models(_Handler):
    """GET: the page. All it shows comes from `ModelsNow`, once a second."""

    @web.authenticated
    def get(self) -> None:
        self.render("models.html", read_only=self.ours.dashboard_read_only)


class ModelsNow(_Handler):
    """GET: the fleet as it is now, and the catalogue's ids."""

    @web.authenticated
    async def get(self) -> None:
        try:
            fleet = await asyncio.to_thread(self.client.status)
            known = await asyncio.to_thread(self.client.models) if fleet.workers else []
            jobs = await asyncio.to_thread(self.client.jobs)
        except ClipyardError as error:
            self.set_status(503)
            self.write({"error": str(error)})
            return
        read_only = self.ours.dashboard_read_only
        shown = picture.drawn(fleet, jobs, now=time.time(), read_only=read_only)
        self.write(shown | {"catalogue": sorted(entry.id for entry in known)})


class ModelsAction(_Handler):
    """POST: one of `ACTIONS`, through the same client as everybody's; refused when read-only."""

    @web.authenticated
    async def post(self, name: str) -> None:
        if self.ours.dashboard_read_only:
            raise web.HTTPError(403, "the dashboard is read-only")
        try:
            asked = json.loads(self.request.body or b"{}")
            if not isinstance(asked, dict):
                raise TypeError("it is no JSON object")
            loop = asyncio.get_running_loop()
            answers = await loop.run_in_executor(self.buttons, ACTIONS[name], self.client, asked)
        except ClipyardError as error:
            self._refuse(400 if isinstance(error, BadRequest) else 502, error)
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            self._refuse(400, BadRequest(f"{name}: cannot use this: {error}"))
        else:
            self.write({"answers": [one.model_dump(mode="json") for one in answers]})

    def _refuse(self, status: int, error: ClipyardError) -> None:
        self.set_status(status)
        self.write({"error": str(error), "code": error.code})


class QueueLengths(GetQueueLengths):  # type: ignore[misc]  # flower has no types
    """GET: as Flower has it, which answers 500 with a traceback while Redis is away."""

    @web.authenticated
    async def get(self) -> None:
        try:
            await super().get()
        except LOST as error:
            raise web.HTTPError(503, "cannot reach Redis: %s", error) from None
