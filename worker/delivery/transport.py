"""A Redis transport that takes only so many bulk messages at once, and waits for less.

With Redis a worker takes a message whenever it has a thread to spare. Under saturating bulk load
bulk would hold all of them, and an interactive message would wait in Redis for a chunk to end. So
a worker that holds `bulk_tasks` bulk messages, not counting those that are parked, listens for
interactive ones only; one that holds none takes a bulk message before it takes more interactive
ones, so that neither starves. One that has no model yet leaves both to those who have.

What is held is read off the channel's own list of unacknowledged messages each time, so messages
that are requeued, restored or carried over to a new connection are counted right.

Private parts in use, checked with kombu 5.7.0: `Channel._brpop_start` (rewritten below),
`_brpop_read`, `_receive_one`, `_queue_cycle`, `_q_for_pri`, `_in_poll`, `_brpop_sent_at`,
`_inplace_augment_message`, the client's `_prefix_args`, `QoS._delivered` and `_dirty`,
`Message._raw`; with redis-py 8.1.0: the parser's `EXCEPTION_CLASSES`.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic, time
from typing import Any

from kombu.transport import TRANSPORT_ALIASES, virtual
from kombu.transport import redis as kombu_redis
from kombu.utils.json import dumps
from redis import exceptions
from redis._parsers.base import BaseParser

from api_client.wire import broker, names

from . import pool
from .line import Line

log = logging.getLogger(__name__)

HEARS_AGAIN_S = 0.5  # what became of what it told
LISTENS_AGAIN_S = 0.05  # for what it leaves to others now
CLOSE_S = 10.0  # two clocks that are compared every few seconds

# What kombu and redis-py raise over something that is no envelope of kombu's.
UNREADABLE = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
    exceptions.DataError,
)


class TakesNoWrites(exceptions.ConnectionError):
    """Redis answers, but can store nothing now, see `broker.NO_WRITES`: as if it were away."""


def use() -> None:
    """Make `redis://` and `rediss://` mean this transport in this process.

    And let a Redis that takes no writes count as one that is away: kombu would end the worker, and
    nobody would try again. Only here, for redis-py's table is that of the whole process.

    To be called before the first connection. Celery's `broker_transport` would do it too, but
    kombu sets TLS up by the name `rediss` only.
    """
    here = f"{__name__}:{Transport.__name__}"
    TRANSPORT_ALIASES.update(redis=here, rediss=here)
    BaseParser.EXCEPTION_CLASSES.update(dict.fromkeys(broker.NO_WRITES, TakesNoWrites))


def priorities(steps: Sequence[int], *, bulk_held: int, bulk_tasks: int) -> list[int]:
    """The priority steps to listen on, the first one wins."""
    bulk = [step for step in steps if step >= names.BULK]
    urgent = [step for step in steps if step < names.BULK]
    if bulk_held >= bulk_tasks:
        return urgent
    return urgent + bulk if bulk_held else bulk + urgent


class Message(virtual.Message):  # type: ignore[misc]  # kombu has no types
    """One that is no larger than it looks: kombu would unpack any before its signature is read."""

    def __init__(self, payload: Any, **options: Any) -> None:
        """
        Raises:
            ValueError: it is compressed.
        """
        if (payload.get("headers") or {}).get("compression"):
            raise ValueError("compressed")
        super().__init__(payload, **options)


class QoS(kombu_redis.QoS):  # type: ignore[misc]  # kombu has no types
    """Notes in Redis what is held, and strikes out what is done, without waiting each time.

    What Redis says is heard once the message is on its way, of many messages together, with a look
    at the queues: at the latest a second later, and there a refusal is raised as one of theirs.
    kombu waits twice for each message, which is a third of what its event loop does. The commands
    are kombu's, without its transactions: of two that are sent together, one alone does no harm.

    Since when it is held, and for how long that may be, goes by Redis' clock. By the workers' own,
    what one held that runs an hour ahead came back after an hour, and to it all that others held
    was overdue.
    """

    _line: Line | None = None
    _heard_at = 0.0
    _ahead_s: float | None = None  # this machine's clock, of Redis'

    @property
    def visibility_timeout(self) -> float:
        """As kombu compares it, with this machine's clock."""
        timeout_s: float = self.channel.visibility_timeout
        return timeout_s + (self._ahead_s or 0.0)

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """All that is overdue. And what was noted before Redis' own clock was set back counts from
        now on."""
        now = time() - self._compare_clocks()
        with self.channel.conn_or_acquire() as client:
            index = self.unacked_index_key
            if ahead := client.zrange(index, now + CLOSE_S, "+inf", byscore=True):
                client.zadd(index, dict.fromkeys(ahead, now), xx=True)
        super().restore_visible(num=None, interval=1)

    def can_consume(self) -> bool:
        """Up to the limit, not counting those that wait and hold nobody up."""
        held = len(self._delivered) - len(self._dirty)
        return not self.prefetch_count or held < self.prefetch_count + pool.others()

    def append(self, message: Any, delivery_tag: str) -> None:
        # Raises here, where it costs one message, and not with every look.
        pool.is_bulk(message.properties)
        info = message.delivery_info
        held = dumps([message._raw, info["exchange"], info["routing_key"]])
        ahead_s = self._compare_clocks() if self._ahead_s is None else self._ahead_s
        self._tell(
            ["ZADD", self.unacked_index_key, time() - ahead_s, delivery_tag],
            ["HSET", self.unacked_key, delivery_tag, held],
        )
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        # First: Celery merely logs that the line was lost, and would count it as held for good.
        virtual.QoS.ack(self, delivery_tag)
        self._tell(
            ["ZREM", self.unacked_index_key, delivery_tag], ["HDEL", self.unacked_key, delivery_tag]
        )

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        try:
            super().reject(delivery_tag, requeue)
        except BaseException:  # as above; Redis has it still, and gives it back when it is overdue
            virtual.QoS.ack(self, delivery_tag)
            raise

    def hear(self, *, at_once: bool = False) -> None:
        """Raise what became of what was told, if anything did; not with every message."""
        now = monotonic()
        if self._line is not None and (at_once or now - self._heard_at >= HEARS_AGAIN_S):
            self._heard_at = now
            self._line.hear()

    def _compare_clocks(self) -> float:
        with self.channel.conn_or_acquire() as client:
            seconds, micros = client.time()
        self._ahead_s = time() - seconds - micros / 1e6
        return self._ahead_s

    def _tell(self, *commands: list[Any]) -> None:
        with self.channel.conn_or_acquire() as client:
            if self._line is None:
                self._line = Line(client.connection_pool)
            self._line.tell(*map(client._prefix_args, commands))


