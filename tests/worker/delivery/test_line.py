from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import redis

from worker.delivery.line import Line, Lines


@pytest.fixture
def line(store):
    return Line(store.connection_pool)


def cut(url):
    """As when Redis was restarted: every connection is lost but the one that says so."""
    with redis.Redis.from_url(url) as other:
        other.client_kill_filter(_type="normal", skipme=True)


def test_replies_are_heard_in_the_order_of_what_was_told(line, keys):
    line.tell(("RPUSH", keys.answer("a"), b"frame"), ("LLEN", keys.answer("a")))
    line.tell(("LPOP", keys.answer("a")))
    assert line.hear() == [1, 1, b"frame"]
    assert line.hear() == []


def test_after_a_refusal_the_next_reply_is_the_next_commands(line, keys):
    line.tell(("HGET", keys.workers, "a"), ("SADD", keys.workers, "a"), ("HGET", keys.workers, "a"))
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        line.hear()
    line.tell(("SCARD", keys.workers))
    assert line.hear() == [1]


def test_what_is_asked_over_a_lost_line_is_asked_again(valkey_of_my_own, keys):
    with redis.Redis.from_url(valkey_of_my_own.url) as client:
        lines = Lines(client)
        assert lines.ask("SADD", keys.workers, "a") == 1
        cut(valkey_of_my_own.url)
        assert lines.ask("SADD", keys.workers, "b") == 1
        cut(valkey_of_my_own.url)
        lines.tell("SADD", keys.workers, "c")  # may be lost with the line
        assert lines.ask("SISMEMBER", keys.workers, "b") == 1


def test_a_line_that_was_long_silent_is_made_anew_unless_a_reply_is_on_its_way(line, monkeypatch):
    line.tell(("CLIENT", "ID"))
    monkeypatch.setattr("worker.delivery.line.FRESH_S", 0.0)
    line.tell(("CLIENT", "ID"))
    first, same = line.hear()
    line.tell(("CLIENT", "ID"))
    (other,) = line.hear()
    assert first == same != other


def test_who_hears_nothing_asks_elsewhere_soon(valkey_of_my_own, keys, monkeypatch):
    monkeypatch.setattr("worker.delivery.line.HEARD_S", 0.2)
    with redis.Redis.from_url(valkey_of_my_own.url) as client:
        line, lines = Line(client.connection_pool), Lines(client)
        line.tell(("SADD", keys.workers, "a"))
        assert line.hear() == [lines.ask("SISMEMBER", keys.workers, "a")]
        client.client_pause(1000)
        line.tell(("SADD", keys.workers, "b"))
        with pytest.raises(redis.TimeoutError):
            line.hear()
        assert lines.ask("SISMEMBER", keys.workers, "a") == 1  # once the pause is over


def test_each_thread_hears_its_own_replies(store, keys):
    lines, together = Lines(store), Barrier(4)

    def count(name):
        together.wait()
        for _ in range(200):
            lines.tell("HINCRBY", keys.current, name, 1)
        return lines.ask("HGET", keys.current, name)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(count, "abcd")) == [b"200"] * 4
