import asyncio
import gzip
import re
import socket
import threading

import httpx
import pytest
from fastapi.testclient import TestClient

from api_client.gateway.app import build, serve
from api_client.gateway.settings import GatewaySettings
from api_client.testing import FakeAsyncClient
from api_client.wire.errors import BadSettings

TOKEN = "a-token-of-some-length"
TEXT = {"text": "a"}


def settings(**given):
    return GatewaySettings.read(redis_url="redis://127.0.0.1:1/0", **given)


def http(**given):
    return TestClient(build(FakeAsyncClient(), settings(**given)), base_url="http://127.0.0.1")


def test_the_page_for_people_asks_nobody_else_and_its_files_want_no_token():
    client = http(gateway_tokens=[TOKEN])
    page = client.get("/docs").text
    named = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
    assert len(named) == 3
    assert [client.get(name).status_code for name in named] == [200, 200, 200]
    assert re.findall(r"https?://", page) == []


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        (f"Bearer {TOKEN}x", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Basic {TOKEN}", 401),
        (TOKEN, 401),
        ("Bearer \xff", 401),
        (f"Bearer {TOKEN}", 200),
        (f"bearer {TOKEN}", 200),
        ("Bearer another-token-of-mine", 200),
    ],
)
def test_only_a_known_token_lets_in(authorization, status):
    client = http(gateway_tokens=[TOKEN, "another-token-of-mine"])
    headers = {} if authorization is None else {"Authorization": authorization.encode("latin-1")}
    answer = client.post("/encode/text", json=TEXT, headers=headers)
    assert answer.status_code == status
    assert TOKEN not in answer.text
    if status == 401:
        assert answer.json()["error"]["code"] == "unauthorized"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_a_stranger_learns_not_even_which_paths_exist():
    client = http(gateway_tokens=[TOKEN])
    assert client.get("/no/such").status_code == 401
    assert client.get("/v1/models").status_code == 401
    assert client.get("/healthz").status_code == 200
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "gateway.example"])
def test_without_a_token_it_refuses_to_listen_to_others(host):
    with pytest.raises(BadSettings, match="CLIPYARD_GATEWAY_TOKENS"):
        serve(settings(gateway_host=host))
    assert settings(gateway_host=host, gateway_tokens=[TOKEN]).guarded()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_without_a_token_it_listens_to_this_machine(host):
    assert settings(gateway_host=host).guarded()


def test_a_short_token_is_refused_without_being_shown():
    with pytest.raises(BadSettings, match="CLIPYARD_GATEWAY_TOKENS") as refused:
        serve(settings(gateway_tokens=["sesame"]))
    assert "sesame" not in str(refused.value)


def test_tokens_come_from_the_environment_separated_by_commas(monkeypatch):
    monkeypatch.setenv("CLIPYARD_GATEWAY_TOKENS", f"{TOKEN}, {TOKEN}-2")
    given = [token.get_secret_value() for token in settings().gateway_tokens]
    assert given == [TOKEN, f"{TOKEN}-2"]
    assert TOKEN not in str(settings().rows())


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "127.0.0.1.evil.example:7000"},
    ],
)
def test_without_a_token_a_page_of_another_site_cannot_use_the_browser(headers):
    answer = http().post("/encode/text", json=TEXT, headers=headers)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "forbidden"


@pytest.mark.parametrize("host", ["localhost", "localhost:7000", "[::1]:7000", "127.0.0.1:7000"])
def test_a_page_of_this_machine_may_ask(host):
    headers = {"Host": host, "Origin": f"http://{host}"}
    assert http().post("/encode/text", json=TEXT, headers=headers).status_code == 200


def test_a_large_body_is_refused_whether_it_says_so_or_not():
    client = http(gateway_body_bytes=100)
    said = client.post("/encode/text", json={"text": "a" * 100})
    unsaid = client.post("/encode/text", content=(b" " * 20 for _ in range(10)))
    for answer in (said, unsaid):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "too_large"


def test_a_packed_body_is_told_to_come_unpacked():
    sent = {"content": gzip.compress(b'{"text": "a"}'), "headers": {"Content-Encoding": "gzip"}}
    answer = http().post("/encode/text", **sent)
    assert answer.status_code == 415
    assert "unpacked" in answer.json()["error"]["message"]


def test_a_slow_body_is_given_up(listening):
    url = listening(build(FakeAsyncClient(), settings(gateway_body_timeout_s=0.1)))
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as slow:
        slow.sendall(
            f"POST /encode/text HTTP/1.1\r\nHost: {host}\r\nContent-Length: 50\r\n\r\n{{".encode()
        )
        answer = slow.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"too_slow"' in answer


class Held(FakeAsyncClient):
    """Answers only when it is released, and notes who went before."""

    def __init__(self):
        super().__init__()
        self.entered, self.withdrawn = threading.Event(), threading.Event()

    async def embed_texts(self, texts, **options):
        self.entered.set()
        try:
            return await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.withdrawn.set()
            raise


def test_more_at_once_than_agreed_are_told_to_come_back_and_a_hang_up_makes_room(listening):
    client = Held()
    url = listening(build(client, settings(gateway_concurrency=1)))
    address = "127.0.0.1", int(url.rpartition(":")[2])
    asks = b"POST /encode/text?text=a HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    with socket.create_connection(address, timeout=20) as one:
        one.sendall(asks)
        assert client.entered.wait(20)
    # Who has hung up is not worked for.
    assert client.withdrawn.wait(20)
    client.entered.clear()
    with socket.create_connection(address, timeout=20) as other:
        for _ in range(100):  # the room is made a moment later
            other.sendall(asks)
            if client.entered.wait(0.2):
                break
        assert client.entered.is_set()
        busy = httpx.post(f"{url}/encode/text", json=TEXT, timeout=20)
        assert busy.status_code == 429
        assert busy.headers["retry-after"] == "1"
        for path in ("/healthz", "/metrics"):
            assert httpx.get(url + path, timeout=20).status_code == 200


def test_who_still_waits_when_a_stop_can_wait_no_longer_is_told_to_ask_again():
    client = Held()

    async def stopped():
        app = httpx.ASGITransport(build(client, settings()))
        async with httpx.AsyncClient(transport=app, base_url="http://127.0.0.1") as http:
            waiting = asyncio.create_task(http.post("/encode/text", json=TEXT))
            assert await asyncio.to_thread(client.entered.wait, 20)
            waiting.cancel()
            return await waiting

    answer = asyncio.run(stopped())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "stopping")
    assert client.withdrawn.is_set()
