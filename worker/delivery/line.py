"""Commands that Redis is told at once and whose replies are heard later, or together.

redis-py takes a connection from its pool for each command, gives it back, and waits in between:
200 Python calls and a wait, for each request several times. What is told here leaves at once, and
Redis does it in that order; what came of it is heard when somebody needs to know.
"""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import redis

from api_client.wire.patience import LOST

__all__ = ["Line", "Lines"]

# A connection may have died without a word, and whoever asks on it waits for the socket's timeout.
# One that has been silent for so long is made anew, which takes a millisecond or two.
FRESH_S = 20.0

# Nothing that is told here blocks, so who waits longer than this for a reply waits in vain. Other
# connections of our own wait for 30 s.
HEARD_S = 10.0

Command = Sequence[Any]


class Line:
    """One connection, for one thread.

    Args:
        pool: of a client; the connection stays out of it.
    """

    def __init__(self, pool: redis.ConnectionPool) -> None:
        self._connection = pool.get_connection()
        self._connection.disconnect()  # type: ignore[no-untyped-call]
        self._connection.socket_timeout = HEARD_S  # from the next connect on
        self._unheard = 0
        self._used_at = time.monotonic()

    def tell(self, *commands: Command) -> None:
        """
        Raises:
            RedisError: they could not be sent; what was unheard will not be heard any more.
        """
        try:
            now = time.monotonic()
            if now - self._used_at > FRESH_S and not self._unheard:
                self._connection.disconnect()  # type: ignore[no-untyped-call]
            self._used_at = now
            packed = self._connection.pack_commands(commands)  # type: ignore[no-untyped-call]
            # No PING: it would take what is unheard for its own answer.
            self._connection.send_packed_command(packed, check_health=False)  # type: ignore[no-untyped-call]
            self._unheard += len(commands)
        except BaseException:
            self._begin_anew()
            raise

    def hear(self) -> list[Any]:
        """The replies to all that was told since the last time.

        Raises:
            RedisError: the connection was lost, one was not there in time, or is an error.
        """
        replies = []
        try:
            while self._unheard:
                replies.append(self._connection.read_response())
                self._unheard -= 1
        except BaseException:
            self._begin_anew()
            raise
        return replies

    def _begin_anew(self) -> None:
        """Whatever went wrong, the next command finds no old answers."""
        self._unheard = 0
        self._connection.disconnect()  # type: ignore[no-untyped-call]


class Lines:
    """A line for each thread that asks, and the client's patience where one is lost.

    What was told on a line that is lost may have been done or not; a command that is asked is then
    asked again, so it must bear that.
    """

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._threads = threading.local()

    def tell(self, *command: Any) -> None:
        """
        Raises:
            ConnectionError, TimeoutError: Redis is away for longer than the client's patience.
        """
        if self._told(command) is None:
            self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    def ask(self, *command: Any, meanwhile: Callable[[], None] = lambda: None) -> Any:
        """The reply; as bytes or numbers, as Redis gives it.

        Args:
            meanwhile: done once, while Redis is at it.

        Raises:
            ConnectionError, TimeoutError: as `tell`.
            ResponseError: of this command, or of one that was told before.
        """
        line = self._told(command)
        meanwhile()
        if line is not None:
            with suppress(*LOST):
                return line.hear()[-1]
        return self._client.execute_command(*command)  # type: ignore[no-untyped-call]

    def _told(self, command: Command) -> Line | None:
        """The line of this thread, if it carried the command."""
        try:
            if not hasattr(self._threads, "line"):
                self._threads.line = Line(self._client.connection_pool)
            line: Line = self._threads.line
            line.tell(command)
        except LOST:
            return None
        return line
