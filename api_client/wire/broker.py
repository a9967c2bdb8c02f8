"""One function builds every Celery app, one every Redis client, so that no two can disagree.

Why each setting has its value: docs/why.md, "How messages survive".
"""

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from itertools import accumulate, count, takewhile
from threading import Lock, RLock
from time import monotonic
from typing import TYPE_CHECKING, Any

import redis
from celery import Celery
from celery.app.amqp import AMQP
from kombu import Connection, Exchange, Queue
from redis._parsers import Encoder
from redis.backoff import ExponentialBackoff
from redis.connection import HiredisRespSerializer, PythonRespSerializer
from redis.event import EventDispatcher

from . import names
from .address import for_celery, masked, parsed
from .errors import BadSettings
from .patience import LOST, AsyncTries, Tries
from .settings import Settings

if TYPE_CHECKING:
    from redis.asyncio import Redis as AsyncRedis

# How Redis begins to say that it cannot store anything now: its disk or its memory is full, it has
# become a replica (UNBLOCKED is said to who was waiting then), has too few replicas of its own, or
# is held up by a script.
NO_WRITES = ("MISCONF", "OOM", "READONLY", "UNBLOCKED", "MASTERDOWN", "NOREPLICAS", "BUSY")
_NO_WRITES = (
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ExecAbortError,
)

NO_SERVERS = {"cluster", "sentinel"}  # what may answer in the place of one
ONE_SERVER = "name the one server that holds all data, or a primary with replicas"
_QUOTED = re.compile(r"""\((['"])(.*)\1,\)""", re.DOTALL)

LARGE = 2**15  # bytes of a value that is not worth a copy
MANY = 2**21  # bytes of what is sent in turn: it fills the line to Redis for milliseconds
FRESH_S = 5.0  # since a connection was used: it stands as it stood then
TURN_S = 1.0  # the longest that a turn is waited for: another's may be slow, or never end

VISIBILITY_TIMEOUT_S = 120  # a worker renews the messages it holds every quarter of this

_RECONNECT = {"interval_start": 0.2, "interval_step": 0.6, "interval_max": 2.0}  # seconds
_BACKOFF = ExponentialBackoff(cap=1, base=0.05)

# How long a Redis may say nothing to who has no patience at all: a command of ours blocks for a
# second at most, and one that a script holds up says so after five.
SILENT_S = 5.0
_LONGEST_SILENCE_S = 30.0

_REDIS_OPTIONS: dict[str, Any] = {
    "socket_keepalive": True,
    "socket_connect_timeout": 5,
    "health_check_interval": 25,
    "socket_read_size": 2**18,  # with 2**16, redis-py's own, pictures take a third longer to read
    # Opened as needed, one for each call that waits; a process may usually open 1,024 files.
    "max_connections": 900,
}


