"""Pictures from the web: whoever names an address chooses where this machine connects to.

Every name is resolved once per connection, every address it has must be public, and the
connection goes to an address that was looked at, whatever the name says a moment later. TLS still
checks the certificate against the name. Why on httpcore2 and not a ready-made guard: docs/why.md,
"Who may be asked for a picture".
"""

import re
import socket
import ssl
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import quote, urljoin, urlsplit

import httpcore2

from api_client.wire.errors import (
    ImageForbidden,
    ImageMissing,
    ImageTooLarge,
    ImageUnreachable,
    ItemError,
)

IpAddress = IPv4Address | IPv6Address

REDIRECTS = 5
PORTS = {"http": 80, "https": 443}
_REDIRECTING = {301, 302, 303, 307, 308}
_GONE = {404, 410}
_LATER = {408, 425, 429}  # of 4xx; the others mean the request, which would be the same again
_ASCII = "".join(map(chr, range(128)))
_HEADERS = (
    ("User-Agent", "clipyard"),
    # By name: a server that may choose would send AVIF to who takes all. It is opened, but made of
    # the JPEG that others embed, and in a multiple of its time.
    ("Accept", "image/jpeg, image/png, image/webp, image/gif, image/bmp, image/tiff, */*;q=0.1"),
    ("Accept-Encoding", "identity"),  # nothing to unpack, so nothing that unpacks to more
    ("Connection", "close"),
)

# What the IANA registries of special addresses do not call globally reachable. Of 192.0.0.0/24
# all, because clouds serve metadata there. Python's `is_global` differs between its versions.
_NOT_PUBLIC_4 = [
    ip_network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/3",
        "168.63.129.16/32",  # a public number, but inside Azure the host's own service
    )
]
# Nothing outside 2000::/3 has been given out. Inside it, what carries an IPv4 address (6to4,
# Teredo) or names no place (documentation, benchmarks) is not public either.
_PUBLIC_6 = ip_network("2000::/3")
_NOT_PUBLIC_6 = [
    ip_network(network) for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")
]
# Networks without IPv4 reach the IPv4 web through this prefix: the IPv4 address inside counts.
_NAT64 = ip_network("64:ff9b::/96")


def is_public(address: IpAddress) -> bool:
    """Whether an address can only be somebody on the internet, not us or our neighbours."""
    if isinstance(address, IPv6Address) and address in _NAT64:
        address = IPv4Address(int(address) & 0xFFFFFFFF)
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


