"""What is wrong, and the mend. Each check finds one kind of fault; a sick one ends the round."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.metadata import version
from typing import Any

import redis

from .stack.errors import StackError
from .stack.up import find_checkout
from .wire import codec
from .wire.broker import redis_client
from .wire.errors import BadSettings, ClipyardError
from .wire.messages import WorkerStatus
from .wire.names import Keys
from .wire.settings import Settings, masked

OLDEST_REDIS = 7  # what the project is tested with, and newer
CLOCKS_APART_S = 2.0  # deadlines and idle times are compared between machines


class Health(StrEnum):
    OK = "ok"
    WARNING = "warning"
    SICK = "sick"


@dataclass(frozen=True)
class Finding:
    """One check's result; `mend` says what to do, and is empty when all is well."""

    check: str
    health: Health
    found: str
    mend: str = ""


@dataclass(frozen=True)
class Report:
    """Every setting with its origin, and every finding."""

    settings: list[dict[str, str]]
    findings: list[Finding]

    @property
    def sick(self) -> bool:
        return any(finding.health is Health.SICK for finding in self.findings)


def examine() -> Report:
    """Look at the settings, Redis and the workers; never raises for what it can report."""
    settings_found, rows = _settings()
    findings = [settings_found]
    if settings_found.health is not Health.SICK:
        findings += _redis_and_workers(Settings.read())
    return Report(rows, findings)


def _settings() -> tuple[Finding, list[dict[str, str]]]:
    try:
        rows = _worker_rows() or Settings.read().rows()
    except BadSettings as error:
        return Finding("settings", Health.SICK, str(error), "correct or unset them"), []
    return Finding("settings", Health.OK, f"{len(rows)} settings can be used"), rows


def _worker_rows() -> list[dict[str, str]] | None:
    """The worker's settings as its own process reads them; None where only the client is."""
    try:
        checkout = find_checkout()
    except StackError:
        return None
    argv = (sys.executable, "-m", "worker.settings")
    asked = subprocess.run(argv, cwd=checkout, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise BadSettings(asked.stderr.strip())
    rows: list[dict[str, str]] = json.loads(asked.stdout)
    return rows


def _redis_and_workers(settings: Settings) -> Iterator[Finding]:
    try:
        url = settings.url()
        with redis_client(settings, patience_s=0) as client:
            yield from _redis(client, url)
            yield from _workers(client, Keys(settings.key_prefix))
    except redis.AuthenticationError as error:
        mend = "check the password in CLIPYARD_REDIS_URL"
        yield Finding("redis", Health.SICK, f"{masked(url)}: {error}", mend)
    except redis.RedisError as error:
        mend = "start it, or correct CLIPYARD_REDIS_URL"
        yield Finding("redis", Health.SICK, f"cannot reach {masked(url)}: {error}", mend)
    except ClipyardError as error:
        yield Finding("redis", Health.SICK, str(error), "start a stack with `clipyard up`")


def _redis(client: Any, url: str) -> Iterator[Finding]:
    server = client.info("server")
    number = str(server.get("valkey_version") or server["redis_version"])
    old = int(number.partition(".")[0]) < OLDEST_REDIS
    yield Finding(
        "redis",
        Health.SICK if old else Health.OK,
        f"version {number} at {masked(url)}",
        f"run version {OLDEST_REDIS} or newer" if old else "",
    )
    policy = client.info("memory")["maxmemory_policy"]
    evicting = policy != "noeviction"
    yield Finding(
        "redis eviction",
        Health.SICK if evicting else Health.OK,
        f"maxmemory-policy is {policy}",
        "set it to noeviction: an evicting Redis loses messages" if evicting else "",
    )
    seconds, microseconds = client.time()
    apart = abs(time.time() - seconds - microseconds / 1e6)
    yield Finding(
        "clocks",
        Health.WARNING if apart > CLOCKS_APART_S else Health.OK,
        f"{apart:.1f} s between this machine and Redis",
        "let NTP set both clocks" if apart > CLOCKS_APART_S else "",
    )


def _workers(client: Any, keys: Keys) -> Iterator[Finding]:
    hashes = [client.hgetall(keys.worker(name.decode())) for name in client.smembers(keys.workers)]
    alive = [codec.unpack_record(WorkerStatus, fields) for fields in hashes if fields]
    if not alive:
        mend = "start one with `clipyard up`, or `celery -A worker.app worker -P threads`"
        yield Finding("workers", Health.SICK, "no worker is alive", mend)
    ours = version("clipyard")
    for worker in sorted(alive, key=lambda worker: worker.name):
        theirs = worker.versions.get("clipyard", "")
        if worker.state == "broken":
            found, mend = f"broken: {worker.trouble}", "look at its log; restart it if it stays so"
        elif theirs and theirs != ours:
            found, mend = f"version {theirs}, this client is {ours}", "install the same version"
        else:
            found, mend = f"{worker.state} on {worker.device}", ""
        health = Health.SICK if worker.state == "broken" else Health.WARNING if mend else Health.OK
        yield Finding(f"worker {worker.name}", health, found, mend)
