"""Keeps redis-py to one number of tries, see "How messages survive" in docs/why.md."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import clear_frames
from typing import Any

import redis
from redis.asyncio.retry import Retry as OfAsyncio
from redis.retry import Retry

__all__ = ["LOST", "AsyncTries", "Tries"]

LOST = (redis.ConnectionError, redis.TimeoutError)
"""What redis-py raises where Redis is away for longer than a client's patience."""


class Tries(Retry):
    """Of what is retried within a try nothing is, and a login that was refused is not.

    What comes between a command and its reply, such as Ctrl-C, closes the connection: its next
    command would take that reply for its own.
    """

    def call_with_retry(self, do: Any, fail: Any, *args: Any, **options: Any) -> Any:
        meant = self.get_retries()

        def once() -> Any:
            met = sys.exception()  # by whoever calls
            with _alone(self):
                try:
                    return do()
                except LOST as error:
                    _break_circles(error, but=met)
                    raise
                finally:
                    del met

        try:
            return super().call_with_retry(once, fail, *args, **options)
        except redis.RedisError:
            raise
        except BaseException as error:
            fail(error, *([0] if options.get("with_failure_count") else ()))
            raise
        finally:
            self.update_retries(meant)


class AsyncTries(OfAsyncio):
    """`Tries` for asyncio."""

    async def call_with_retry(self, do: Any, fail: Any, *args: Any, **options: Any) -> Any:
        meant = self.get_retries()

        async def once() -> Any:
            with _alone(self):
                return await do()

        try:
            return await super().call_with_retry(once, fail, *args, **options)
        finally:
            self.update_retries(meant)


def _break_circles(error: redis.RedisError, *, but: BaseException | None) -> None:
    """Where it cannot connect, redis-py leaves why in a variable there, which would keep all that
    our callers have at hand, pictures too."""
    for one in (error, error.__context__):
        if isinstance(one, OSError | redis.TimeoutError) and one is not but:
            clear_frames(one.__traceback__)


@contextmanager
def _alone(tries: Tries | AsyncTries) -> Iterator[None]:
    """Each connection has its own, which what is called inside finds at zero."""
    left = tries.get_retries()
    tries.update_retries(0)
    try:
        yield
    except redis.AuthenticationError:
        left = 0
        raise
    except redis.ResponseError as error:
        if "UNBLOCKED" in str(error):  # so hears of it who waits as a server becomes a replica
            raise redis.exceptions.ReadOnlyError(str(error)) from None
        raise
    finally:
        tries.update_retries(left)
