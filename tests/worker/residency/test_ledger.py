from contextlib import contextmanager

import pytest

from worker.backends.base import Footprint
from worker.residency.ledger import SETTLE_S, Ledger, Measured
from worker.residency.memory import Bytes


class Driver:
    """Device memory whose freed bytes may show late, on a clock moved by hand."""

    def __init__(self, *, total=1000, free=1000):
        self.total, self.free = total, free
        self.now = 0.0
        self.later = []  # (when, bytes)

    def __call__(self):
        shown = sum(size for when, size in self.later if when <= self.now)
        return Bytes(self.total, self.free + shown)

    def sleep(self, seconds):
        self.now += seconds

    def ledger(self, **given):
        given = {"residue_bytes": 0, **given}
        return Ledger(device=self, clock=lambda: self.now, sleep=self.sleep, **given)


def test_what_was_never_seen_is_unknown():
    assert Ledger()["a"] == Measured()


def test_each_tier_is_remembered_after_the_model_has_left_it():
    ledger = Ledger()
    ledger.saw("a", Footprint(host_bytes=50))
    ledger.saw("a", Footprint(device_bytes=60))
    assert (ledger["a"].host_bytes, ledger["a"].device_bytes) == (50, 60)


def test_the_worst_batch_is_remembered():
    ledger = Ledger()
    for peak in (10, 30, 20):
        ledger.ran("a", peak_batch_bytes=peak)
    assert ledger["a"].peak_batch_bytes == 30


def test_alone_a_model_may_take_all_that_is_free():
    ledger = Driver(free=100).ledger()
    assert ledger.shortfall("a", 100, resident=[]) == 0
    assert ledger.shortfall("a", 101, resident=[]) == 1


def test_with_others_resident_a_fifth_of_what_is_free_stays_free():
    ledger = Driver(free=100).ledger(headroom=0.2)
    assert ledger.shortfall("a", 80, resident=["b"]) == 0
    assert ledger.shortfall("a", 100, resident=["b"]) == 20


def test_a_model_needs_its_batches_too():
    ledger = Driver(free=100).ledger()
    ledger.ran("a", peak_batch_bytes=30)
    assert ledger.shortfall("a", 80, resident=[]) == 10


@pytest.mark.parametrize(("kept", "missing"), [(0, 10), (20, 0), (99, 0)])
def test_batches_take_first_what_this_process_holds_for_them(kept, missing):
    ledger = Driver(free=100).ledger(kept=lambda: kept)
    ledger.ran("a", peak_batch_bytes=30)
    assert ledger.shortfall("a", 80, resident=[]) == missing


def test_what_is_held_for_batches_is_no_room_for_weights():
    ledger = Driver(free=100).ledger(kept=lambda: 99)
    assert ledger.shortfall("a", 110, resident=[]) == 10


def test_the_ledger_counts_what_the_driver_does_not_show():
    driver = Driver(total=1000, free=1000)  # as if the residents' pages were not touched yet
    ledger = driver.ledger(headroom=0.0)
    ledger.saw("b", Footprint(device_bytes=700))
    ledger.ran("b", peak_batch_bytes=250)
    assert ledger.shortfall("a", 100, resident=["b"]) == 50


def test_of_what_the_ledger_takes_for_free_a_part_stays_free_as_well():
    ledger = Driver(total=1000, free=1000).ledger(headroom=0.2)
    ledger.saw("b", Footprint(device_bytes=500))
    assert ledger.shortfall("a", 401, resident=["b"]) == 1


def test_alone_a_model_may_take_the_headroom_too():
    assert Driver(free=100).ledger(headroom=0.2).shortfall("a", 100, resident=[]) == 0


def test_the_driver_counts_what_the_ledger_does_not_know():
    ledger = Driver(total=1000, free=40).ledger(headroom=0.0)
    assert ledger.shortfall("a", 100, resident=[]) == 60


def test_without_a_probe_everything_fits():
    assert Ledger().shortfall("a", 2**60, resident=["b"]) == 0
    assert Ledger().host_shortfall(2**60) == 0


def test_host_memory_is_asked_before_a_load():
    ledger = Ledger(host=lambda: Bytes(100, 60))
    assert (ledger.host_shortfall(60), ledger.host_shortfall(70)) == (0, 10)


def test_an_unload_is_over_when_its_memory_is_seen_free():
    driver = Driver(free=100)
    ledger = driver.ledger()
    with ledger.coming_back("a", 50):
        driver.later = [(0.0, 20), (1.0, 30)]
    assert driver.now == 1.0
    assert ledger["a"].residue_bytes == 0


def test_what_does_not_come_back_is_waited_for_up_to_a_bound_and_noted():
    driver = Driver(free=100)
    ledger = driver.ledger()
    with ledger.coming_back("a", 50):
        driver.later = [(0.0, 20)]
    assert driver.now == SETTLE_S
    assert ledger["a"].residue_bytes == ledger.residue_bytes == 30


def test_a_residue_below_the_bound_is_not_worth_a_wait():
    driver = Driver(free=100)
    ledger = driver.ledger(residue_bytes=30)
    with ledger.coming_back("a", 50):
        driver.later = [(0.0, 20)]
    assert driver.now == 0.0
    assert ledger.residue_bytes == 0


def test_a_later_unload_that_gives_all_back_clears_the_residue():
    driver = Driver(free=100)
    ledger = driver.ledger()
    with ledger.coming_back("a", 50):
        pass
    assert ledger.residue_bytes == 50
    with ledger.coming_back("a", 50):
        driver.later = [(0.0, 50)]
    assert ledger.residue_bytes == 0


def test_a_reservation_is_handed_on():
    held = []

    @contextmanager
    def reserve(size):
        held.append(size)
        yield
        held.clear()

    with Ledger(reserve=reserve).reserve(70):
        assert held == [70]
    assert held == []


def test_an_unload_that_breaks_is_not_waited_for():
    driver = Driver(free=100)
    with pytest.raises(RuntimeError), driver.ledger().coming_back("a", 50):
        raise RuntimeError
    assert driver.now == 0.0
