import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from api_client.wire.errors import ImageForbidden, ImageMissing, ImageTooLarge, ImageUnreachable
from worker.datapath.decoding import FORMATS
from worker.datapath.web import IpAddress, Web, is_public

# In these tests 127.0.0.1 stands for the internet and 127.0.0.2 for our own network.
OUTSIDE, INSIDE = ip_address("127.0.0.1"), ip_address("127.0.0.2")
PICTURE = b"a picture"

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A web server on one port of both addresses; `answers` says what each path does."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.seen: list[tuple[str, str, str]] = []  # (our address, Host, path)
        self.stop = threading.Event()
        self._servers = [self._listen(str(OUTSIDE), 0, tls)]
        self.port = self._servers[0].server_port
        self._servers.append(self._listen(str(INSIDE), self.port, tls))

    def _listen(self, address: str, port: int, tls: ssl.SSLContext | None) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer((address, port), self._handler(address))
        if tls:
            server.socket = tls.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return server

    def _handler(self, address: str) -> type[BaseHTTPRequestHandler]:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.seen.append((address, self.headers["Host"], self.path))
                with suppress(OSError):  # the client hangs up on what it does not want
                    site.answers.get(self.path, picture)(self)

            def log_message(self, *_: object) -> None:
                pass

        return Handler

    def close(self) -> None:
        self.stop.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


def picture(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(PICTURE)))
    handler.end_headers()
    handler.wfile.write(PICTURE)


def redirect(to: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", to)
        handler.end_headers()

    return answer


def status(number: int) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(number)
        handler.end_headers()

    return answer


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


class Names:
    """A resolver; a name with several lines is answered with the next one each time."""

    def __init__(self, **hosts: list[list[IpAddress]]) -> None:
        self.asked: list[str] = []
        self._hosts = {name.replace("_", "."): lines for name, lines in hosts.items()}

    def __call__(self, host: str, port: int) -> list[IpAddress]:
        self.asked.append(host)
        if host not in self._hosts:
            return [ip_address(found[4][0]) for found in socket.getaddrinfo(host, port)]
        lines = self._hosts[host]
        return lines.pop(0) if len(lines) > 1 else lines[0]


def web(server: Server, names: Names | None = None, **options: object) -> Web:
    settings: dict[str, Any] = {
        "max_bytes": 1000,
        "timeout_s": 5.0,
        "ports": (server.port,),
        "resolve": names or Names(good_test=[[OUTSIDE]], home_test=[[INSIDE]]),
        "allowed": lambda address: address in (OUTSIDE, ip_address("127.0.0.3")),
    }
    return Web(**settings | options)


def test_a_server_that_may_choose_is_told_what_is_opened_fast(server: Server) -> None:
    accepted: list[str] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        accepted.extend(handler.headers["Accept"].split(", "))
        picture(handler)

    server.answers["/a"] = note
    web(server).fetch(f"http://good.test:{server.port}/a")
    assert accepted[-1] == "*/*;q=0.1"
    asked_for = set(FORMATS) - {"PPM", "AVIF"}
    assert set(accepted[:-1]) == {f"image/{format.lower()}" for format in asked_for}


def test_a_public_picture_is_fetched_under_its_own_name(server: Server) -> None:
    assert web(server).fetch(f"http://good.test:{server.port}/ä%20b.png?size=2") == PICTURE
    [(_, host, path)] = server.seen
    assert (host, path) == (f"good.test:{server.port}", "/%C3%A4%20b.png?size=2")


def test_spaces_must_come_quoted(server: Server) -> None:
    with pytest.raises(ImageForbidden, match="spaces"):
        web(server).fetch(f"http://good.test:{server.port}/a b.png")


def test_a_name_with_one_address_inside_is_refused_whole(server: Server) -> None:
    names = Names(both_test=[[OUTSIDE, INSIDE]])
    with pytest.raises(ImageForbidden, match="not public"):
        web(server, names).fetch(f"http://both.test:{server.port}/")
    assert not server.seen


def test_a_name_that_changes_after_the_look_changes_nothing(server: Server) -> None:
    names = Names(rebinding_test=[[OUTSIDE], [INSIDE]])
    assert web(server, names).fetch(f"http://rebinding.test:{server.port}/") == PICTURE
    assert [address for address, *_ in server.seen] == [str(OUTSIDE)]
    assert names.asked == ["rebinding.test"]


def test_an_address_that_is_down_gives_way_to_the_next(server: Server) -> None:
    names = Names(good_test=[[ip_address("127.0.0.3"), OUTSIDE]])
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.3", server.port))  # who does not listen refuses, whoever else comes
        assert web(server, names).fetch(f"http://good.test:{server.port}/") == PICTURE


def test_no_proxy_of_the_environment_is_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://{INSIDE}:{server.port}")
    assert web(server).fetch(f"http://good.test:{server.port}/") == PICTURE
    assert [address for address, *_ in server.seen] == [str(OUTSIDE)]


@pytest.mark.parametrize(
    "to",
    [
        "http://home.test:{port}/admin",
        "http://127.0.0.2:{port}/admin",
        "//127.0.0.2:{port}/admin",
        "http://[::1]:{port}/admin",
        "http://2130706434:{port}/admin",
        "file:///etc/passwd",
        "http://user:word@good.test:{port}/",
        "http://good.test:22/",
        "http://[good.test/",
    ],
)
def test_a_redirect_is_looked_at_like_a_url(server: Server, to: str) -> None:
    server.answers["/"] = redirect(to.format(port=server.port))
    with pytest.raises(ImageForbidden):
        web(server).fetch(f"http://good.test:{server.port}/")
    assert [path for *_, path in server.seen] == ["/"]


def test_a_redirect_to_the_same_name_asks_the_resolver_again(server: Server) -> None:
    server.answers["/"] = redirect("/other")
    names = Names(rebinding_test=[[OUTSIDE], [INSIDE]])
    with pytest.raises(ImageForbidden, match="not public"):
        web(server, names).fetch(f"http://rebinding.test:{server.port}/")


def test_a_redirect_in_utf_8_leads_where_it_says(server: Server) -> None:
    server.answers["/"] = redirect("/ä b.png".encode().decode("latin-1").replace(" ", "%20"))
    assert web(server).fetch(f"http://good.test:{server.port}/") == PICTURE
    assert server.seen[-1][-1] == "/%C3%A4%20b.png"


def test_a_redirect_in_the_open_is_followed_but_not_for_ever(server: Server) -> None:
    server.answers["/"] = redirect("/other")
    assert web(server).fetch(f"http://good.test:{server.port}/") == PICTURE
    server.answers["/other"] = redirect("/other")
    server.seen.clear()
    with pytest.raises(ImageForbidden, match="more than 5 times"):
        web(server).fetch(f"http://good.test:{server.port}/")
    assert len(server.seen) == 1 + 5


def test_a_body_over_the_limit_is_refused_by_its_header_and_by_its_length(server: Server) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not server.stop.is_set():
            handler.wfile.write(bytes(4096))

    def announced(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**12))
        handler.end_headers()

    server.answers |= {"/endless": endless, "/announced": announced}
    for path in server.answers:
        with pytest.raises(ImageTooLarge, match="1000 bytes"):
            web(server).fetch(f"http://good.test:{server.port}{path}")


