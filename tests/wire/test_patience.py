from contextlib import suppress

import redis
from redis.backoff import NoBackoff

from api_client.wire.patience import Tries


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