def addresses_of(host: str, port: int) -> list[IpAddress]:
    """Every address the system's resolver gives a name. It keeps its own time, see resolv.conf.

    Raises:
        OSError: it has none.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(where[0])) for *_, where in found]


class Web:
    """Fetches what an http(s) URL names. Safe to call from many threads.

    A connection lives for one fetch and keeps no cookies; proxies of the environment are not
    asked, because they would connect for us.

    Args:
        hosts: `example.org`, or `.example.org` for everything below it; empty allows any.
        max_bytes: of one body.
        timeout_s: for one fetch with its redirects, beside the looking up of names.
        ports: that may be connected to.
        resolve: the addresses of a host.
        allowed: which addresses may be connected to.
    """

    def __init__(
        self,
        *,
        hosts: Collection[str] = (),
        max_bytes: int,
        timeout_s: float,
        ports: Collection[int] = tuple(PORTS.values()),
        resolve: Callable[[str, int], Sequence[IpAddress]] = addresses_of,
        allowed: Callable[[IpAddress], bool] = is_public,
    ) -> None:
        self._hosts = tuple(host.lower() for host in hosts)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._ports = ports
        self._resolve = resolve
        self._allowed = allowed
        self._tls = httpcore2.default_ssl_context()

    def fetch(self, url: str) -> bytes:
        """The body.

        Raises:
            ImageForbidden: the URL, or one it redirects to, leads where nobody may go, or its
                server refuses it.
            ImageMissing: the server has no such thing, or there is no such server.
            ImageTooLarge: it is larger than `max_bytes`.
            ImageUnreachable: nothing came, or not in time.
        """
        place = self._checked(url)
        guard = _Guard(self._resolve, self._allowed, ends_at=time.monotonic() + self._timeout_s)
        for _ in range(REDIRECTS + 1):
            try:
                with httpcore2.ConnectionPool(ssl_context=self._tls, network_backend=guard) as pool:
                    body, elsewhere = self._ask(pool, place)
            except ItemError:  # some are OSErrors too
                raise
            except (httpcore2.TimeoutException, TimeoutError):
                raise ImageUnreachable(
                    f"{place} did not deliver within {self._timeout_s:g} s"
                ) from None
            except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
                if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
                    raise ImageMissing(f"{place} does not exist (no such host)") from None
                raise ImageUnreachable(
                    f"{place} cannot be fetched ({type(error).__name__})"
                ) from None
            if elsewhere is None:
                return body
            place = self._checked(elsewhere, seen_from=place.url)
        raise ImageForbidden(f"{place} redirects more than {REDIRECTS} times")

    def _checked(self, url: str, *, seen_from: str = "") -> "_Place":
        place = _parsed(url, seen_from)
        if self._hosts and not any(_covers(host, place.host) for host in self._hosts):
            raise ImageForbidden(
                f"{place} is not on a host that may be asked ({', '.join(self._hosts)})"
            )
        if place.port not in self._ports:
            raise ImageForbidden(f"{place} is on port {place.port}; use {_either(self._ports)}")
        return place

    def _ask(self, pool: httpcore2.ConnectionPool, place: "_Place") -> tuple[bytes, str | None]:
        """The body, or where to ask instead."""
        headers = [("Host", place.authority), *_HEADERS]
        with pool.stream("GET", place.parts, headers=headers) as response:
            told = {name.lower(): value for name, value in response.headers}
            if response.status in _REDIRECTING and b"location" in told:
                return b"", quote(told[b"location"], safe=_ASCII)  # some servers quote nothing
            if response.status in _GONE:
                raise ImageMissing(f"{place} does not exist (status {response.status})")
            if 400 <= response.status < 500 and response.status not in _LATER:
                raise ImageForbidden(f"{place} is refused by its server (status {response.status})")
            if response.status != 200:
                raise ImageUnreachable(f"{place} answers with status {response.status}")
            if told.get(b"content-length", b"").isdigit():
                self._bound(place, int(told[b"content-length"]))
            return self._body(place, response.iter_stream()), None

    def _body(self, place: "_Place", chunks: Iterable[bytes]) -> bytes:
        body = bytearray()
        for chunk in chunks:
            body += chunk
            self._bound(place, len(body))
        return bytes(body)

    def _bound(self, place: "_Place", length: int) -> None:
        if length > self._max_bytes:
            raise ImageTooLarge(f"{place} has more than {self._max_bytes} bytes")


@dataclass(frozen=True)
class _Place:
    """A URL taken apart once, so that no second parser can read it another way."""

    scheme: str
    host: str
    port: int
    target: str

    def __str__(self) -> str:
        """For sentences: the query stays out, it may be a secret."""
        path = self.target.partition("?")[0]
        shown = path if len(path) <= 120 else f"{path[:60]}...{path[-57:]}"
        return f"{self.scheme}://{self.authority}{shown}"

    @property
    def authority(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == PORTS[self.scheme] else f"{name}:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.authority}{self.target}"

    @property
    def parts(self) -> httpcore2.URL:
        return httpcore2.URL(
            scheme=self.scheme.encode(),
            host=self.host.encode(),
            port=self.port,
            target=self.target.encode(),
        )


def _parsed(url: str, seen_from: str) -> _Place:
    # Parsers disagree about these; browsers drop some of them, and Python's parser others.
    if re.search(r"[\x00-\x20\x7f\\]", url):
        raise ImageForbidden("a URL may hold no spaces, control characters or backslashes")
    try:
        split = urlsplit(urljoin(seen_from, url))
        host, port = split.hostname or "", split.port
    except ValueError:
        raise ImageForbidden("that is no URL") from None
    if split.scheme not in PORTS:
        raise ImageForbidden(f"a URL begins with {_either(PORTS)}, not {split.scheme[:20]!r}")
    if "@" in split.netloc:
        raise ImageForbidden("a URL may carry no user or password")
    _refuse_odd(host)
    path = quote(split.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = f"?{quote(split.query, safe='/?%:@!$&()*+,;=~-._')}" if split.query else ""
    return _Place(split.scheme, host, port or PORTS[split.scheme], path + query)


def _refuse_odd(host: str) -> None:
    """Numbers are taken in their usual notation only: `0x7f.1` and `2130706433` are loopback."""
    try:
        ip_address(host)
        if "%" not in host:  # an interface of this machine
            return
    except ValueError:
        pass
    name = re.fullmatch(r"(?:[a-z0-9_]([a-z0-9_-]{0,62})\.)*([a-z0-9]([a-z0-9-]{0,62}))", host)
    if name is None or len(host) > 253 or re.fullmatch(r"\d+|0x[0-9a-f]*", name[2]):
        raise ImageForbidden(
            f"{host[:80]!r} is no host; write a name in ASCII without a dot at its end, "
            "or an address in its usual notation"
        )


def _covers(allowed: str, host: str) -> bool:
    return host == allowed or (allowed.startswith(".") and host.endswith(allowed))


def _either(options: Iterable[object]) -> str:
    return " or ".join(map(str, options))


class _Guard(httpcore2.NetworkBackend):
    """Connects to checked addresses only, and until a moment in time."""

    def __init__(
        self,
        resolve: Callable[[str, int], Sequence[IpAddress]],
        allowed: Callable[[IpAddress], bool],
        *,
        ends_at: float,
    ) -> None:
        self._resolve = resolve
        self._allowed = allowed
        self._ends_at = ends_at
        self._network = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        addresses = self._resolve(host, port)
        if not all(map(self._allowed, addresses)):
            # Which address it has is our network's secret.
            raise ImageForbidden(f"{host} has an address that is not public")
        failure: Exception = OSError("no address")
        for address in addresses:
            try:
                stream = self._network.connect_tcp(
                    str(address), port, self.left_s(), socket_options=socket_options
                )
                return _Timed(stream, self.left_s)
            except httpcore2.ConnectError as error:
                failure = error
        raise failure

    def left_s(self) -> float:
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class _Timed(httpcore2.NetworkStream):
    """A stream whose every step ends by the same moment: slow drops do not add up."""

    def __init__(self, stream: httpcore2.NetworkStream, left_s: Callable[[], float]) -> None:
        self._stream = stream
        self._left_s = left_s

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._left_s())

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        return _Timed(
            self._stream.start_tls(ssl_context, server_hostname, self._left_s()), self._left_s
        )

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
