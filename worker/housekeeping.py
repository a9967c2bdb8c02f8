"""What somebody has to do for the whole fleet once in a while."""

import redis

from api_client.wire.codec import text
from api_client.wire.names import Keys

# A beat's ticks come a little early or late: a gate as long as the period would shut every other
# tick out.
GATE_SHARE = 0.9
REFUSALS_KEPT_PERIODS = 5  # after the last one
REPLIES_A_TIME = 1000
REPLY_KEPT_S = 60


def first_in_period(store: redis.Redis, keys: Keys, what: str, *, period_s: float) -> bool:
    """True for the first to ask in a period, so that a second beat changes nothing."""
    gate_ms = max(1, int(period_s * GATE_SHARE * 1000))
    if store.set(keys.gate(what), 1, nx=True, px=gate_ms):
        return True
    with store.pipeline() as pipe:  # `clipyard doctor` tells two beats by it
        pipe.incr(keys.refused(what))
        pipe.pexpire(keys.refused(what), max(1, int(period_s * REFUSALS_KEPT_PERIODS * 1000)))
        pipe.execute()
    return False


def live_workers(store: redis.Redis, keys: Keys) -> list[str]:
    """Node names, sorted. Those whose hash has expired are struck off the list.

    One that was only slow, or cut off, puts itself back with its next beat.
    """
    seen = sorted(map(text, store.smembers(keys.workers)))
    with store.pipeline(transaction=False) as pipe:
        for name in seen:
            pipe.exists(keys.worker(name))
        alive = pipe.execute()
    dead = [name for name, there in zip(seen, alive, strict=True) if not there]
    if dead:
        store.srem(keys.workers, *dead)
    return [name for name, there in zip(seen, alive, strict=True) if there]


def expire_replies(store: redis.Redis, keys: Keys) -> int:
    """Give an expiry to replies that nobody fetched; gives their number.

    A client that was killed while it waited for remote control leaves them behind for good
    (celery #6089). A thousand at a time, picked by chance, so all have their turn.
    """
    bindings: list[bytes] = store.srandmember(keys.reply_queues(), REPLIES_A_TIME)  # type: ignore[assignment]
    queues = [keys.reply_queue(text(binding)) for binding in bindings]
    with store.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.ttl(queue)
        lasting = [q for q, ttl in zip(queues, pipe.execute(), strict=True) if ttl == -1]
        for queue in lasting:
            pipe.expire(queue, REPLY_KEPT_S)
        pipe.execute()
    return len(lasting)
