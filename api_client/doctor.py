"""What is wrong, and the mend. Each check looks for one kind of fault; docs/doctor.md lists them.

A Redis that does not answer, or takes no writes, ends the round: all else comes of it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Any

import redis
from kombu.exceptions import OperationalError

from .dashboard.settings import DashboardSettings
from .gateway.settings import GatewaySettings
from .stack.errors import StackError
from .stack.settings import StackSettings
from .stack.up import find_checkout
from .stack.valkey import OLDEST_MAJOR
from .status import START_BEAT, Fleet, read_fleet, sweep_is_missing
from .steps import is_of_another_type
from .wire.address import masked
from .wire.broker import (
    NO_SERVERS,
    ONE_SERVER,
    celery_app,
    mode_of,
    redis_client,
    takes_no_writes,
)
from .wire.codec import none_of_ours
from .wire.disk import free_bytes
from .wire.errors import BadSettings, ClipyardError, NoBroker
from .wire.messages import EventKind, WorkerStatus
from .wire.names import STATUS_EXPIRES_S, Keys
from .wire.settings import CONFIG_VARIABLE, Settings, files, given
from .wire.version import VERSION

CLOCKS_APART_S = 2.0  # deadlines and idle times are compared between machines
LEAST_FREE_BYTES = 1_000_000_000  # for the stack's data and logs
GATES_REFUSED = 3  # lately; one can be a message that Redis delivered twice
SET_CLOCKS = "let NTP set both clocks"
NOT_OURS = "bring all to one version, or give each program a CLIPYARD_KEY_PREFIX of its own"
INSPECT_S = 1.0  # how long workers have to answer by remote control


class Check(StrEnum):
    """What is looked at."""

    SETTINGS = "settings"
    REDIS = "redis"
    EVICTION = "redis eviction"
    CLOCKS = "clocks"
    DISK = "disk"
    WORKERS = "workers"
    WORKER = "worker"
    VERSIONS = "versions"
    BEAT = "beat"
    TWO_BEATS = "two beats"
    EVENTS = "events"
    MODEL = "model"
    IMAGE_ROOT = "image root"
    GPU = "gpu"


class Health(StrEnum):
    OK = "ok"
    WARNING = "warning"
    SICK = "sick"


@dataclass(frozen=True)
class Finding:
    """One check's result; `mend` says what to do, and is empty when all is well."""

    check: Check
    health: Health
    found: str
    mend: str = ""


Found = Iterator[Finding]


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
    findings, rows = _settings()
    if findings[0].health is not Health.SICK:
        settings = Settings.read()
        findings += disk(settings.home)
        findings += _redis_and_workers(settings)
    return Report(rows, findings)


def _settings() -> tuple[list[Finding], list[dict[str, str]]]:
    try:
        worker = _worker_rows()
        others = (StackSettings, GatewaySettings, DashboardSettings)
        rows = [row for kind in others for row in kind.read().rows()]
        rows += worker or Settings.read().rows()
        rows = list({row["setting"]: row for row in rows}.values())
    except BadSettings as error:
        return [Finding(Check.SETTINGS, Health.SICK, str(error), "correct or unset them")], []
    usable = Finding(Check.SETTINGS, Health.OK, f"{len(rows)} settings can be used")
    # Where only the client is, nobody knows what a worker reads.
    return [usable, *(unknown_settings({row["setting"] for row in rows}) if worker else ())], rows


def unknown_settings(known: set[str]) -> Found:
    """Names like a setting's that nobody reads: mistyped, or of another version."""
    for name in given():
        if {name, name.removesuffix("_FILE")}.isdisjoint({*known, CONFIG_VARIABLE}):
            near = get_close_matches(name, known, n=1)
            mend = f"did you mean {near[0]}?" if near else "unset it"
            yield Finding(Check.SETTINGS, Health.WARNING, f"{name} is no setting", mend)


