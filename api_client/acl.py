"""Who may do what in Redis: an ACL file with the least rights of each role.

A role's rights are rows of keys and the commands for them, which become selectors: what is
allowed on one kind of key is not allowed on another. Needs Redis 7.2 or Valkey.
"""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

from .wire.address import parsed
from .wire.errors import BadRequest

__all__ = ["Role", "acl_file", "database_of", "passwords_in", "write_urls"]


class Role(StrEnum):
    """Who connects to Redis. The gateway is a client."""

    CLIENT = "client"
    WORKER = "worker"
    BEAT = "beat"
    DASHBOARD = "dashboard"
    ADMIN = "admin"  # people: ACL LOAD, backups; not for any process of ours


@dataclass(frozen=True)
class Right:
    """Commands that are allowed on some keys (or channels), patterns after our prefix."""

    commands: str
    keys: str


# Every connection greets, names itself and keeps alive. None of these reads or writes a key.
_EVERYBODY = (
    "+ping +hello +auth +select +client|setinfo +client|setname +multi +exec +discard"
    " +unwatch +time +script|load +script|exists"
)
_QUEUES = "embed* control* *.dq2*"
_STATUS = "workers worker:* model:* current catalogue events"
_EVENTS = "celeryev*"

_PUBLISH = (
    Right("+lpush +llen", _QUEUES),
    Right("+sadd +smembers", "_kombu.binding*"),
    # What a worker says of tasks whose sender listens; nobody of ours does.
    Right("+get", "celery-task-meta-*"),
)
_LOOK = (Right("+get +hget +hgetall +smembers +xrevrange", _STATUS),)
# Kombu keeps a list of who listens for replies and events, by scripts, and cleans it up.
_LISTEN = (
    Right(
        "+sadd +srem +smembers +srandmember +scard +zadd +zrem +zrangebyscore +eval +evalsha +del",
        "_kombu.binding*",
    ),
    Right(
        "+lpush +brpop +rpop +llen +lrange +del +expire +ttl +exists",
        "*.celery.pidbox* *.reply.celery.pidbox*",
    ),
)
# Whoever consumes anything looks whether what a dead worker held is to be given back.
_GIVE_BACK = (
    Right("+set +get +del +expire +eval +evalsha", "unacked_mutex"),
    Right(
        "+watch +hset +hget +hdel +hvals +zadd +zrem +zscore +zrange +zrevrangebyscore"
        " +rpush +lpush",
        f"unacked unacked_index {_QUEUES}",
    ),
)
_ASK = (
    Right("+blmove +rpush +expire", "answer:*"),
    # Whether a request is still on its way: one script, over all of these.
    Right("+eval +hexists +hkeys +hvals +llen +lrange", f"unacked {_QUEUES}"),
    Right("+del", "started:* answer:*"),  # to send one again
)
# Its books are read and changed by scripts, in `wire/jobscripts.py` and the workers' ledger.
_JOBS = "jobs job:*"
_RIGHTS: Mapping[Role, tuple[Right, ...]] = {
    Role.CLIENT: (
        Right("+lpush", _QUEUES),
        Right("+smembers", "_kombu.binding*"),
        *_LOOK,
        Right(  # +setbit: of clients of before 2026-11-29
            "+hset +hget +hgetall +hkeys +hdel +hexists +hincrby +zadd +zrange +zrevrange +zcard"
            " +getbit +setbit +bitpos +bitop +bitcount +exists +expire +persist +del +eval",
            _JOBS,
        ),
        Right("+hset +expire +del", "blobs:*"),
        Right("+hset +expire +hmget", "sent:*"),
        Right("+get +set +evalsha", "budget:*"),
        *_ASK,
        Right("+hget +hgetall +hdel", "quarantine"),
    ),
    Role.WORKER: (
        *_PUBLISH,
        *_LISTEN,
        *_GIVE_BACK,
        Right(
            "+hset +hsetnx +hget +hmget +hgetall +hlen +hdel +hexists +hincrby +hincrbyfloat"
            " +zadd +zrem +zscore +zrange +zrangebyscore +zcard +getbit +setbit"
            " +bitpos +sadd +srem +smembers +exists +expire +ttl +persist +del +eval",
            _JOBS,
        ),
        Right("+brpop +rpop +llen +lrange +del +exists +expire +persist", _QUEUES),
        Right("+expire +persist", "_kombu.binding*"),
        Right("+hgetall +del", "blobs:*"),
        # Answers, and starts that have not ended: noted together with a look for the answer, and
        # struck out as it is given.
        Right("+eval +exists +rpush +hset +hget +hgetall +hdel +expire +del", "started:* answer:*"),
        Right("+eval +hset +hgetall +hlen +hdel +expire", "quarantine"),
        Right("+setex +expire", "celery-task-meta-*"),
        Right(
            "+hset +hget +hgetall +hdel +hincrby +expire +ttl +del +exists +get +set +sadd +srem"
            " +smembers +xadd",
            f"{_STATUS} usage:* will:* reserved:* safe-batches",
        ),
        Right(
            "+hget +hsetnx +hstrlen +hdel +zadd +zpopmin +get +set +del +expire +eval +evalsha",
            "cached:*",
        ),
        Right("+set +incrby +pexpire", "gate:*"),
        Right("+set", "probe"),  # its health check's
    ),
    Role.BEAT: _PUBLISH,
    Role.DASHBOARD: (  # its buttons ask the workers, as a client does
        *_PUBLISH,
        *_ASK,
        *_LOOK,
        *_LISTEN,
        *_GIVE_BACK,
        Right("+hgetall +zrevrange +bitcount +zcard", _JOBS),
        Right("+eval +evalsha +type +llen", _QUEUES),  # KEDA comes with this login
        Right("+brpop +rpop +llen +lrange +del", _EVENTS),
    ),
}
# Channels: remote control to the workers, what workers say of themselves, and results, for which
# beats and workers of before 2026-11-30 listen. Whoever listens to a pattern must be allowed the
# very same pattern, and Kombu's carry the number of the database.
_CONTROL, _EVENT, _RESULT = "/{db}.celery.pidbox", "/{db}.celeryev/*", "celery-task-meta-*"
_LISTENS = "+subscribe +psubscribe +unsubscribe +punsubscribe"
_CHANNELS: Mapping[Role, Right] = {
    Role.CLIENT: Right("+publish", _CONTROL),
    Role.WORKER: Right(f"+publish {_LISTENS}", f"{_CONTROL} {_EVENT} {_RESULT}"),
    Role.BEAT: Right(_LISTENS, _RESULT),
    Role.DASHBOARD: Right(f"+publish {_LISTENS}", f"{_CONTROL} {_EVENT}"),
}