class _Connection(Connection):  # type: ignore[misc]  # kombu has no types
    """Soon back: kombu's own pauses grow to half a minute, and Redis is back long before."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        return super().ensure_connection(*args, **{**_RECONNECT, **options})


class _AMQP(AMQP):  # type: ignore[misc]  # celery has no types
    Connection = _Connection


class _App(Celery):  # type: ignore[misc]  # celery has no types
    """Sends straight to a queue, which Redis need not be told of first, and listens for no result.

    kombu 5.7.0 declares it once per connection. If the connection is lost just then, it declares
    through the next one and sends through the lost one, which ends in an AttributeError. And Celery
    subscribes to the result of each message before it sends it, unless told that nobody wants it.
    """

    amqp_cls = _AMQP

    def send_task(self, *args: Any, **options: Any) -> Any:
        return super().send_task(*args, **{"declare": [], "ignore_result": True, **options})


def celery_app(settings: Settings, **conf: object) -> Celery:
    """The app of a client, a worker or the beat; `conf` is what only that side needs.

    A process with a Celery of its own keeps it: its current app, and CELERY_BROKER_URL and
    CELERY_RESULT_BACKEND, which for Celery count for more than an app's own broker and backend.
    """
    prefix = f"{settings.key_prefix}:"
    url = for_celery(settings.url())
    app = _App("clipyard", broker=url, set_as_current=False, fixups=())
    app.backend_cls = url
    app.conf.update(
        broker_read_url=url,
        broker_write_url=url,
        task_serializer="json",
        result_serializer="json",
        event_serializer="json",
        accept_content=["json"],
        task_default_queue=names.EMBED,
        task_queues=[queue(names.EMBED), queue(names.CONTROL)],
        task_default_priority=names.INTERACTIVE,
        task_acks_late=True,
        task_acks_on_failure_or_timeout=True,
        task_reject_on_worker_lost=True,
        task_ignore_result=True,
        task_repr_maxlevels=1,  # logs and events name a task's lists, and show none of their items
        task_send_sent_event=False,
        task_publish_retry=True,
        task_publish_retry_policy={
            "max_retries": 10,
            "interval_start": 0.1,
            "interval_step": 0.5,
            "interval_max": 3,
        },
        result_expires=settings.answer_ttl_s,
        result_backend_always_retry=True,
        result_backend_max_retries=60,
        result_backend_transport_options={"global_keyprefix": prefix},
        redis_socket_keepalive=True,
        redis_socket_connect_timeout=5,
        redis_socket_timeout=30,
        redis_backend_health_check_interval=25,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=5,
        broker_transport_options={
            "global_keyprefix": prefix,
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            # But for workers, see their transport: to a dashboard whose clock is ahead all that
            # they hold would be overdue.
            "unacked_restore_limit": 0,
            "unacked_mutex_expire": 30,
            "socket_keepalive": True,
            "socket_connect_timeout": 5,
            # Short: of connections that were dropped without a word, an event loop waits for one
            # after the other before it looks whether messages still come, which is each interval.
            "socket_timeout": 10,
            "health_check_interval": 10,
            "max_connections": 64,
            "priority_steps": [names.INTERACTIVE, names.BULK],
            "queue_order_strategy": "round_robin",
        },
        worker_prefetch_multiplier=1,
        worker_direct=True,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    app.conf.update(conf)
    return app


def queue(name: str) -> Queue:
    """A queue as whoever sends to it by its name declares it."""
    # Without an exchange of its own a queue would be bound to the default one's.
    return Queue(name, Exchange(name), routing_key=name)


class Packer:
    """Writes commands as redis-py does, but pictures go to the socket as they are.

    hiredis copies every value into one buffer a command, which is quickest for small ones.
    """

    def __init__(self) -> None:
        encoder = Encoder("utf-8", "strict", decode_responses=False)  # type: ignore[no-untyped-call]
        self._small = HiredisRespSerializer()
        self._large = PythonRespSerializer(LARGE, encoder.encode)

    def pack(self, *args: Any) -> list[bytes]:
        """What goes to the socket, in pieces."""
        packer: HiredisRespSerializer | PythonRespSerializer = self._small
        for arg in args:
            if type(arg) is bytes and len(arg) > LARGE:
                packer = self._large
        pieces: list[bytes] = packer.pack(*args)
        return pieces


class _Pipeline(redis.client.Pipeline):
    """Lets go of its connection before it gives it back, as redis.asyncio's does.

    redis-py's, interrupted in between (Ctrl-C), gives it back once more when it is collected; by
    then another thread may have it, and a third one would get it too. It watches no key: what was
    watched stays so.
    """

    def reset(self) -> None:  # type: ignore[override]  # Redis has a command of that name
        self.command_stack, self.scripts = [], set()
        connection, self.connection = self.connection, None
        if connection:
            self.connection_pool.release(connection)


class _Pool(redis.ConnectionPool):
    """Can be used in a fork, also where another thread held its locks at that moment.

    redis-py's own waits there for that thread, which did not come along. And each time it looks
    whether a connection still stands, with seventy Python calls until it is given back. Here one
    that came back a moment ago goes on as it is; a Redis that was started anew costs it a try.
    """

    def reset(self) -> None:
        self._lock, self._event_dispatcher, self._turn = RLock(), EventDispatcher(), Lock()
        self._fresh: list[tuple[Any, float]] = []  # to redis-py in use; with when they came back
        super().reset()

    def get_connection(self, *args: Any, **options: Any) -> Any:
        while self._fresh and self.pid == os.getpid():
            try:
                connection, since = self._fresh.pop()
            except IndexError:  # another thread has taken it
                break
            if monotonic() - since < FRESH_S:
                return connection
            super().release(connection)
        return super().get_connection(*args, **options)

    def release(self, connection: Any) -> None:
        stands = connection.is_connected and not connection.should_reconnect()
        if stands and self.pid == connection.pid == os.getpid():
            self._fresh.append((connection, monotonic()))
        else:
            super().release(connection)

    def disconnect(self, inuse_connections: bool = True) -> None:
        with suppress(IndexError):
            while True:
                super().release(self._fresh.pop()[0])
        super().disconnect(inuse_connections)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One sends at a time, but for whoever has waited in vain: with him a new row begins, as
        who has the old turn may be long at it, or was interrupted before it could end it."""
        mine = self._turn
        if not mine.acquire(timeout=TURN_S):
            mine = self._turn = Lock()
            mine.acquire()
        try:
            yield
        finally:
            mine.release()


