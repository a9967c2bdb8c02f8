"""A Celery consumer that outlives its Redis connection, and the lease on what it holds.

Stock Celery treats a lost connection as the end of every message that came through it. For a
Redis broker that is wrong twice: closing the old channels gives running messages back to the
queue (they run twice) or, with Redis gone, ends the worker with an `AttributeError`. Redis
itself keeps no tie between a message and a connection: whoever knows the delivery tag may
acknowledge it. So what runs is carried over to the next connection instead.

Private parts in use, checked with celery 5.7.0 and kombu 5.7.0; tests/flow/test_kill_matrix.py
is what says whether another version still agrees:

- `kombu.transport.virtual.QoS._delivered`: the messages that a channel has handed out.
- `kombu.pidbox.Mailbox._publish_reply`: sends the answer to a remote-control command.
- undocumented, though without an underscore: `Consumer.on_connection_error_before_connected` and
  `on_connection_error_after_connected`, `Consumer.create_task_handler` with what it calls,
  `Consumer.Blueprint.default_steps`, and what `Request` reads moments with, of celery;
  `QoS.restore_by_tag`, `Channel.do_restore`, `Channel.unacked_index_key`,
  `Channel.conn_or_acquire` and `Transport.channels` of kombu.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from celery.bootsteps import StartStopStep
from celery.worker import consumer as stock
from celery.worker import request, state
from kombu import pidbox
from kombu.exceptions import OperationalError
from kombu.transport import virtual

from api_client.wire.broker import queue
from api_client.wire.names import direct_queue

from .pool import MALFORMED

__all__ = ["LONGEST_RUN_S", "Address", "Consumer", "Lease", "Request", "renewable"]

log = logging.getLogger(__name__)

LONGEST_RUN_S = 3600.0
"""The longest that one task may run; a task older than this is taken for wedged and let go."""

SHOWN_CHARS = 100

_RETRY_S = 1.0
"""Between attempts while Redis is away: renewals should be back before the sweeps of others."""

_ONCE_MORE = {"max_retries": 1, "interval_start": 0, "interval_step": 0}


def renewable(requests: Iterable["Request"], *, now: float, longest_run_s: float) -> list[str]:
    """The delivery tags that this worker still has an honest claim to."""
    return [
        request.message.delivery_tag
        for request in requests
        if not request.acknowledged
        and (request.begun_at is None or now - request.begun_at < longest_run_s)
    ]


def _moment(given: Any) -> datetime:
    """As Celery writes it in a message, and reads it with a parser in Python."""
    moment = given if isinstance(given, datetime) else datetime.fromisoformat(given)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


_READERS = {"maybe_iso8601": _moment, "maybe_make_aware": lambda moment, tz: moment}


class Request(request.Request):  # type: ignore[misc]  # celery has no types
    """A request that is settled once, whoever comes first, and whatever it failed with.

    With threads, a task may end at the moment a revocation of it arrives. Celery's check and its
    act are two steps, and a message that is acknowledged twice ends the worker
    (`MessageStateError` out of the event loop). Set
    `app.Task.Request = "worker.delivery.consumer:Request"`.
    """

    tzlocal = UTC  # as the app's; Celery looks it up in its settings for every message
    _settling = threading.Lock()  # one for all: the locked part only notes and schedules
    begun_at: float | None = None
    """On the monotonic clock; None while the task waits for a thread or its time."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """
        Raises:
            TypeError: its name or its time limits would fail in the thread that runs it, where
                nobody settles it: its place would be taken for good, and with the last one the
                worker would be deaf. Or its stamps would, once Celery has noted the request: it
                would stay noted for good.
        """
        super().__init__(*args, **options, **_READERS)
        hash(self.name)
        sum(limit for limit in self.time_limits if limit)
        set(self.stamped_headers)

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Of the start Celery keeps the time of day, which may be set meanwhile."""
        self.begun_at = time_accepted
        super().on_accepted(pid, time_accepted)

    def maybe_expire(self) -> bool:
        """Whether it is too late for this message. Celery would let go of every later one of its id
        as well, for three hours: of what is sent again because the clock here was wrong."""
        return self.expires is not None and datetime.now(UTC) > self.expires

    def acknowledge(self) -> None:
        with self._settling:
            super().acknowledge()

    def reject(self, requeue: bool = False) -> None:
        with self._settling:
            super().reject(requeue=requeue)

    def info(self, safe: bool = False) -> Any:
        """For Flower and `celery inspect`: what the sender lets be shown, and not what it holds."""
        return super().info(safe=True)

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
        """One that found no memory has failed like any other.

        Celery raises instead, and never acknowledges: the message would count against the prefetch
        limit for ever, and enough of them would leave the worker deaf.
        """
        if isinstance(exc_info.exception, MemoryError):
            exc_info.exception = RuntimeError(repr(exc_info.exception))
        return super().on_failure(exc_info, *args, **options)