@pytest.mark.parametrize("part", ["status", "headers", "body"])
def test_drops_that_never_end_are_cut_off(server: Server, part: str) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        if part != "status":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        if part == "body":
            handler.wfile.write(b"\r\n")
        while not server.stop.wait(0.01):
            handler.wfile.write(b"H")

    server.answers["/"] = drip
    with pytest.raises(ImageUnreachable, match=r"within 0\.3 s"):
        web(server, timeout_s=0.3, max_bytes=10**6).fetch(f"http://good.test:{server.port}/")


def test_a_server_that_only_accepts_is_cut_off(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ImageUnreachable, match=r"within 0\.3 s"):
            web(server, ports=(port,), timeout_s=0.3).fetch(f"http://good.test:{port}/")


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (404, ImageMissing),
        (410, ImageMissing),
        (401, ImageForbidden),
        (403, ImageForbidden),
        (451, ImageForbidden),
        (408, ImageUnreachable),
        (429, ImageUnreachable),
        (500, ImageUnreachable),
    ],
)
def test_what_the_server_says_becomes_the_items_error(
    server: Server, number: int, error: type[Exception]
) -> None:
    server.answers["/"] = status(number)
    with pytest.raises(error, match=str(number)):
        web(server).fetch(f"http://good.test:{server.port}/")


@pytest.mark.parametrize(
    ("number", "error"), [(socket.EAI_NONAME, ImageMissing), (socket.EAI_AGAIN, ImageUnreachable)]
)
def test_a_name_that_nobody_has_is_not_one_that_cannot_be_looked_up_now(
    server: Server, number: int, error: type[Exception]
) -> None:
    def resolve(host: str, port: int) -> list[IpAddress]:
        raise socket.gaierror(number, "said by the resolver")

    with pytest.raises(error, match=r"http://typo\.test"):
        web(server, resolve=resolve).fetch(f"http://typo.test:{server.port}/")