class _Redis(redis.Redis):
    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> _Pipeline:
        return _Pipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


def redis_client(settings: Settings, *, patience_s: float = 30.0, **options: Any) -> redis.Redis:
    """A client for our own keys. Bytes in, bytes out.

    Args:
        patience_s: about how long a command is retried while Redis is away. One that is there and
            silent, or behind a network that is, may be so for a few seconds more.
        options: of redis-py, instead of what everybody else has.
    """
    pool = _Pool.from_url(
        settings.url(),
        retry=Tries(_BACKOFF, _tries(patience_s), _repeated_after(patience_s)),
        command_packer=Packer(),
        **_REDIS_OPTIONS | {"socket_timeout": _silence_s(patience_s)} | options,
    )

    class InTurn(pool.connection_class):  # type: ignore[misc,name-defined]  # with TLS or without
        """What threads send at once would all arrive at the end: see docs/why.md, "How pictures
        travel as bytes"."""

        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            if _is_much(command):
                with pool.turn():
                    super().send_packed_command(command, check_health)
            else:
                super().send_packed_command(command, check_health)

    pool.connection_class = InTurn
    return _Redis.from_pool(pool)


def check_server(settings: Settings) -> None:
    """For the start of a worker or the beat, which would try for ever. A Redis that is away comes
    back; a login or a database that it refuses is refused again, and a cluster stays one.

    Raises:
        BadSettings: one is.
    """
    try:
        with redis_client(settings, patience_s=0) as client:
            mode = mode_of(client)
        if mode in NO_SERVERS:
            raise BadSettings(f"Redis at {masked(settings.url())} is a {mode}; {ONE_SERVER}")
    except redis.AuthenticationError as error:
        raise BadSettings(login_refused(settings.url(), error)) from None
    except redis.RedisError as error:
        if isinstance(error, redis.ResponseError) and not takes_no_writes(error):
            raise BadSettings(unusable(settings.url(), str(error))) from None


def mode_of(client: redis.Redis) -> str:
    """As what a Redis answers: `standalone`, or one of NO_SERVERS."""
    told = client.execute_command("HELLO")  # type: ignore[no-untyped-call]
    fields = told if isinstance(told, dict) else dict(zip(told[::2], told[1::2], strict=True))
    return str(fields.get(b"mode", b"").decode())


def login_refused(url: str, error: redis.AuthenticationError) -> str:
    """What people are told then."""
    given = parsed(url).get("password")
    what = f"refuses the login ({str(error).rstrip('.')})" if given else "wants a login"
    return f"Redis at {masked(url)} {what}; correct CLIPYARD_REDIS_URL"


def unusable(url: str, why: str) -> str:
    """What people are told of a server that answers, and refuses what is asked of it."""
    return (
        f"Redis at {masked(url)} cannot be used ({why.rstrip('.')}); has it this database, and is "
        "it version 7 or newer and no cluster?"
    )


def is_unusable(error: redis.ResponseError) -> bool:
    """Whether it is the server's doing, and no stranger's key nor a script of ours gone wrong."""
    why = said(error)
    is_ours = "user_script:" in why and not why.startswith("Unknown Redis command")
    return not is_ours and not why.startswith("WRONGTYPE")


def takes_no_writes(error: Exception) -> bool:
    """Whether Redis answered that it can store nothing at the moment; Kombu wraps what it said."""
    answers = (error, error.__cause__)
    return any(isinstance(one, _NO_WRITES) for one in answers) or said(error).startswith(NO_WRITES)