class Address(StartStopStep):  # type: ignore[misc]  # celery has no types
    """At every connection: lets those who know its name reach this worker's direct queue.

    Each sender declares that for itself, once per connection; housekeeping takes it away when a
    worker has been gone for long, and a worker that comes back must not be deaf to old senders.
    """

    requires = (stock.Tasks,)

    def start(self, consumer: "Consumer") -> None:
        queue(direct_queue(consumer.hostname))(consumer.task_consumer.channel).declare()


class Lease(StartStopStep):  # type: ignore[misc]  # celery has no types
    """Keeps Redis from redelivering what this worker still works on.

    kombu redelivers every message that `unacked_index` scores older than the visibility timeout.
    Four times per timeout the entries of this worker get the present time as their score; an
    entry that has been acknowledged or redelivered meanwhile is never brought back. A worker that
    dies stops renewing, so its messages still return after one visibility timeout.

    Renewals come from a thread, because the event loop stands still for minutes exactly when
    they matter: in a warm shutdown that drains a long task, and while the consumer reconnects.
    """

    requires = (stock.Tasks,)

    def __init__(self, consumer: "Consumer", **options: Any) -> None:
        super().__init__(consumer, **options)
        self._renewals: _Renewals | None = None

    def start(self, consumer: "Consumer") -> None:
        """At every connection: take over what ran on lost ones, and renew through this one."""
        channel = consumer.task_consumer.channel
        consumer.carry_over_to(channel)
        with channel.conn_or_acquire() as client:
            if self._renewals is None:
                self._renewals = _Renewals(
                    client,
                    index_key=channel.unacked_index_key,
                    interval_s=channel.visibility_timeout / 4,
                    longest_run_s=consumer.longest_run_s,
                )
                self._renewals.start()
            else:
                self._renewals.client = client

    def shutdown(self, consumer: "Consumer") -> None:
        """Once the pool is empty; `stop`, which comes at every lost connection, would be early."""
        if self._renewals is not None:
            self._renewals.end()
            self._renewals = None


class _Renewals(threading.Thread):
    """Renews until it is told to end; rides out the absence of Redis."""

    def __init__(
        self, client: Any, *, index_key: str, interval_s: float, longest_run_s: float
    ) -> None:
        super().__init__(name="lease", daemon=True)
        self.client = client
        """A kombu client, so that `global_keyprefix` applies; its pool outlives its channel."""
        self._index_key = index_key
        self._interval_s = interval_s
        self._longest_run_s = longest_run_s
        self._ended = threading.Event()

    def run(self) -> None:
        away = False
        while not self._ended.wait(min(_RETRY_S, self._interval_s) if away else self._interval_s):
            try:
                self._renew()
            except Exception as error:  # whatever redis-py raises, the next round is the answer
                if not away:
                    log.warning("cannot renew the lease on running tasks: %s", error)
                away = True
            else:
                if away:
                    log.info("the lease on running tasks is renewed again")
                away = False

    def end(self) -> None:
        self._ended.set()
        self.join()

    def _renew(self) -> None:
        now = time.monotonic()
        # A copy in one step: pool threads add and remove requests meanwhile.
        requests = list(state.requests.values())
        tags = renewable(requests, now=now, longest_run_s=self._longest_run_s)
        if tags:
            seconds, _ = self.client.time()  # see `transport.QoS`
            self.client.zadd(self._index_key, dict.fromkeys(tags, seconds), xx=True)


