"""rediss:// with a throw-away certificate: through a terminator, and by a server that can."""

import asyncio
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis
from celery.contrib.testing.worker import start_worker

from api_client.wire.broker import async_redis_client, celery_app, redis_client
from api_client.wire.settings import Settings
from tests.flow.processes import free_port, until


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _certificate(tmp_path_factory.mktemp("tls"))


def _certificate(folder: Path) -> Path:
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", "key.pem", "-out", "cert.pem"),
        ],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder / "cert.pem"


@pytest.fixture(scope="module", params=["terminator", "server"])
def port(
    request: pytest.FixtureRequest, certificate: Path, valkey_url: str
) -> Iterator[tuple[int, str]]:
    """Where TLS is spoken, and the login."""
    if request.param == "terminator":
        login, _, address = valkey_url.removeprefix("redis://").partition("@")
        host, _, inner = address.partition("/")[0].partition(":")
        with Terminator(certificate, (host, int(inner))) as terminator:
            yield terminator.port, f"{login}@"
        return
    binary = shutil.which("redis-server") or shutil.which("valkey-server")
    if binary is None:
        pytest.skip("no server of the system, which would have TLS")
    number = free_port()
    server = subprocess.Popen(
        [
            *(binary, "--port", "0", "--tls-port", str(number), "--bind", "127.0.0.1"),
            *("--tls-cert-file", certificate, "--tls-key-file", certificate.with_name("key.pem")),
            *("--tls-ca-cert-file", certificate, "--tls-auth-clients", "no", "--save", ""),
        ],
        stdout=subprocess.DEVNULL,
    )
    try:
        until(lambda: _listens(number))
        yield number, ""
    finally:
        server.terminate()
        server.wait(10)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


class Terminator:
    """Takes TLS off, as a side-car would."""

    def __init__(self, certificate: Path, inner: tuple[str, int]) -> None:
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.serve_with(certificate)
        self._inner = inner
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def serve_with(self, certificate: Path) -> None:
        """From the next connection on."""
        self._tls.load_cert_chain(certificate, certificate.with_name("key.pem"))

    def __enter__(self) -> "Terminator":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            suppress(OSError),
            self._tls.wrap_socket(plain, server_side=True) as outer,
            socket.create_connection(self._inner) as inner,
        ):
            threading.Thread(target=_pour, args=(inner, outer), daemon=True).start()
            _pour(outer, inner)


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)


def settings(port: tuple[int, str], query: str = "", host: str = "localhost") -> Settings:
    number, login = port
    return Settings.read(redis_url=f"rediss://{login}{host}:{number}/0{query}", key_prefix="tls")


async def _awaited_ping(asked: Settings) -> bool:
    async with async_redis_client(asked, patience_s=0) as client:
        return await client.ping()


def test_a_worker_and_its_client_speak_tls(port: tuple[int, str], certificate: Path) -> None:
    trusting = settings(port, f"?ssl_ca_certs={certificate}")
    app = celery_app(trusting)
    store = redis_client(trusting)

    @app.task(name="test.echo", shared=False)
    def echo(word: str) -> None:
        store.rpush("tls:echo", word)

    with start_worker(app, pool="threads", perform_ping_check=False, shutdown_timeout=10):
        app.send_task("test.echo", args=["hello"], ignore_result=True)
        assert store.blpop(["tls:echo"], timeout=20) == (b"tls:echo", b"hello")
    assert asyncio.run(_awaited_ping(trusting))
    store.close()
    app.close()


@pytest.mark.parametrize(("host", "trusted"), [("localhost", False), ("127.0.0.1", True)])
def test_a_strangers_certificate_is_refused_by_everybody(
    port: tuple[int, str], certificate: Path, host: str, trusted: bool
) -> None:
    asked = settings(port, f"?ssl_ca_certs={certificate}" if trusted else "", host)
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        redis_client(asked, patience_s=0).ping()
    with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
        asyncio.run(_awaited_ping(asked))
    app = celery_app(asked)
    broker = app.connection_for_write(transport_options={"max_retries": 1})
    with broker, pytest.raises(broker.connection_errors, match="certificate verify failed"):
        broker.channel().client.ping()
    app.close()


def test_connections_that_were_there_before_a_new_ca_trust_it(
    certificate: Path, valkey_of_my_own, tmp_path: Path
) -> None:
    trusted = tmp_path / "ca.pem"
    trusted.write_text(certificate.read_text())
    login, _, address = valkey_of_my_own.url.removeprefix("redis://").partition("@")
    inner = ("127.0.0.1", int(address.partition("/")[0].partition(":")[2]))

    async def pings(terminator: Terminator) -> None:
        asked = settings((terminator.port, f"{login}@"), f"?ssl_ca_certs={trusted}")
        async with async_redis_client(asked, patience_s=1) as client:
            await client.ping()
            renewed = _certificate(tmp_path)
            trusted.write_text(certificate.read_text() + renewed.read_text())
            terminator.serve_with(renewed)
            with redis_client(asked, patience_s=0) as other:
                other.client_kill_filter(_type="normal")
            await client.ping()

    with Terminator(certificate, inner) as terminator:
        asyncio.run(pings(terminator))


def test_those_that_connect_at_once_read_the_ca_once(
    monkeypatch: pytest.MonkeyPatch, port: tuple[int, str], certificate: Path
) -> None:
    read: list[ssl.SSLContext] = []
    make = ssl.create_default_context

    def making() -> ssl.SSLContext:
        read.append(make())
        return read[-1]

    async def wait() -> None:
        asked = settings(port, f"?ssl_ca_certs={certificate}")
        async with async_redis_client(asked, patience_s=1) as client:
            await asyncio.gather(*(client.blpop(["tls:nothing"], 0.01) for _ in range(3)))

    monkeypatch.setattr(ssl, "create_default_context", making)
    asyncio.run(wait())
    assert len(read) == 1
