"""What somebody has to do for the whole fleet once in a while."""

from collections.abc import Collection, Iterable

import redis
from pydantic_core import from_json

from api_client.wire import names
from api_client.wire.codec import text
from api_client.wire.names import Keys

# A beat's ticks come a little early or late: a gate as long as the period would shut every other
# tick out.
GATE_SHARE = 0.9
REFUSALS_KEPT_PERIODS = 5  # after the last one
REPLIES_A_TIME = 1000
REPLY_KEPT_S = 60
BINDINGS_KEPT = 1000  # processes that have used remote control lately
ORPHANS_KEPT_S = 24 * 3600  # messages for a worker that has not come back, and its queue
ABSENT_A_TIME = 1000


def first_in_period(store: redis.Redis, keys: Keys, *, period_s: float) -> bool:
    """True for the first to ask in a period, so that a second beat changes nothing."""
    gate_ms = max(1, int(period_s * GATE_SHARE * 1000))
    if store.set(keys.gate, 1, nx=True, px=gate_ms):
        return True
    with store.pipeline() as pipe:  # `clipyard doctor` tells two beats by it
        pipe.incr(keys.refused)
        pipe.pexpire(keys.refused, max(1, int(period_s * REFUSALS_KEPT_PERIODS * 1000)))
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
        with store.pipeline(transaction=False) as pipe:
            pipe.srem(keys.workers, *dead)
            for name in dead:
                _forget(pipe, keys, name)
            pipe.execute()
    return [name for name, there in zip(seen, alive, strict=True) if there]


def state_of(store: redis.Redis, key: str) -> str:
    """What the status hash of a worker or a model says; empty without one of ours."""
    try:
        return str(from_json(store.hget(key, "state") or '""'))
    except ValueError:
        return ""


def _forget(pipe: "redis.client.Pipeline", keys: Keys, worker: str) -> None:
    """What Kombu keeps by a worker's name goes, its messages after a day.

    In some clusters no name ever comes back; one that does makes all of it anew when it starts.
    """
    queue = names.direct_queue(worker)
    for table in keys.bindings(names.DIRECT_EXCHANGE):
        pipe.srem(table, names.binding(worker, queue))
    pidbox = f"{worker}.celery.pidbox"
    pipe.srem(keys.bindings("celery.pidbox")[0], names.binding("", pidbox))
    for key in _kept_for(keys, queue):
        pipe.expire(key, ORPHANS_KEPT_S)


def forget_absent(store: redis.Redis, keys: Keys, alive: Collection[str]) -> None:
    """Who said farewell may only be starting again: it is known until its queue has expired, which
    begins now. A thousand at a time, picked by chance, so all have their turn.
    """
    tables = keys.bindings(names.DIRECT_EXCHANGE)
    members: list[bytes] = store.srandmember(tables[0], ABSENT_A_TIME)  # type: ignore[assignment]
    bound = {text(member).partition("\x06")[0]: member for member in members}
    absent = sorted(bound.keys() - set(alive))
    with store.pipeline(transaction=False) as pipe:
        for queue in map(names.direct_queue, absent):
            for key in _kept_for(keys, queue):
                pipe.expire(key, ORPHANS_KEPT_S, nx=True)
        pipe.execute()
        for queue in map(names.direct_queue, absent):
            pipe.scard(keys.bindings(queue)[0])
        gone = [bound[name] for name, left in zip(absent, pipe.execute(), strict=True) if not left]
        for table in tables if gone else ():
            pipe.srem(table, *gone)
        pipe.execute()


def keep_reachable(store: redis.Redis, keys: Keys, workers: Iterable[str]) -> None:
    """Whoever was struck off and has come back, or was starting, is not forgotten after all."""
    with store.pipeline(transaction=False) as pipe:
        for worker in workers:
            queue = names.direct_queue(worker)
            for table in keys.bindings(names.DIRECT_EXCHANGE):
                pipe.sadd(table, names.binding(worker, queue))
            for key in _kept_for(keys, queue):
                pipe.persist(key)
        pipe.execute()


def _kept_for(keys: Keys, queue: str) -> list[str]:
    steps = (names.INTERACTIVE, names.BULK)
    return [*keys.bindings(queue), *(keys.queue(queue, step) for step in steps)]


def expire_replies(store: redis.Redis, keys: Keys) -> int:
    """Give an expiry to replies that nobody fetched; gives their number.

    A client that was killed while it waited for remote control leaves them behind for good
    (celery #6089), and every client its place in the table of those who listen. A thousand at a
    time, picked by chance, so all have their turn. Who listens still is in nobody's way: replies
    are fetched long before they expire, and each command enters its client into the table again.
    """
    bindings: list[bytes] = store.srandmember(keys.reply_queues, REPLIES_A_TIME)  # type: ignore[assignment]
    queues = [keys.reply_queue(text(binding)) for binding in bindings]
    with store.pipeline(transaction=False) as pipe:
        for queue in queues:
            pipe.ttl(queue)
        pipe.scard(keys.reply_queues)
        *ttls, count = pipe.execute()
        lasting = [queue for queue, ttl in zip(queues, ttls, strict=True) if ttl == -1]
        for queue in lasting:
            pipe.expire(queue, REPLY_KEPT_S)
        empty = [one for one, ttl in zip(bindings, ttls, strict=True) if ttl == -2]
        if count > BINDINGS_KEPT and empty:
            pipe.srem(keys.reply_queues, *empty[: count - BINDINGS_KEPT])
        pipe.execute()
    return len(lasting)
