"""Who is told at once that there is no time for them."""

from types import SimpleNamespace
from typing import Any

import pytest

from worker.datapath.pace import ENOUGH, LATELY, Pace


@pytest.fixture
def pace() -> Pace:
    return Pace(limit=lambda call: 10, wall=lambda: 1000.0)


def call(*, deadline: float | None = 1010.0, done: int = 0, parallel: int = 1) -> Any:
    """Of twenty items, two passes."""
    return SimpleNamespace(
        space="a",
        deadline=deadline,
        items=range(20),
        left=20 - done,
        traits=SimpleNamespace(parallel=parallel),
    )


def noted(pace: Pace, *seconds: float) -> Pace:
    for one in seconds:
        pace.note(call(), one)
    return pace


def test_nobody_is_judged_by_a_few_passes_that_found_everything_cold(pace: Pace) -> None:
    noted(pace, *[60.0] * (ENOUGH - 1))
    assert not pace.is_late(call(), ahead=1000)
    assert noted(pace, 60.0).is_late(call(), ahead=1000)


def test_a_stall_of_seconds_refuses_nobody(pace: Pace) -> None:
    noted(pace, *[0.5] * LATELY, *[3.0] * (LATELY // 2 - 1))
    assert not pace.is_late(call(), ahead=100)


def test_passes_that_stay_slow_are_believed(pace: Pace) -> None:
    noted(pace, *[0.5] * LATELY, *[3.0] * (LATELY // 2 + 1))
    assert pace.is_late(call(), ahead=100)


def test_whoever_has_no_deadline_is_never_late(pace: Pace) -> None:
    assert not noted(pace, *[60.0] * LATELY).is_late(call(deadline=None), ahead=1000)


def test_those_who_cannot_be_served_at_all_are_kept_if_nobody_can(pace: Pace) -> None:
    noted(pace, *[60.0] * LATELY)
    late, able = call(), call(deadline=2000.0)
    assert pace.too_late([late, able]) == [late]
    assert pace.too_late([late, late]) == []


def test_what_has_begun_goes_on_while_there_is_time_for_its_own_passes(pace: Pace) -> None:
    noted(pace, *[4.0] * LATELY)
    assert not pace.is_late(call(deadline=1013.0), ahead=0)
    assert pace.is_late(call(deadline=1011.0), ahead=0)  # two passes, and one to spare
    assert not pace.is_late(call(deadline=1005.0, done=10), ahead=0)
    assert pace.is_late(call(deadline=1003.0, done=10), ahead=0)


def test_passes_that_run_side_by_side_take_the_time_of_one(pace: Pace) -> None:
    noted(pace, *[4.0] * LATELY)
    assert not pace.is_late(call(deadline=1009.0, parallel=2), ahead=0)
    assert pace.is_late(call(deadline=1008.0, parallel=2), ahead=0)
    assert pace.is_late(call(deadline=1009.0, parallel=2), ahead=1)