def test_only_listed_hosts_are_asked_if_some_are_listed(server: Server) -> None:
    names = Names(
        **{
            name: [[OUTSIDE]]
            for name in ("good_test", "a_pictures_test", "pictures_test", "evilpictures_test")
        }
    )
    reader = web(server, names, hosts=("good.test", ".Pictures.test"))
    for host in ("good.test", "a.pictures.test"):
        assert reader.fetch(f"http://{host}:{server.port}/") == PICTURE
    for host in ("pictures.test", "evilpictures.test", "127.0.0.1"):
        with pytest.raises(ImageForbidden, match="host that may be asked"):
            reader.fetch(f"http://{host}:{server.port}/")
    server.answers["/"] = redirect(f"http://evilpictures.test:{server.port}/")
    with pytest.raises(ImageForbidden, match="host that may be asked"):
        reader.fetch(f"http://good.test:{server.port}/")


def test_only_the_webs_own_ports_are_connected_to() -> None:
    with pytest.raises(ImageForbidden, match="80 or 443"):
        Web(max_bytes=1, timeout_s=1).fetch("http://example.org:6379/")


@pytest.mark.parametrize(
    "url",
    [
        "ftp://good.test/",
        "file:///etc/passwd",
        "gopher://good.test/",
        "http:///path",
        "http://",
        "http://user@good.test/",
        "http://good.test\\@home.test/",
        "http://good.test\t/",
        "http://good.test/\r\nHost: home.test",
        "http://good.test:99999/",
        "http://[::1/",
        "http://good.test./",
        "http://169.254.169.254./",
        "http://gööd.test/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://127\u30020\u30020\u30021/",
        "http://2852039166/",
        "http://0xa9fea9fe/",
        "http://0xa9.0xfe.0xa9.0xfe/",
        "http://0251.0376.0251.0376/",
        "http://169.254.43518/",
        "http://169.0xfea9fe/",
        "http://0/",
        "http://[fe80::1%25lo]/",
        "http://[fe80::1%lo]/",
        "http://127.0.0.1.0x1/",
    ],
)
def test_an_odd_url_is_refused_before_any_name_is_looked_up(url: str) -> None:
    def nobody(host: str, port: int) -> list[IpAddress]:
        raise AssertionError(host)

    with pytest.raises(ImageForbidden):
        Web(max_bytes=1, timeout_s=1, resolve=nobody).fetch(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::ffff:169.254.169.254]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[2002:a9fe:a9fe::1]/",
        "http://[fd00:ec2::254]/",
        "http://168.63.129.16/",
        "http://100.100.100.200/",
        "http://192.0.0.192/",
        "http://localhost/",
        "http://127.1.2.3/",
        "http://[::1]/",
        "http://[::]/",
        "http://0.0.0.0/",
    ],
)
def test_our_own_network_and_the_clouds_metadata_are_refused_in_every_notation(url: str) -> None:
    with pytest.raises(ImageForbidden, match="not public"):
        Web(max_bytes=1, timeout_s=1).fetch(url)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "93.184.216.34", "2606:2800:220:1::1", "64:ff9b::808:808", "100.128.0.1"]
)
def test_the_internet_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        *("10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "127.0.0.1"),
        *("169.254.0.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "ff02::1", "::127.0.0.1", "::8.8.8.8"),
        *("::ffff:8.8.8.8", "64:ff9b::a00:1", "64:ff9b:1::808:808", "2002:808:808::1", "100::1"),
        *("2001::1", "2001:db8::1", "3fff::1", "5f00::1", "fe80::1%eth0"),
    ],
)
def test_what_can_be_a_neighbour_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


def test_the_certificate_is_checked_against_the_name_and_not_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=good.test"
        f" -addext subjectAltName=DNS:good.test -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    server = Server(tls)
    try:
        names = Names(good_test=[[OUTSIDE]], other_test=[[OUTSIDE]])
        with pytest.raises(ImageUnreachable, match="ConnectError"):
            web(server, names).fetch(f"https://good.test:{server.port}/")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        reader = web(server, names)
        assert reader.fetch(f"https://good.test:{server.port}/") == PICTURE
        with pytest.raises(ImageUnreachable, match="ConnectError"):
            reader.fetch(f"https://other.test:{server.port}/")
    finally:
        server.close()


def test_a_refusal_tells_no_query_and_no_inner_address() -> None:
    with pytest.raises(ImageForbidden) as refusal:
        Web(max_bytes=1, timeout_s=1).fetch("http://localhost/a.png?token=canary")
    assert "canary" not in str(refusal.value)
    assert "127.0.0" not in str(refusal.value)
