import pytest

from worker import housekeeping
from worker.housekeeping import expire_replies, first_in_period, live_workers


def test_only_the_first_beat_in_a_period_passes_the_gate(store, keys):
    passed = [first_in_period(store, keys, "sweep", period_s=60) for _ in range(3)]
    assert passed == [True, False, False]
    assert first_in_period(store, keys, "other", period_s=60)


def test_the_gate_is_open_again_before_the_next_tick_can_come(store, keys):
    first_in_period(store, keys, "sweep", period_s=60)
    assert 0 < store.pttl(keys.gate("sweep")) <= 54_000


def test_a_worker_whose_hash_has_expired_is_struck_off_the_list(store, keys):
    store.sadd(keys.workers, "gpu0@a", "gpu1@a", "gpu2@a")
    store.hset(keys.worker("gpu1@a"), "name", '"gpu1@a"')
    assert live_workers(store, keys) == ["gpu1@a"]
    assert store.smembers(keys.workers) == {b"gpu1@a"}


def test_nobody_alive_is_an_empty_list(store, keys):
    assert live_workers(store, keys) == []


@pytest.fixture
def unfetched(store, keys):
    """Leaves replies behind as a client does that was killed while it waited."""

    def unfetched(*names):
        for name in names:
            queue = f"{name}.reply.celery.pidbox"
            store.sadd(keys.reply_queues(), f"{name}\x06\x16\x06\x16{queue}")
            store.lpush(keys.queue(queue, 0), "pong")
        return [keys.queue(f"{name}.reply.celery.pidbox", 0) for name in names]

    return unfetched


def test_replies_nobody_fetched_get_an_expiry_once(store, keys, unfetched):
    queues = unfetched("a", "b")
    assert expire_replies(store, keys) == 2
    assert all(0 < store.ttl(queue) <= housekeeping.REPLY_KEPT_S for queue in queues)
    assert expire_replies(store, keys) == 0


def test_a_sweep_of_replies_is_bounded_and_the_next_ones_do_the_rest(
    store, keys, unfetched, monkeypatch
):
    monkeypatch.setattr(housekeeping, "REPLIES_A_TIME", 3)
    unfetched(*"abcdefgh")
    given = [expire_replies(store, keys) for _ in range(200)]
    assert max(given) <= 3
    assert sum(given) == 8
