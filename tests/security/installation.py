"""Whole installations with nothing left open: Redis with roles, a worker, a clock each."""

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from api_client import Client
from api_client.acl import Role, acl_file, passwords_in
from api_client.stack.valkey import server_binary
from api_client.wire.settings import Settings
from tests.flow.processes import free_port, until

ROOT = Path(__file__).parents[2]
CATALOGUE = """
["fake/vision"]
backend = "fake"
dimension = 8
["fake/other"]
backend = "fake"
dimension = 8
"""


@dataclass(frozen=True)
class Installation:
    folder: Path
    port: int
    prefix: str
    key: str
    passwords: Mapping[Role, str]

    def url(self, role: Role) -> str:
        user = f"{self.prefix}-{role}"
        return f"redis://{user}:{self.passwords[role]}@127.0.0.1:{self.port}/0"

    def connect(self, role: Role) -> redis.Redis:
        return redis.Redis.from_url(self.url(role))

    def settings(self, role: Role = Role.CLIENT, **given: object) -> Settings:
        given = {"signing_key": self.key, "answer_timeout_s": 30.0} | given
        return Settings.read(redis_url=self.url(role), key_prefix=self.prefix, **given)

    def client(self, **given: object) -> Client:
        return Client(self.settings(**given))

    def environment(self, role: Role) -> dict[str, str]:
        return os.environ | {
            "CLIPYARD_REDIS_URL": self.url(role),
            "CLIPYARD_KEY_PREFIX": self.prefix,
            "CLIPYARD_SIGNING_KEY": self.key,
            "CLIPYARD_CATALOGUE": str(self.folder / "catalogue.toml"),
            "CLIPYARD_DEFAULT_MODEL": "fake/vision",
            "CLIPYARD_IMAGE_ROOTS": json.dumps([str(self.folder / "pictures")]),
            "CLIPYARD_SINK_ROOTS": json.dumps([str(self.folder / "vectors")]),
            "CLIPYARD_JOBS_DIR": str(self.folder / "jobs"),
            "CLIPYARD_SWEEP_INTERVAL_S": "1",
            "CLIPYARD_TEND_INTERVAL_S": "1",
            "CLIPYARD_CONTENT_CACHE_MB": "1",
            "CLIPYARD_DEVICE": "cpu",
            "CLIPYARD_LOG_LEVEL": "DEBUG",
            "OMP_NUM_THREADS": "1",
        }

    @contextmanager
    def running(self, name: str, role: Role, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """A process of the installation; what it says goes to `<name>.log`."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=self.environment(role),
                stdout=log,
                stderr=log,
            )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(30)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()


WORKER = (
    *("-m", "celery", "-A", "tests.light_app", "worker", "-P", "threads", "-n", "cpu0@here", "-E"),
    *("-l", "debug", "--without-gossip", "--without-mingle"),
)
BEAT = ("-m", "celery", "-A", "beat_schedule", "beat", "-l", "info", "-s", os.devnull)


@contextmanager
def served(folder: Path, *prefixes: str) -> Iterator[list[Installation]]:
    """One Redis for several installations, of which none runs yet."""
    port = free_port()
    made = [_furnished(folder / prefix, port, prefix) for prefix in prefixes]
    files = [acl_file(one.passwords, prefix=one.prefix) for one in made]
    (folder / "users.acl").write_text("\n".join(sorted({*"".join(files).splitlines()})))
    with ExitStack() as parts:
        server = subprocess.Popen(
            [
                server_binary(), "--port", str(port), "--bind", "127.0.0.1",
                "--aclfile", "users.acl", "--save", "", "--dir", ".",
            ],
            cwd=folder,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        parts.callback(server.wait, 30)
        parts.callback(server.terminate)
        admin = parts.enter_context(made[0].connect(Role.ADMIN))
        until(lambda: _answers(admin))
        admin.acl_log_reset()
        yield made


def _furnished(folder: Path, port: int, prefix: str) -> Installation:
    for name in ("pictures", "vectors"):
        (folder / name).mkdir(parents=True)
    (folder / "catalogue.toml").write_text(CATALOGUE)
    passwords = passwords_in(folder / "secrets")
    return Installation(folder, port, prefix, secrets.token_hex(16), passwords)


@contextmanager
def started(made: Installation) -> Iterator[Installation]:
    """Its worker and its beat, ready. Every installation's worker has the same name."""
    with ExitStack() as parts:
        admin = parts.enter_context(made.connect(Role.ADMIN))
        worker = parts.enter_context(made.running("worker", Role.WORKER, *WORKER))
        parts.enter_context(made.running("beat", Role.BEAT, *BEAT))
        until(lambda: _ready(admin, made.prefix) or worker.poll() is not None, within_s=90)
        assert worker.poll() is None, made.log("worker")[-2000:]
        yield made


def _answers(server: redis.Redis) -> bool:
    try:
        return bool(server.ping())
    except redis.ConnectionError:
        return False


def _ready(server: redis.Redis, prefix: str) -> bool:
    return server.hget(f"{prefix}:worker:cpu0@here", "state") == b'"ready"'