class Channel(kombu_redis.Channel):  # type: ignore[misc]  # kombu has no types
    """Keeps its client, which kombu makes anew for every command, and takes one option more.

    Attributes:
        bulk_tasks: the most bulk messages held at once.
        listens: whether this process asks for messages; false once it is about to end.
        stands_back: whether it leaves what is to be embedded to other workers now.
    """

    Message, QoS = Message, QoS
    _kept: Any = None
    _written: dict[tuple[Any, ...], Any]  # what BRPOP was sent as; the queues take turns
    bulk_tasks = pool.BULK_TASKS
    listens = True
    stands_back: Callable[[], bool] = staticmethod(lambda: False)
    from_transport_options = (*kombu_redis.Channel.from_transport_options, "bulk_tasks")

    def __init__(self, *args: Any, **options: Any) -> None:
        self._written = {}
        super().__init__(*args, **options)

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        if client is None:
            if self._kept is None or self._kept.connection_pool is not self.pool:
                self._kept = self._create_client()
            client = self._kept
        yield client

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        """Through a lost channel nothing: the message comes back, and is found answered.

        One that ended over two losses of a connection is on no channel's list any more; its
        AttributeError would end the worker.
        """
        if self.connection is not None:
            super().basic_ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Likewise."""
        if self.connection is not None:
            super().basic_reject(delivery_tag, requeue)

    def close(self) -> None:
        """What was told is done before the connection goes."""
        with suppress(*self.connection_errors):
            self.qos.hear(at_once=True)
        super().close()

    def _inplace_augment_message(self, message: Any, *address: Any) -> None:
        """With the request's id in the tag: by it whoever waits finds the message of a later try,
        see `api_client.vigil`."""
        super()._inplace_augment_message(message, *address)
        properties = message["properties"]
        if request := properties.get("correlation_id"):
            properties["delivery_tag"] = f"{request} {properties['delivery_tag']}"

    def _brpop_read(self, **options: Any) -> Any:
        try:
            with _dropping():
                return super()._brpop_read(**options)
        finally:
            self.qos.hear()

    def _receive_one(self, client: Any) -> Any:
        with _dropping():
            return super()._receive_one(client)

    def _brpop_start(self, timeout: float | None = None) -> None:
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues or not self.listens:
            return
        held = self._bulk_held() - pool.parked_bulk()
        steps = priorities(self.priority_steps, bulk_held=held, bulk_tasks=self.bulk_tasks)
        if stands_back := self.stands_back():
            queues = [queue for queue in queues if queue != names.EMBED]
        if stands_back or held >= self.bulk_tasks:
            timeout = LISTENS_AGAIN_S
        client = self.client
        self._in_poll = connection = client.connection
        self._brpop_sent_at = monotonic()
        asked = (*queues, *steps, timeout := timeout or self.brpop_timeout)
        if asked not in self._written:
            keys = [self._q_for_pri(queue, step) for step in steps for queue in queues]
            command = client._prefix_args(["BRPOP", *keys, timeout])
            self._written[asked] = connection.pack_command(*command)
        connection.send_packed_command(self._written[asked])

    def _bulk_held(self) -> int:
        # This thread alone changes either: Celery has its event loop acknowledge what threads end.
        delivered, dirty = self.qos._delivered, self.qos._dirty
        return sum(
            pool.is_bulk(message.properties) and tag not in dirty
            for tag, message in delivered.items()
        )


class Transport(kombu_redis.Transport):  # type: ignore[misc]  # kombu has no types
    """A Redis transport with the channel above."""

    Channel = Channel


@contextmanager
def _dropping() -> Iterator[None]:
    """Around the reading of one message: what is none has left its queue, and ends no worker."""
    try:
        yield
    except UNREADABLE as error:
        log.error("a message was dropped (%s): it is no envelope of ours", type(error).__name__)
