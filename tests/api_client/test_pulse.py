"""Whether one process is well, as the health check of its container asks."""

import socket
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from api_client import pulse
from api_client.wire.codec import pack_record
from api_client.wire.errors import NoBroker
from api_client.wire.messages import WorkerStatus

NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def installation(monkeypatch, prefix):
    monkeypatch.setenv("CLIPYARD_KEY_PREFIX", prefix)
    monkeypatch.setenv("CLIPYARD_REDIS_URL", f"redis://{NOWHERE}/0")


@pytest.fixture
def page():
    """The address of a page that wants a password, and beside which there is none."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401 if self.path == "/" else 404)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        server.timeout = 5  # of a page that nobody asks for
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        thread.join()


def test_a_worker_is_as_it_says_itself(monkeypatch, valkey_url, store, keys):
    monkeypatch.setenv("CLIPYARD_REDIS_URL", valkey_url)
    told = {"device": "cpu", "pid": 1, "started_at": 1.0, "beat_at": 1.0}
    for name, state, trouble in (
        ("ready", "ready", ""),
        ("draining", "stopping", ""),
        ("broken", "broken", "no pass ends"),
        ("lost", "stopping", "its device is gone"),
    ):
        status = WorkerStatus(name=f"{name}@a", state=state, trouble=trouble, **told)
        store.hset(keys.worker(status.name), mapping=pack_record(status))
    assert pulse.sickness(worker=None, url=None) == ""
    assert pulse.sickness(worker="ready@a", url=None) == ""
    assert pulse.sickness(worker="draining@a", url=None) == ""
    assert pulse.sickness(worker="lost@a", url=None) == "lost@a is stopping its device is gone"
    assert pulse.sickness(worker="broken@a", url=None) == "broken@a is broken no pass ends"


def test_of_a_worker_that_is_not_there_those_that_are_are_told(
    monkeypatch, valkey_url, store, keys
):
    monkeypatch.setenv("CLIPYARD_REDIS_URL", valkey_url)
    store.sadd(keys.workers, "cpu0@a", "cpu1@a", "gone@a")
    assert pulse.sickness(worker="cpu0", url=None) == "cpu0 is not there; no worker is"
    for name in ("cpu0@a", "cpu1@a"):
        store.hset(keys.worker(name), "started_at", 1.0)
    assert pulse.sickness(worker="cpu0", url=None) == "cpu0 is not there; there are cpu0@a, cpu1@a"


def test_a_redis_that_takes_no_writes_knows_nothing_of_a_worker(monkeypatch, valkey_of_my_own):
    monkeypatch.setenv("CLIPYARD_REDIS_URL", valkey_of_my_own.url)
    with valkey_of_my_own.client() as client:
        client.config_set("maxmemory", 1)
    with pytest.raises(NoBroker, match="Redis cannot be asked: command not allowed"):
        pulse.sickness(worker="cpu0@a", url=None)


@pytest.mark.parametrize("worker", [None, "ready@a"])
def test_a_redis_that_cannot_be_asked_says_nothing_of_a_worker(worker):
    with pytest.raises(NoBroker, match="Redis cannot be asked"):
        pulse.sickness(worker=worker, url=None)


def test_a_redis_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(pulse, "PATIENCE_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = "{}:{}".format(*silent.getsockname())
        monkeypatch.setenv("CLIPYARD_REDIS_URL", f"redis://{place}/0")
        with pytest.raises(NoBroker, match="Redis cannot be asked"):
            pulse.sickness(worker="ready@a", url=None)


def test_a_page_is_well_without_redis(page):
    assert pulse.sickness(worker=None, url=page) == ""


def test_a_page_that_is_not_there_is_not_well(page):
    assert pulse.sickness(worker=None, url=f"{page}healthz") == f"{page}healthz answers 404"


def test_a_page_beside_it_is_asked_through_no_proxy(monkeypatch, page):
    monkeypatch.setenv("http_proxy", f"http://{NOWHERE}")
    monkeypatch.delenv("no_proxy", raising=False)
    urllib.request.install_opener(None)  # an earlier one would not read that
    assert pulse.sickness(worker=None, url=page) == ""


@pytest.mark.parametrize("url", ["foo", f"http://{NOWHERE}/", "http://127.0.0.1:port/"])
def test_a_page_that_cannot_be_had_is_one_sentence(url):
    told = pulse.sickness(worker=None, url=url)
    assert told.startswith(f"{url} does not answer: ")
    assert "urlopen" not in told
