"""Buttons that wait, in a dashboard without workers."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from tornado.httpserver import HTTPServer
from tornado.testing import bind_unused_port

from api_client.dashboard.buttons import Buttons
from api_client.dashboard.server import Dashboard
from api_client.dashboard.settings import DashboardSettings
from api_client.testing import FakeClient
from api_client.wire import names
from api_client.wire.broker import celery_app
from api_client.wire.codec import pack_record
from api_client.wire.messages import WorkerStatus
from tests.fleet import PASSWORD
from tests.flow.processes import until


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


def press(at):
    with pytest.raises(httpx.TransportError):
        httpx.post(
            f"http://{at}/models/do/load",
            json={"model": "a/b", "worker": "gpu0@a"},
            auth=("clipyard", PASSWORD),
            timeout=120,
        )


def test_more_buttons_than_may_wait_at_once_take_their_turns():
    let_go, buttons = threading.Event(), Buttons(2)
    waiting = [buttons.submit(let_go.wait) for _ in range(2)]
    last = buttons.submit(str, 7)
    until(lambda: all(one.running() for one in waiting))
    assert not last.done()
    let_go.set()
    assert last.result(timeout=10) == "7"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_button_that_waits_keeps_no_dashboard_from_ending(
    valkey_url, prefix, store, keys, number
):
    now = time.time()
    told = {"device": "cpu", "pid": 1, "started_at": now, "beat_at": now, "state": "ready"}
    store.sadd(keys.workers, "gpu0@a")
    store.hset(keys.worker("gpu0@a"), mapping=pack_record(WorkerStatus(name="gpu0@a", **told)))
    env = {
        "CLIPYARD_REDIS_URL": valkey_url,
        "CLIPYARD_KEY_PREFIX": prefix,
        "CLIPYARD_DASHBOARD_PORT": "0",
        "CLIPYARD_DASHBOARD_PASSWORD": PASSWORD,
        "CLIPYARD_ANSWER_TIMEOUT_S": "600",
    }
    argv = (sys.executable, "-m", "api_client", "dashboard")
    with (
        subprocess.Popen(
            argv, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as dashboard,
        ThreadPoolExecutor() as people,
    ):
        at = dashboard.stdout.readline().partition("http://")[2].partition("/")[0]
        heard = people.submit(press, at)
        sent = keys.queue(names.direct_queue("gpu0@a"), names.INTERACTIVE)
        until(lambda: store.llen(sent), within_s=60)
        dashboard.send_signal(number)
        try:
            _, said = dashboard.communicate(timeout=60)
        finally:
            dashboard.kill()
        heard.result()
    assert (dashboard.returncode, "Traceback" in said) == (0, False)
