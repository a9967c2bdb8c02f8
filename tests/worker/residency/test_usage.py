from datetime import UTC, datetime

import pytest

from worker.residency import usage
from worker.residency.sweeps import Timeouts
from worker.residency.usage import Use, adapted, hour_of_week


def test_the_week_begins_on_monday_at_midnight_utc():
    assert hour_of_week(datetime(2026, 11, 16, tzinfo=UTC).timestamp()) == 0
    assert hour_of_week(datetime(2026, 11, 15, 23, 59, tzinfo=UTC).timestamp()) == 167


def test_pauses_are_kept_between_uses_the_newest_ones():
    use = Use()
    for at in range(0, 100 * 60, 60):
        use.add(at)
    assert (use.count, use.last_used) == (100, 99 * 60)
    assert list(use.pauses_s) == [60.0] * usage.PAUSES_KEPT


def test_short_pauses_belong_to_one_visit_and_a_clock_set_back_makes_none():
    use = Use()
    use.add(100)
    use.add(50)
    use.add(109)
    assert list(use.pauses_s) == []


def test_histograms_add_up_over_processes_and_are_forgotten_after_two_months(store, keys):
    for _ in range(2):
        with store.pipeline() as pipe:
            usage.record(pipe, keys, {("m", 0): 2, ("m", 167): 1})
            pipe.execute()
    counts = usage.histogram(store, keys, "m")
    assert (counts[0], counts[1], counts[167], len(counts)) == (4, 0, 2, 168)
    assert 0 < store.ttl(keys.usage("m")) <= usage.KEPT_S


def test_a_model_that_always_comes_back_after_eleven_minutes_is_kept_for_them():
    learned = adapted(Timeouts(600, 1800), [660.0] * 5, most=3)
    assert learned == Timeouts(pytest.approx(726), 1800)


def test_nothing_is_learned_from_a_few_pauses():
    assert adapted(Timeouts(600, 1800), [660.0] * 3, most=3) == Timeouts(600, 1800)


def test_a_model_that_stays_away_longer_than_allowed_is_not_waited_for():
    assert adapted(Timeouts(600, 1800), [7200.0] * 9, most=3) == Timeouts(600, 1800)
    assert adapted(Timeouts(600, 1800), [2000.0] * 9, most=3) == Timeouts(600, pytest.approx(2200))


def test_one_long_holiday_among_many_pauses_does_not_count():
    pauses = [660.0] * 19 + [90_000.0]
    assert adapted(Timeouts(600, 1800), pauses, most=3).vram_s == pytest.approx(726)


def week(**uses):
    """A histogram: `h9=5` says five uses on Monday from nine to ten."""
    return tuple(uses.get(f"h{hour}", 0) for hour in range(usage.HOURS))


MONDAY_8H50 = datetime(2026, 11, 16, 8, 50, tzinfo=UTC).timestamp()


def test_what_this_hour_and_the_one_about_to_begin_have_seen_most_of_is_wanted_first():
    histograms = {
        "morning": week(h8=3, h9=9),
        "rush": week(h9=40),
        "evening": week(h20=100),
        "rare": week(h8=2),
        "never": week(),
    }
    assert usage.wanted_next(histograms, at=MONDAY_8H50) == ["rush", "morning"]


def test_the_same_hour_of_other_days_counts_for_a_seventh():
    every_day_but_monday = {f"h{day * 24 + 9}": 12 for day in range(1, 7)}
    assert usage.wanted_next({"m": week(**every_day_but_monday)}, at=MONDAY_8H50) == ["m"]
    tuesday_only = {"h33": 12}
    assert usage.wanted_next({"m": week(**tuesday_only)}, at=MONDAY_8H50) == []


def test_sunday_night_looks_forward_to_monday():
    sunday_23h = datetime(2026, 11, 15, 23, 50, tzinfo=UTC).timestamp()
    assert usage.wanted_next({"m": week(h0=20)}, at=sunday_23h) == ["m"]


def test_an_hour_that_is_far_off_is_not_looked_at():
    monday_8h30 = MONDAY_8H50 - 20 * 60
    assert usage.wanted_next({"m": week(h9=40)}, at=monday_8h30) == []