def acl_file(passwords: Mapping[Role, str], *, prefix: str, db: int = 0) -> str:
    """The file for `aclfile` of redis.conf; passwords stand in it as SHA-256 only.

    A user is called `<prefix>-<role>`; nobody is let in without a name.
    """
    lines = [_line(role, passwords[role], prefix, db) for role in Role]
    return "\n".join(["user default off", *lines, ""])


def _line(role: Role, password: str, prefix: str, db: int) -> str:
    digest = hashlib.sha256(password.encode()).hexdigest()
    head = f"user {prefix}-{role} reset on #{digest}"
    if role is Role.ADMIN:
        return f"{head} ~* &* +@all"
    channels = _CHANNELS[role]
    selectors = [f"({right.commands} {_each('~', prefix, right.keys)})" for right in _RIGHTS[role]]
    heard = _each("&", prefix, channels.keys).format(db=db)
    return " ".join([head, _EVERYBODY, channels.commands, heard, *selectors])


def _each(sign: str, prefix: str, patterns: str) -> str:
    return " ".join(f"{sign}{prefix}:{pattern}" for pattern in patterns.split())


def passwords_in(folder: Path) -> dict[Role, str]:
    """The roles' passwords, one file each; what is missing is made, readable by its owner only.

    Raises:
        BadRequest: a file holds no text.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    found = {}
    for role in Role:
        file = folder / f"{role}.password"
        # Redis takes the hash of an empty password as it takes any other.
        if not file.exists() or not _password(file):
            fresh = file.with_suffix(".fresh")
            fresh.touch(mode=0o600)
            fresh.write_text(secrets.token_urlsafe(24))  # KEDA would take a newline as part of it
            fresh.replace(file)
        found[role] = _password(file)
    return found


def _password(file: Path) -> str:
    try:
        return file.read_text().strip()
    except UnicodeDecodeError:
        raise BadRequest(
            f"{file} holds no text; write a password of letters and digits, or remove the file, "
            "and one is made"
        ) from None


def database_of(url: str) -> int:
    """The number of the database in a URL that `write_urls` can take.

    Raises:
        BadRequest: it cannot, or has a login already.
    """
    try:
        place = parsed(url)
        if place.keys() & {"username", "password"}:
            raise ValueError
    except ValueError:
        raise BadRequest(
            "--url takes a Redis URL without a login, as redis://redis:6379/0: each role gets its "
            "own"
        ) from None
    return int(place.get("db", 0))


def write_urls(folder: Path, passwords: Mapping[Role, str], *, url: str, prefix: str) -> None:
    """One file per role with the URL it connects to, for CLIPYARD_REDIS_URL_FILE.

    Args:
        url: of the server without a login, as `rediss://redis:6379/0`.
    """
    scheme, _, place = url.partition("://")
    for role, password in passwords.items():
        file = folder / f"{role}.url"
        file.touch(mode=0o600)
        file.write_text(f"{scheme}://{prefix}-{role}:{quote(password, safe='')}@{place}\n")