def said(error: Exception) -> str:
    """What Redis answered. redis-py puts a pipeline's command before it, and redis.asyncio in that
    case the answer into a tuple."""
    answer = str(error).rpartition("caused error: ")[2]
    quoted = _QUOTED.fullmatch(answer)
    return quoted[2] if quoted else answer


def async_redis_client(settings: Settings, *, patience_s: float) -> "AsyncRedis":
    """As `redis_client`, for asyncio, where redis-py never copies what is large."""
    from redis.asyncio import Redis

    client = Redis.from_url(
        settings.url(),
        retry=AsyncTries(_BACKOFF, _tries(patience_s), _repeated_after(patience_s)),
        socket_timeout=_silence_s(patience_s),
        **_REDIS_OPTIONS,
    )
    pool, one_at_a_time = client.connection_pool, asyncio.Lock()
    contexts: dict[tuple[Any, ...], Any] = {}  # what TLS trusts, by the files that say so

    @asynccontextmanager
    async def turn() -> AsyncIterator[None]:
        has_turn = False
        with suppress(TimeoutError):
            async with asyncio.timeout(TURN_S):
                has_turn = await one_at_a_time.acquire()
        try:
            yield
        finally:
            if has_turn:
                one_at_a_time.release()

    class Piecewise(pool.connection_class):  # type: ignore[misc,name-defined]  # with TLS or without
        """In turn as well. And each piece has the socket's timeout for itself, as in the waiting
        client: else all the pictures of a message share it, and a slow network counts as a silent
        one."""

        def _connection_arguments(self) -> Any:
            """What the files of TLS hold is read anew once they have changed. It takes 30 ms: 64
            that connected at once did so for longer than connecting may take."""
            if tls := getattr(self, "ssl_context", None):
                if (files := _files_of(tls)) not in contexts:
                    tls.context = None
                    contexts.clear()
                    contexts[files] = tls.get()
                tls.context = contexts[files]
            return super()._connection_arguments()

        async def disconnect(self, *args: Any, **options: Any) -> None:
            """Also from a Redis that hangs, which takes no more of what was half sent."""
            writer = self._writer
            try:
                await super().disconnect(*args, **options)
            except redis.TimeoutError:
                writer.transport.abort()
            except asyncio.CancelledError:
                writer.transport.abort()
                raise

        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            is_one = isinstance(command, str | bytes)
            async with turn() if _is_much(command) else nullcontext():
                for number, piece in enumerate([command] if is_one else ([one] for one in command)):
                    if number and not self.is_connected:  # redis-py would connect, and go on here
                        raise redis.ConnectionError("the connection was closed within a command")
                    await super().send_packed_command(piece, check_health and not number)

    pool.connection_class = Piecewise
    return client


def _files_of(tls: Any) -> tuple[Any, ...]:
    """Others, once anything is put in their place."""
    cafile, capath, *_ = ssl.get_default_verify_paths()
    files = (cafile, capath, tls.ca_certs, tls.ca_path, tls.certfile, tls.keyfile)
    found = (os.stat(file) for file in files if file)
    return tuple((one.st_ino, one.st_size, one.st_mtime_ns) for one in found)


def _is_much(command: Any) -> bool:
    """Of what is packed for a socket, in one piece or in several."""
    return not isinstance(command, str | bytes) and sum(map(len, command)) >= MANY


def _silence_s(patience_s: float) -> float:
    """How long a Redis that says nothing is waited for, each time."""
    return min(patience_s + SILENT_S, _LONGEST_SILENCE_S)


def _repeated_after(patience_s: float) -> tuple[type[redis.RedisError], ...]:
    """The errors after which a command is tried again, through another connection; silence uses a
    small patience up at once. Who has become a replica keeps its connections: only a new one leads
    to the primary."""
    has_time = patience_s >= _silence_s(patience_s)
    away = LOST if has_time else (redis.ConnectionError,)
    return (*away, redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)


def _tries(patience_s: float) -> int:
    """As many as there are pauses before the patience ends."""
    waited_s = accumulate(map(_BACKOFF.compute, count(1)))
    return sum(1 for _ in takewhile(lambda one: one < patience_s, waited_s))