def _worker_rows() -> list[dict[str, str]] | None:
    """The worker's settings as its own process reads them; None where only the client is."""
    try:
        checkout = find_checkout()
    except StackError:
        return None
    argv = (sys.executable, "-m", "worker.settings")
    env = {**os.environ, **files()}
    asked = subprocess.run(argv, cwd=checkout, env=env, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise BadSettings(asked.stderr.strip())
    rows: list[dict[str, str]] = json.loads(asked.stdout)
    return rows


def disk(home: Path, *, least_free_bytes: int = LEAST_FREE_BYTES) -> Found:
    """The private Redis and the logs live below `home`."""
    try:
        free = free_bytes(home)
    except OSError as error:
        mend = "let yourself write there, or correct CLIPYARD_HOME"
        yield _told(Check.DISK, f"{home} cannot be looked at: {error.strerror}", mend=mend)
        return
    found = f"{free / 1e9:.1f} GB free below {home}"
    mend = "make room: a Redis that cannot write refuses every message"
    yield _told(Check.DISK, found, mend=mend if free < least_free_bytes else "")


def _redis_and_workers(settings: Settings) -> Found:
    try:
        url = settings.url()
        with redis_client(settings, patience_s=0) as client:
            if (mode := mode_of(client)) in NO_SERVERS:
                yield Finding(Check.REDIS, Health.SICK, f"{masked(url)} is a {mode}", ONE_SERVER)
                return
            keys = Keys(settings.key_prefix)
            yield from _redis(client, keys, url)
            yield from clocks(client)
            fleet = read_fleet(client, keys)
            for told in fleet.strange:
                yield Finding(Check.REDIS, Health.SICK, told, NOT_OURS)
            yield from fleet_findings(fleet, now=time.time())
            yield from two_beats(client, settings)
            yield from current(client, keys, fleet)
        if fleet.workers:
            yield from events(settings)
    except redis.exceptions.NoPermissionError as error:
        mend = "look with the login of the role admin: this one may not ask Redis how it is"
        yield Finding(Check.REDIS, Health.WARNING, f"{masked(url)}: {error}", mend)
    except redis.AuthenticationError as error:
        mend = "check the password in CLIPYARD_REDIS_URL"
        yield Finding(Check.REDIS, Health.SICK, f"{masked(url)}: {error}", mend)
    except redis.RedisError as error:
        found, mend = f"cannot reach {masked(url)}", "start it, or correct CLIPYARD_REDIS_URL"
        if takes_no_writes(error):
            found = f"{masked(url)} takes no writes"
            mend = "make room in its memory or on its disk; if it is a replica, name its primary"
        yield Finding(Check.REDIS, Health.SICK, f"{found}: {error}", mend)
    except NoBroker as error:
        yield Finding(Check.REDIS, Health.SICK, str(error), "start a stack with `clipyard up`")
    except ClipyardError as error:  # of what is none of our records
        yield Finding(Check.REDIS, Health.SICK, str(error), NOT_OURS)


def _redis(client: Any, keys: Keys, url: str) -> Found:
    server = client.info("server")
    yield redis_version(str(server.get("valkey_version") or server["redis_version"]), url=url)
    policy = client.info("memory")["maxmemory_policy"]
    yield _told(
        Check.EVICTION,
        f"maxmemory-policy is {policy}",
        mend="" if policy == "noeviction" else "set it to noeviction: others lose messages",
        health=Health.SICK,
    )
    with suppress(redis.exceptions.NoPermissionError):  # a login that may only look
        client.set(keys.probe, 1, px=1)


def redis_version(number: str, *, url: str) -> Finding:
    old = int(number.partition(".")[0]) < OLDEST_MAJOR
    mend = f"run version {OLDEST_MAJOR} or newer" if old else ""
    return _told(Check.REDIS, f"version {number} at {masked(url)}", mend=mend, health=Health.SICK)


def clocks(client: Any, *, clock: Callable[[], float] = time.time) -> Found:
    seconds, microseconds = client.time()
    apart = abs(clock() - seconds - microseconds / 1e6)
    found = f"{apart:.1f} s between this machine and Redis"
    mend = SET_CLOCKS if apart > CLOCKS_APART_S else ""
    yield _told(Check.CLOCKS, found, mend=mend)


def fleet_findings(fleet: Fleet, *, now: float) -> Found:
    """What the workers' own status tells."""
    if not fleet.workers:
        mend = "start one with `clipyard up`, or `celery -A worker.app worker -P threads`"
        yield Finding(Check.WORKERS, Health.SICK, "no worker is alive", mend)
        return
    for worker in fleet.workers:
        found = f"{worker.name} is {worker.state} on {worker.device}: {worker.trouble}".rstrip(": ")
        health = Health.SICK if worker.state == "broken" else Health.WARNING
        is_wrong = worker.state == "broken" or (worker.state == "ready" and worker.trouble)
        mend = "look at its log; restart it if it stays so" if is_wrong else ""
        yield _told(Check.WORKER, found, mend=mend, health=health)
        yield from _clock(worker, now=now)
        yield from _versions(worker)
        yield from _beat(worker, now=now)
        for complaint in worker.complaints:
            found = f"{worker.name}: {complaint.found}"
            check = Check(complaint.about) if complaint.about in list(Check) else Check.WORKER
            yield Finding(check, Health.WARNING, found, complaint.mend)
    yield from _models(fleet)


def _clock(worker: WorkerStatus, *, now: float) -> Found:
    ahead_s = worker.beat_at - now
    # One that says to be older than it could be is of another clock.
    if not -STATUS_EXPIRES_S - CLOCKS_APART_S <= ahead_s <= CLOCKS_APART_S:
        side = "ahead of" if ahead_s > 0 else "behind"
        found = f"the clock of {worker.name} is {abs(ahead_s):.0f} s {side} this machine's"
        yield Finding(Check.CLOCKS, Health.WARNING, found, SET_CLOCKS)


def _versions(worker: WorkerStatus) -> Found:
    theirs = worker.versions.get("clipyard", "")
    if theirs and theirs != VERSION:
        found = f"{worker.name} has version {theirs}, this client is {VERSION}"
        mend = "install the same version on both sides, the workers first"
        yield Finding(Check.VERSIONS, Health.WARNING, found, mend)


def _beat(worker: WorkerStatus, *, now: float) -> Found:
    if sweep_is_missing(worker, now=now):
        since = max(worker.last_sweep_at, worker.started_at)
        found = f"{worker.name} has not been swept for {now - since:.0f} s"
        yield Finding(Check.BEAT, Health.WARNING, found, START_BEAT)


def _models(fleet: Fleet) -> Found:
    """A model whose last word on a worker is a refusal, and that is not in memory there. What was
    refused to its predecessor, or to one that has gone, may have been mended since."""
    started_at = {worker.name: worker.started_at for worker in fleet.workers}
    seen = {(worker.name, model.id) for worker, model in fleet.in_memory}
    for event in fleet.events:  # newest first
        if (event.worker, event.model) in seen or event.at < started_at.get(event.worker, inf):
            continue
        seen.add((event.worker, event.model))
        if event.kind in (EventKind.REFUSED, EventKind.OUT_OF_MEMORY):
            found = f"{event.model} could not be had on {event.worker}: {event.reason}"
            mend = "look at its checkpoint, its catalogue entry and the memory it needs"
            yield Finding(Check.MODEL, Health.WARNING, found, mend)


def current(client: Any, keys: Keys, fleet: Fleet) -> Found:
    """Whether anybody knows the model that answers when none is named: a typo stops no start."""
    if not fleet.workers:
        return
    model = fleet.answering()
    with suppress(redis.ResponseError):  # none of ours is there, which stops the workers' own beats
        if client.hget(keys.catalogue, model) is None:  # every role may ask so
            mend = "`clipyard switch` to a model that is listed, and correct CLIPYARD_DEFAULT_MODEL"
            found = f"no worker lists the current model, {model}"
            yield Finding(Check.MODEL, Health.WARNING, found, mend)


def two_beats(client: Any, settings: Settings) -> Found:
    key = Keys(settings.key_prefix).refused
    try:
        refused = int(client.get(key) or 0)
    except (ValueError, redis.ResponseError) as error:
        if isinstance(error, redis.ResponseError) and not is_of_another_type(error):
            raise
        told = none_of_ours("the count of refused sweeps", "it is no number")
        yield Finding(Check.REDIS, Health.SICK, f"{key!r}: {told}", NOT_OURS)
        return
    if refused >= GATES_REFUSED:
        found = f"{refused} sweeps were asked for twice"
        mend = "stop one of the beats: they do no harm, but one is enough"
        yield Finding(Check.TWO_BEATS, Health.WARNING, found, mend)


def events(settings: Settings) -> Found:
    """Whether the workers tell Flower of their tasks; asked of them by remote control."""
    with celery_app(settings) as app:  # `inspect` would warn of two workers of one name
        try:
            replies = app.control.broadcast("stats", reply=True, timeout=INSPECT_S) or []
        except OperationalError as error:  # Kombu wraps what Redis said
            cause = error.__cause__
            is_said = isinstance(cause, redis.RedisError)
            raise (cause if is_said else redis.ConnectionError(str(error))) from None
    answers = (answer for reply in replies for answer in reply.items())
    silent = sorted({name for name, told in answers if not told.get("task_events")})
    wanted = DashboardSettings.read().dashboard_password is not None
    on = "on" if replies else "no worker has said"
    found = f"off on {', '.join(silent)}" if silent else on
    mend = "set CLIPYARD_TASK_EVENTS=true for the workers, or the dashboard shows no tasks"
    yield _told(Check.EVENTS, found, mend=mend if silent and wanted else "")


def _told(check: Check, found: str, *, mend: str, health: Health = Health.WARNING) -> Finding:
    """Well, unless there is something to mend."""
    return Finding(check, health if mend else Health.OK, found, mend)
