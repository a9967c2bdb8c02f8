"""Buttons that wait, in a dashboard without workers."""

import asyncio
import threading

import httpx
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from api_client.dashboard.server import Dashboard
from api_client.dashboard.settings import DashboardSettings
from api_client.testing import FakeClient
from api_client.wire.broker import celery_app
from tests.fleet import PASSWORD


class Slow(FakeClient):
    """Unloads once it is let go."""

    def __init__(self):
        super().__init__()
        self.pressed, self.let_go = threading.Event(), threading.Event()

    def unload(self, *args, **options):
        self.pressed.set()
        self.let_go.wait()
        return []


async def pressed(client, settings):
    """What the page hears of the fleet while forty buttons wait, and then what they hear."""
    with celery_app(settings) as capp:
        server = HTTPServer(Dashboard(settings, capp=capp, client=client))
        listener, port = bind_unused_port()
        server.add_socket(listener)
        login, limits = ("clipyard", PASSWORD), httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", auth=login, limits=limits, timeout=20
        ) as http:
            asked = [http.post("/models/do/unload", json={"model": "a/b"}) for _ in range(40)]
            waiting = asyncio.gather(*asked)
            await asyncio.to_thread(client.pressed.wait)
            try:
                seen = await http.get("/models/now")
            finally:
                client.let_go.set()
                answers = await waiting
                server.stop()
        return seen, answers


def test_the_page_is_redrawn_however_many_buttons_wait():
    settings = DashboardSettings.read(
        redis_url="redis://127.0.0.1:1/0", dashboard_password=PASSWORD
    )
    seen, answers = asyncio.run(pressed(Slow(), settings))
    assert seen.status_code == 200
    assert {one.status_code for one in answers} == {200}
