import gc
import weakref
from contextlib import suppress

import pytest
import redis
from redis.backoff import NoBackoff

from api_client.wire.patience import Tries


class Held:
    pass


def refused():
    try:
        raise ConnectionRefusedError
    except OSError as error:
        why = error  # redis-py does so
        raise redis.ConnectionError from why


def timed_out():
    why = redis.TimeoutError("Timeout connecting to server")
    raise why


@pytest.mark.parametrize("connect", [refused, timed_out])
def test_who_cannot_connect_keeps_nothing_of_its_callers(connect):
    def call():
        held = Held()
        with suppress(redis.RedisError):
            Tries(NoBackoff(), 0).call_with_retry(connect, lambda _: None)
        return weakref.ref(held)

    gc.disable()
    try:
        assert call()() is None
    finally:
        gc.enable()


def test_what_a_caller_is_at_as_redis_goes_is_left_alone():
    def each():
        for name in ("a", "b", "c"):
            try:
                raise FileNotFoundError(name)
            except OSError as error:
                yield error

    def closed():
        raise redis.ConnectionError("Connection closed by server.")

    seen = []
    for error in each():  # whose frame stands in each error's traceback
        try:
            raise error
        except OSError as met:
            seen.append(str(met))
            with suppress(redis.ConnectionError):
                Tries(NoBackoff(), 0).call_with_retry(closed, lambda _: None)
    assert seen == ["a", "b", "c"]
