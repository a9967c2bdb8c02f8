import pytest

from worker import housekeeping
from worker.housekeeping import (
    expire_replies,
    first_in_period,
    forget_absent,
    keep_reachable,
    live_workers,
)


def test_only_the_first_beat_in_a_period_passes_the_gate(store, keys):
    passed = [first_in_period(store, keys, period_s=60) for _ in range(3)]
    assert passed == [True, False, False]


def test_the_gate_is_open_again_before_the_next_tick_can_come(store, keys):
    first_in_period(store, keys, period_s=60)
    assert 0 < store.pttl(keys.gate) <= 54_000


def test_a_worker_whose_hash_has_expired_is_struck_off_the_list(store, keys):
    store.sadd(keys.workers, "gpu0@a", "gpu1@a", "gpu2@a")
    store.hset(keys.worker("gpu1@a"), "name", '"gpu1@a"')
    assert live_workers(store, keys) == ["gpu1@a"]
    assert store.smembers(keys.workers) == {b"gpu1@a"}


def test_what_is_kept_by_the_name_of_a_worker_that_has_gone_goes_and_comes_back(store, keys):
    lists = [keys.queue("gpu0@a.dq2", step) for step in (0, 9)]
    tables = keys.bindings("gpu0@a.dq2")
    direct, lasting = keys.bindings("C.dq2")
    for key in lists:
        store.lpush(key, "message")
    for key in tables:
        store.sadd(key, "gpu0@a.dq2\x06\x16\x06\x16gpu0@a.dq2")
    for key in (direct, lasting):
        store.sadd(key, *(f"{name}\x06\x16\x06\x16{name}.dq2" for name in ("gpu0@a", "gpu1@a")))
    store.sadd(keys.bindings("celery.pidbox")[0], "\x06\x16\x06\x16gpu0@a.celery.pidbox")
    store.sadd(keys.workers, "gpu0@a")
    live_workers(store, keys)
    assert all(0 < store.ttl(key) <= housekeeping.ORPHANS_KEPT_S for key in (*lists, *tables))
    assert store.smembers(direct) == store.smembers(lasting)
    assert store.smembers(direct) == {b"gpu1@a\x06\x16\x06\x16gpu1@a.dq2"}
    assert not store.exists(keys.bindings("celery.pidbox")[0])
    housekeeping.keep_reachable(store, keys, ["gpu0@a"])
    assert all(store.ttl(key) == -1 for key in (*lists, *tables))


@pytest.fixture
def bound(store, keys):
    """Leaves behind what a worker that was stopped does; gives the tables it stands in."""

    def bound(name):
        queue = f"{name}.dq2"
        for table in keys.bindings("C.dq2"):
            store.sadd(table, f"{name}\x06\x16\x06\x16{queue}")
        for table in keys.bindings(queue):
            store.sadd(table, f"{queue}\x06\x16\x06\x16{queue}")
        return [keys.bindings(queue)[0], *keys.bindings("C.dq2")]

    return bound


def test_a_worker_that_was_stopped_is_known_for_a_day(store, keys, bound, monkeypatch):
    table, *direct = bound("gpu0@a")
    bound("gpu1@a")
    store.lpush(keys.queue("gpu0@a.dq2", 0), "message")
    forget_absent(store, keys, ["gpu1@a"])
    lasting = [table, keys.queue("gpu0@a.dq2", 0)]
    assert all(0 < store.ttl(key) <= housekeeping.ORPHANS_KEPT_S for key in lasting)
    assert [store.scard(key) for key in direct] == [2, 2]
    assert store.ttl(keys.bindings("gpu1@a.dq2")[0]) == -1
    monkeypatch.setattr(housekeeping, "ORPHANS_KEPT_S", 2 * housekeeping.ORPHANS_KEPT_S)
    forget_absent(store, keys, ["gpu1@a"])
    assert store.ttl(table) <= housekeeping.ORPHANS_KEPT_S / 2  # counted from the first time
    store.delete(*keys.bindings("gpu0@a.dq2"))  # a day later
    forget_absent(store, keys, ["gpu1@a"])
    assert [store.smembers(key) for key in direct] == [{b"gpu1@a\x06\x16\x06\x16gpu1@a.dq2"}] * 2


def test_a_worker_that_started_while_it_was_forgotten_is_known_again(store, keys, bound):
    _, *direct = bound("gpu0@a")
    before = [store.smembers(key) for key in direct]
    store.delete(*direct)
    keep_reachable(store, keys, ["gpu0@a"])
    assert [store.smembers(key) for key in direct] == before


def test_of_many_who_were_stopped_all_are_forgotten_in_the_end(store, keys, bound, monkeypatch):
    monkeypatch.setattr(housekeeping, "ABSENT_A_TIME", 3)
    for n in range(8):
        bound(f"gpu0@{n}")
        store.delete(*keys.bindings(f"gpu0@{n}.dq2"))
    for _ in range(3):
        forget_absent(store, keys, [])
    assert not any(store.exists(table) for table in keys.bindings("C.dq2"))


def test_nobody_alive_is_an_empty_list(store, keys):
    assert live_workers(store, keys) == []


@pytest.fixture
def unfetched(store, keys):
    """Leaves replies behind as a client does that was killed while it waited."""

    def unfetched(*names):
        for name in names:
            queue = f"{name}.reply.celery.pidbox"
            store.sadd(keys.reply_queues, f"{name}\x06\x16\x06\x16{queue}")
            store.lpush(keys.queue(queue, 0), "pong")
        return [keys.queue(f"{name}.reply.celery.pidbox", 0) for name in names]

    return unfetched


def test_replies_nobody_fetched_get_an_expiry_once(store, keys, unfetched):
    queues = unfetched("a", "b")
    assert expire_replies(store, keys) == 2
    assert all(0 < store.ttl(queue) <= housekeeping.REPLY_KEPT_S for queue in queues)
    assert expire_replies(store, keys) == 0


def test_the_table_of_those_who_listen_is_bounded_and_who_has_replies_stays(
    store, keys, unfetched, monkeypatch
):
    monkeypatch.setattr(housekeeping, "BINDINGS_KEPT", 5)
    unfetched("answered")
    gone = [f"{n}\x06\x16\x06\x16{n}.reply.celery.pidbox" for n in range(20)]
    store.sadd(keys.reply_queues, *gone)
    expire_replies(store, keys)
    assert store.scard(keys.reply_queues) == 5
    assert store.sismember(
        keys.reply_queues, "answered\x06\x16\x06\x16answered.reply.celery.pidbox"
    )


def test_a_sweep_of_replies_is_bounded_and_the_next_ones_do_the_rest(
    store, keys, unfetched, monkeypatch
):
    monkeypatch.setattr(housekeeping, "REPLIES_A_TIME", 3)
    unfetched(*"abcdefgh")
    given = [expire_replies(store, keys) for _ in range(200)]
    assert max(given) <= 3
    assert sum(given) == 8
