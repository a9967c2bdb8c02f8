"""Real processes that may be killed: a Valkey server, and Celery workers of the kill matrix."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import redis

from api_client.stack.valkey import server_binary

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], object], *, within_s: float = 30.0) -> None:
    """Wait for what another process does."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not so after {within_s} s")
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Valkey:
    """A private server with an append-only file; it comes back on the same port."""

    def __init__(self, folder: Path, *, env: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._env = os.environ | (env or {})
        self._password = secrets.token_hex(8)
        self.port = free_port()
        self.url = f"redis://:{self._password}@127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "requirepass": self._password,
            "dir": self._folder,
            "appendonly": "yes",
            "save": "",
        }
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        self._process = subprocess.Popen(
            [server_binary(), *arguments],
            env=self._env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(self._answers)

    def _answers(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, retry=None) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)

    def write_anew(self) -> None:
        """The append-only file. After a full disk it may have a hole that no restart gets over:
        Valkey 9.1.2 cuts a short write off again, and goes on writing where that had ended.
        """
        with self.client() as client:
            until(lambda: client.info("persistence")["aof_last_write_status"] == "ok")
            client.bgrewriteaof()
            until(lambda: not client.info("persistence")["aof_rewrite_in_progress"])

    @property
    def pid(self) -> int:
        return self._process.pid

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Its port takes connections and nobody says a word, as of a machine that swaps."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.end(signal.SIGTERM)

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def end(self, number: signal.Signals) -> None:
        """With this signal, or with SIGKILL where it does not obey."""
        self._process.send_signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Worker:
    """One worker process of matrix_app in a group of its own."""

    def __init__(
        self, folder: Path, *, name: str, url: str, visibility_timeout_s: float, options: str = ""
    ) -> None:
        self._log = folder / f"{name}.log"
        command = (
            f"-m celery -A matrix_app worker -P threads -n {name}@matrix -l info"
            f" --without-gossip --without-mingle {options}"
        )
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, *command.split()],
                cwd=ROOT,
                env=os.environ
                | {
                    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/flow'}",
                    "CLIPYARD_REDIS_URL": url,
                    "MATRIX_FOLDER": str(folder),
                    "MATRIX_VISIBILITY_TIMEOUT_S": str(visibility_timeout_s),
                },
                stdout=log,
                stderr=log,
            )
        self.until_logged(" ready.")

    def log(self) -> str:
        return self._log.read_text()

    def until_logged(self, text: str, *, times: int = 1) -> None:
        until(lambda: self.log().count(text) >= times)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def alive(self) -> bool:
        return self._process.poll() is None

    def until_ended(self) -> int:
        return self._process.wait(30)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
