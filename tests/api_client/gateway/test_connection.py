"""Callers that stop halfway, at a real socket."""

import socket
import threading

import pytest
from starlette.responses import Response

from api_client.gateway import connection
from api_client.gateway.app import build
from api_client.testing import FakeAsyncClient
from tests.flow.processes import until


def dialled(url):
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


@pytest.mark.parametrize("begun", [b"", b"GET /healthz HTTP/1.1\r\nHost: "])
def test_who_never_finishes_asking_is_not_waited_for(listening, settings, monkeypatch, begun):
    monkeypatch.setattr(connection, "HEAD_S", 0.1)
    with dialled(listening(build(FakeAsyncClient(), settings))) as caller:
        caller.sendall(begun)
        assert caller.recv(1) == b""


def test_who_takes_nothing_of_an_answer_is_not_kept(listening, monkeypatch):
    gone = threading.Event()

    class Watched(connection.Connection):
        def connection_lost(self, exc):
            super().connection_lost(exc)
            gone.set()

    monkeypatch.setattr(connection, "UNREAD_MS", 100)
    monkeypatch.setattr(connection, "Connection", Watched)
    with dialled(listening(Response(bytes(2**24)))) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert gone.wait(20)


def test_who_takes_nothing_of_an_answer_holds_up_no_stop(listening, monkeypatch):
    met, gone = [], threading.Event()

    class Watched(connection.Connection):
        def connection_made(self, transport):
            super().connection_made(transport)
            met.append(self)

        def connection_lost(self, exc):
            super().connection_lost(exc)
            gone.set()

    monkeypatch.setattr(connection, "DRAIN_S", 0.1)
    monkeypatch.setattr(connection, "Connection", Watched)
    with dialled(listening(Response(bytes(2**24)))) as caller:
        caller.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
        until(lambda: met and met[0].flow.write_paused)
        met[0].loop.call_soon_threadsafe(met[0].shutdown)
        assert gone.wait(20)


def test_half_of_the_files_are_for_callers(listening, settings, monkeypatch):
    monkeypatch.setattr(connection.resource, "getrlimit", lambda _: (4, 4))
    url = listening(build(FakeAsyncClient(), settings))
    with dialled(url) as one, dialled(url) as other, dialled(url) as more:
        assert more.recv(1) == b""
        for caller in (one, other):
            caller.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert caller.recv(12) == b"HTTP/1.1 200"


@pytest.mark.parametrize("offered", ["h2c", "websocket"])
def test_who_offers_another_protocol_is_answered_in_this_one(listening, settings, capfd, offered):
    with dialled(listening(build(FakeAsyncClient(), settings))) as caller:
        head = (
            "GET /healthz HTTP/1.1",
            "Host: localhost",
            "Connection: Upgrade",
            f"Upgrade: {offered}",
        )
        caller.sendall("\r\n".join((*head, "", "")).encode())
        assert caller.recv(12) == b"HTTP/1.1 200"
    assert "upgrade" not in capfd.readouterr().err


def test_a_body_that_breaks_off_after_its_answer_ends_the_connection_and_nothing_else(
    listening, settings, caplog
):
    with dialled(listening(build(FakeAsyncClient(), settings))) as caller:
        caller.sendall(
            b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        answer = caller.makefile("rb")
        assert answer.readline().startswith(b"HTTP/1.1 405")
        caller.sendall(b"no length\r\n")
        assert b"HTTP/1.1" not in answer.read()
    assert [one for one in caplog.records if one.exc_info] == []
