import pytest

from worker.backends.base import Footprint, Tier
from worker.forecast import adapted_timeout, likely_next, preload
from worker.memory import Bytes, Pressure
from worker.sweeps import Move, SlotView, View

PLENTY = Bytes(1000, 1000)
WEIGHTS = {name: Footprint(device_bytes=100, host_bytes=100) for name in "abc"}
BOUNDS = {"fixed_s": 600, "least_s": 60, "most_s": 3600}


def slot(model_id, tier, *, busy=False, idle_s=0.0):
    return SlotView(
        model_id=model_id,
        is_vision=True,
        tier=tier,
        busy=busy,
        leases=0,
        footprint=Footprint(),
        used_at=-idle_s,
        uses=1,
        loaded_at=0.0,
        load_s=0.0,
        keep_alive_s=None,
        pinned=False,
        next_out=False,
        traits=None,
    )


def view(*slots, **given):
    return View(slots, now=0.0, **{"device": PLENTY, "host": PLENTY, **given})


def warmed(seen, *, slots=2, likely=None, weights=WEIGHTS):
    moves = preload(seen, slots=slots, likely=likely or {"a": 0.3, "b": 0.7}, weights=weights)
    return [(move.model_id, move.to) for move in moves]


def test_a_models_share_of_this_hour_and_the_next_is_its_likelihood():
    uses = {"a": [3, 0, 9], "b": [0, 1, 9], "c": [0, 0, 9]}
    assert likely_next(uses, hour=0) == {"a": 0.75, "b": 0.25}


def test_the_hour_after_the_last_is_the_first():
    assert likely_next({"a": [3, 0, 0]}, hour=2) == {"a": 1.0}


def test_a_few_uses_are_no_habit():
    assert likely_next({"a": [1, 1, 0]}, hour=0) == {}


def test_the_likeliest_model_is_warmed_up_and_says_why():
    moves = preload(view(), slots=2, likely={"a": 0.3, "b": 0.7}, weights=WEIGHTS)
    assert moves == [Move("b", Tier.DEVICE, "70% of the uses at this hour")]


def test_the_next_likely_has_its_turn_once_the_likeliest_is_there():
    assert warmed(view(slot("b", Tier.DEVICE))) == [("a", Tier.DEVICE)]


def test_without_a_free_slot_it_waits_in_host_memory():
    assert warmed(view(slot("c", Tier.DEVICE)), slots=1) == [("b", Tier.HOST)]


def test_without_room_on_the_device_it_waits_in_host_memory():
    assert warmed(view(device=Bytes(1000, 390))) == [("b", Tier.HOST)]


def test_without_an_accelerator_there_is_no_waiting_room():
    full = view(slot("c", Tier.DEVICE), unified=True, device=None)
    assert warmed(full, slots=1) == []
    assert warmed(view(unified=True, device=None)) == [("b", Tier.DEVICE)]


def test_a_model_that_idled_in_host_memory_for_hours_is_lifted():
    assert warmed(view(slot("b", Tier.HOST, idle_s=3601))) == [("b", Tier.DEVICE)]


def test_a_model_that_was_just_sent_down_is_left_alone():
    assert warmed(view(slot("b", Tier.HOST, idle_s=700)), likely={"b": 1.0}) == []


@pytest.mark.parametrize(
    "seen",
    [
        view(slot("c", Tier.DEVICE, busy=True)),
        view(pressure=Pressure.ELEVATED),
        view(host=Bytes(1000, 390)),
    ],
)
def test_a_busy_worker_or_a_full_memory_is_left_alone(seen):
    assert warmed(seen) == []


def test_what_nobody_has_weighed_is_left_alone():
    assert warmed(view(), weights={}) == []


def test_a_rare_guest_is_not_warmed_up():
    assert warmed(view(), likely={"a": 0.19}) == []


def test_a_model_that_always_comes_back_after_eleven_minutes_is_kept_for_twelve():
    timeout_s = adapted_timeout([660] * 5, **BOUNDS)
    assert 660 < timeout_s < 740


def test_the_pauses_within_a_burst_do_not_shorten_the_timeout():
    assert adapted_timeout([0.01] * 50 + [660] * 5, **BOUNDS) > 660


def test_a_model_that_stays_away_for_hours_is_let_go_early():
    assert adapted_timeout([4 * 3600] * 5, **BOUNDS) == 60


def test_too_few_pauses_change_nothing():
    assert adapted_timeout([660] * 4, **BOUNDS) == 600


@pytest.mark.parametrize("pauses", [[1.0] * 9, [3500.0] * 9, [3600.0] * 9, [1e9] * 9])
def test_the_bounds_hold(pauses):
    assert 60 <= adapted_timeout(pauses, **BOUNDS) <= 3600
