from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from threading import Event

import pytest
import redis

from api_client.wire.errors import OutOfMemory
from worker.residency.reservation import Reservations


@pytest.fixture
def process(store, keys, clock):
    """One of the processes that share a device of which so much is free."""

    def process(*, free=None, sleep=lambda seconds: None):
        return Reservations(
            store, keys, device="GPU-1", ttl_s=30, clock=clock, free_bytes=lambda: free, sleep=sleep
        )

    return process


def test_a_neighbour_sees_what_is_held_until_the_block_ends(process):
    one, other = process(), process()
    with one.reserve(100), one.reserve(20):
        assert other.of_others() == 120
        assert one.of_others() == 0
    assert other.of_others() == 0


def test_of_two_who_want_the_same_room_the_later_one_is_refused(process):
    one, other = process(free=150), process(free=150)
    with one.reserve(100):
        with pytest.raises(OutOfMemory, match="100 are promised"), other.reserve(100):
            pass
        with other.reserve(50):
            pass
    with other.reserve(100):
        pass


def test_what_a_neighbour_promised_and_has_taken_is_not_missed_twice(process):
    with ExitStack() as lift:
        lift.enter_context(process().reserve(100))
        other = process(free=150, sleep=lambda seconds: lift.close())  # the 100 are gone from these
        with pytest.raises(OutOfMemory), other.reserve(151):
            pass
        with other.reserve(100):
            assert other.of_others() == 0


def test_who_waits_for_another_is_in_nobodys_way_meanwhile(process):
    promised = []
    with process().reserve(100):
        other = process(free=150, sleep=lambda seconds: promised.append(process().of_others()))
        with pytest.raises(OutOfMemory), other.reserve(100):
            pass
    assert set(promised) == {100}


def test_who_has_no_neighbour_may_try_for_more_than_the_driver_shows_as_free(process):
    with process(free=50).reserve(100):
        pass


def test_beside_a_neighbour_a_lift_goes_on_where_nobody_can_tell_what_is_free(process):
    with process().reserve(100), process(free=None).reserve(100):
        pass


def test_two_who_wait_for_a_third_do_not_come_back_at_the_same_time(process):
    pauses = []
    with process().reserve(100):
        for _ in range(2):
            with pytest.raises(OutOfMemory), process(free=150, sleep=pauses.append).reserve(100):
                pass
    assert len(set(pauses)) == len(pauses) > 2


@pytest.mark.parametrize("row", ["rubbish", "7", "[1]", '["a", "b"]', "[NaN, 1e9]", "\xff"])
def test_what_is_no_reservation_counts_for_nothing_and_goes(process, store, keys, row):
    one, other = process(free=150), process(free=150)
    store.hset(keys.reserved("GPU-1"), "whoever", row.encode("latin-1"))
    with one.reserve(100):
        assert other.of_others() == 100
        assert not store.hexists(keys.reserved("GPU-1"), "whoever")


def test_the_key_of_a_machine_that_never_comes_back_goes(process, store, keys):
    with process().reserve(100):
        assert 0 < store.ttl(keys.reserved("GPU-1")) <= 30


def test_a_renewal_that_is_under_way_when_the_block_ends_brings_nothing_back(process, monkeypatch):
    one, other = process(), process()
    write, begun, go_on = one._write, Event(), Event()

    def slowly(rows):
        begun.set()
        assert go_on.wait(20)
        write(rows)

    with ThreadPoolExecutor() as pool:
        with ExitStack() as held:
            held.enter_context(one.reserve(100))
            monkeypatch.setattr(one, "_write", slowly)
            renewing = pool.submit(one.renew)
            assert begun.wait(20)
            ending = pool.submit(held.pop_all().close)
        wait([ending], timeout=0.1)  # it does, unless it waits for the renewal
        go_on.set()
        renewing.result(20)
        ending.result(20)
    assert other.of_others() == 0


def test_what_was_given_back_while_redis_was_away_is_free_once_it_is_back(
    process, store, monkeypatch
):
    one, other = process(), process()

    def away(*_):
        raise redis.ConnectionError("away")

    with monkeypatch.context() as patch, one.reserve(100):
        patch.setattr(store, "hdel", away)
    assert other.of_others() == 100
    one.renew()
    assert other.of_others() == 0


def test_a_block_that_fails_gives_its_bytes_back(process):
    one, other = process(), process()
    with pytest.raises(ZeroDivisionError), one.reserve(100):
        raise ZeroDivisionError
    assert other.of_others() == 0


def test_who_does_not_renew_is_taken_for_dead_and_struck_off(process, clock, store, keys):
    one, other = process(), process()
    with one.reserve(100):
        clock.now += 29
        one.renew()
        clock.now += 29
        assert other.of_others() == 100
        clock.now += 2
        assert other.of_others() == 0
        assert store.hlen(keys.reserved("GPU-1")) == 0


def test_whoever_is_dead_does_not_come_to_life_when_the_clock_is_set_back(process, clock):
    one, other = process(), process()
    with one.reserve(100):
        clock.now -= 500
        assert other.of_others() == 0
        one.renew()
        assert other.of_others() == 100


def test_with_nothing_to_say_nobody_complains_of_redis(process, caplog):
    one = process()
    one.renew()
    assert one.of_others() == 0
    assert caplog.text == ""


def test_without_redis_a_load_goes_on_by_the_drivers_figures_alone(keys):
    nobody = redis.Redis(port=1, retry=None)
    with nobody, Reservations(nobody, keys, device="GPU-1").reserve(100):
        pass