class Node(pidbox.Node):  # type: ignore[misc]  # kombu has no types
    """Answers what is asked of this worker (`celery inspect`), with one more try at the most.

    kombu tries without an end, in the event loop: while Redis is away no signal would be heard. It
    logs a traceback where something cannot be done, as by Flower's buttons for a larger pool.
    """

    def handle(self, method: str, arguments: Any = None) -> Any:
        try:
            return super().handle(method, arguments)
        except Exception as error:
            log.warning("%s was asked of this worker, and cannot be done: %r", method, error)
            return {"error": repr(error)}

    def reply(self, data: Any, exchange: str, routing_key: str, ticket: str, **_: Any) -> None:
        try:
            self.mailbox._publish_reply(
                *(data, exchange, routing_key, ticket),
                channel=self.channel,
                serializer=self.mailbox.serializer,
                retry_policy=_ONCE_MORE,
            )
        except OperationalError as error:  # the event loop meets it as well
            log.warning("who asked this worker has no answer: %s", error)


class Consumer(stock.Consumer):  # type: ignore[misc]  # celery has no types
    """Celery's consumer, for whom a lost connection is not the end of what it was working on.

    Set `worker_consumer = "worker.delivery.consumer:Consumer"`, and
    `worker_enable_prefetch_count_reduction = False`: what is carried over already counts against
    the prefetch limit of the new connection.
    """

    longest_run_s = LONGEST_RUN_S

    class Blueprint(stock.Consumer.Blueprint):  # type: ignore[misc]  # celery has no types
        default_steps = (*stock.Consumer.Blueprint.default_steps, Lease, Address)

    def __init__(self, *args: Any, **options: Any) -> None:
        self._lost_channels: list[Any] = []
        options["app"].control.mailbox.node_cls = Node
        super().__init__(*args, **options)

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        """One that cannot be taken apart ends no worker: it would come back, and end the next."""
        handle = super().create_task_handler(*args, **options)

        def take(message: Any) -> None:
            try:
                handle(message)
            except MALFORMED as error:
                self._drop(message, error)

        return take

    # Celery would log what they hold.

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._drop(message, "it names no task")

    def on_unknown_task(self, body: Any, message: Any, error: Exception) -> None:
        self._drop(message, "this worker knows no such task")

    def on_invalid_task(self, body: Any, message: Any, error: Exception) -> None:
        self._drop(message, error)

    def on_decode_error(self, message: Any, error: Exception) -> None:
        self._drop(message, error)

    def _drop(self, message: Any, why: Exception | str) -> None:
        headers = message.headers if isinstance(message.headers, dict) else {}
        shown = [repr(headers.get(name))[:SHOWN_CHARS] for name in ("task", "id")]
        what = why if isinstance(why, str) else type(why).__name__
        log.error("a message was dropped (%s): task %s, id %s", what, *shown)
        if not message.acknowledged:
            message.reject_log_error(log, self.connection_errors)

    def on_connection_error_before_connected(self, error: Exception) -> None:
        """Redis answers, and takes no writes: it is asked again as seldom as one that is away.
        Celery asks six times a second, and its log grows by 175 MB a day."""
        super().on_connection_error_before_connected(error)
        time.sleep(_RETRY_S)

    def on_connection_error_after_connected(self, error: Exception) -> None:
        """Let the old channels close without giving running messages back to the queue."""
        channels = list(self.connection.transport.channels)
        for channel in channels:
            channel.do_restore = False
        self._lost_channels += channels
        super().on_connection_error_after_connected(error)

    def give_back(self) -> int:
        """From any thread, before this process is ended: every message goes back to its queue.

        Gives their number. One that was acknowledged meanwhile stays away; one that was answered
        but not yet acknowledged is found answered by whoever takes it.
        """
        qos = self.task_consumer.channel.qos
        tags = list(qos._delivered)
        for tag in tags:
            qos.restore_by_tag(tag, leftmost=True)
        return len(tags)

    def carry_over_to(self, channel: Any) -> None:
        """Hand every message of the lost channels to `channel`, where it can be acknowledged.

        Only what still runs counts against the prefetch limit and is given back at a shutdown.
        Anything else (a task with an eta, whose timer Celery has cancelled) is left to the
        visibility timeout.
        """
        running = {request.message.delivery_tag for request in list(state.requests.values())}
        for lost in self._lost_channels:
            for tag, message in lost.qos._delivered.items():
                message.channel = channel
                if tag in running:
                    virtual.QoS.append(channel.qos, message, tag)
        self._lost_channels.clear()
