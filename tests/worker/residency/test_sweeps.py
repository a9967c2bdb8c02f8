from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_client.status import Worker, step_down
from api_client.wire.messages import ModelStatus
from worker.backends.base import Footprint, Tier
from worker.residency.memory import Bytes, Pressure
from worker.residency.sweeps import (
    Move,
    SlotView,
    Timeouts,
    View,
    idle_in_ram,
    idle_in_vram,
    kept_alive,
    preload,
    sweep,
    under_pressure,
)

NOW = 10_000.0
A_SLOT = SlotView(
    model_id="a",
    is_vision=True,
    tier=Tier.DEVICE,
    busy=False,
    leases=0,
    footprint=Footprint(),
    used_at=NOW,
    loaded_at=0.0,
    load_s=0.0,
    keep_alive_s=None,
    pinned=False,
    next_out=False,
    traits=None,
)


def slot(model_id="a", *, idle_s=0.0, size=0, tier=Tier.DEVICE, **changes):
    footprint = Footprint(device_bytes=size) if tier is Tier.DEVICE else Footprint(host_bytes=size)
    used_at = NOW - idle_s
    given = {"footprint": footprint, **changes}
    return replace(A_SLOT, model_id=model_id, tier=tier, used_at=used_at, **given)


def view(*slots, **given):
    return View(slots, NOW, **given)


def ids(moves):
    return [move.model_id for move in moves]


def test_idle_in_vram_goes_down_one_tier_and_says_why():
    moves = idle_in_vram(view(slot("old", idle_s=612), slot("new", idle_s=600)))
    assert moves == [Move("old", Tier.HOST, "idle in VRAM for 612 s")]


def test_idle_in_ram_goes_for_good():
    waiting = [slot("old", idle_s=1801, tier=Tier.HOST), slot("new", idle_s=9, tier=Tier.HOST)]
    moves = idle_in_ram(view(*waiting, slot("device", idle_s=1801)))
    assert moves == [Move("old", None, "idle in RAM for 1801 s")]


def test_without_an_accelerator_only_the_ram_timeout_applies():
    seen = view(slot("a", idle_s=700), slot("b", idle_s=1801), unified=True)
    assert idle_in_vram(seen) == []
    assert ids(idle_in_ram(seen)) == ["b"]


def test_a_model_may_have_timeouts_of_its_own():
    seen = view(slot("a", idle_s=700), slot("b", idle_s=700), own={"a": Timeouts(vram_s=800)})
    assert ids(idle_in_vram(seen)) == ["b"]


@pytest.mark.parametrize("shield", [{"busy": True}, {"pinned": True}])
def test_a_busy_or_pinned_model_stays_whatever_happens(shield):
    full = Bytes(100, 0)
    seen = view(
        slot(idle_s=9999, keep_alive_s=1, **shield),
        slot("b", idle_s=9999, tier=Tier.HOST, **shield),
        device=full,
        host=full,
        pressure=Pressure.CRITICAL,
    )
    assert sweep(seen) == []


def test_keep_alive_stands_in_for_the_timeouts():
    seen = view(
        slot("stays", idle_s=9999, keep_alive_s=-1),
        slot("stays at rest", idle_s=9999, keep_alive_s=-1, tier=Tier.HOST),
        slot("long", idle_s=9999, keep_alive_s=10_000),
        slot("short", idle_s=11, keep_alive_s=10, tier=Tier.HOST),
        slot("not at all", idle_s=0.5, keep_alive_s=0, tier=Tier.HOST),
    )
    assert idle_in_vram(seen) == idle_in_ram(seen) == []
    assert ids(kept_alive(seen)) == ["short", "not at all"]


def test_without_pressure_nothing_goes():
    assert under_pressure(view(slot(idle_s=999), device=Bytes(100, 20), host=None)) == []


def test_under_pressure_the_longest_idle_go_until_it_is_over():
    seen = view(
        slot("b", idle_s=200, size=20),
        slot("a", idle_s=300, size=15),
        slot("c", idle_s=100, size=20),
        slot("fresh", idle_s=59, size=20),
        device=Bytes(100, 0),
        host=Bytes(100, 50),
        pressure=Pressure.HIGH,
    )
    moves = under_pressure(seen)
    assert [(move.model_id, move.to) for move in moves] == [("a", Tier.HOST), ("b", Tier.HOST)]
    assert moves[0].reason == "high pressure: 100% of VRAM used, idle for 300 s"


def test_under_pressure_those_used_a_moment_ago_stay():
    seen = view(slot(idle_s=60, size=90), device=Bytes(100, 0), pressure=Pressure.HIGH)
    assert under_pressure(seen) == []


def test_at_critical_pressure_all_idle_ones_go():
    seen = view(
        slot("a", idle_s=2, size=90),
        slot("b", idle_s=1, size=1),
        device=Bytes(100, 0),
        pressure=Pressure.CRITICAL,
    )
    assert ids(under_pressure(seen)) == ["a", "b"]


def test_at_critical_pressure_they_go_even_below_a_threshold_that_lies_above():
    full = {"pressure": Pressure.CRITICAL, "pressure_threshold": 0.98}
    assert ids(under_pressure(view(slot(), device=Bytes(100, 4), **full))) == ["a"]
    assert under_pressure(view(slot(), device=Bytes(100, 6), **full)) == []


def test_a_memory_that_is_not_full_is_left_alone_while_another_is():
    seen = view(
        slot("a", idle_s=999, size=50),
        slot("b", idle_s=999, size=50, tier=Tier.HOST),
        device=Bytes(100, 50),
        host=Bytes(100, 0),
        pressure=Pressure.CRITICAL,
    )
    assert under_pressure(seen) == [
        Move("b", None, "critical pressure: 100% of RAM used, idle for 999 s")
    ]


def test_with_both_memories_full_nothing_is_moved_from_one_into_the_other():
    full = Bytes(100, 0)
    seen = view(slot(idle_s=999, size=50), device=full, host=full, pressure=Pressure.HIGH)
    assert [move.to for move in under_pressure(seen)] == [None]


def test_without_an_accelerator_pressure_on_host_memory_counts():
    seen = view(
        slot("a", idle_s=999, footprint=Footprint(host_bytes=30)),
        slot("b", idle_s=998, footprint=Footprint(host_bytes=30)),
        host=Bytes(100, 0),
        unified=True,
        pressure=Pressure.HIGH,
    )
    assert ids(under_pressure(seen)) == ["a"]


def test_a_sweep_moves_each_model_once_and_remembers_when_it_was_used():
    seen = view(slot(idle_s=999, size=50), device=Bytes(100, 0), pressure=Pressure.HIGH)
    [move] = sweep(seen)
    assert move.reason.startswith("high pressure")
    assert move.used_at == NOW - 999


def test_a_sweep_finds_whatever_is_due():
    seen = view(
        slot("asked", idle_s=11, keep_alive_s=10),
        slot("on the device", idle_s=601),
        slot("at rest", idle_s=1801, tier=Tier.HOST),
    )
    assert ids(sweep(seen)) == ["asked", "on the device", "at rest"]


PLENTY = Bytes(1000, 1000)


def warmed(*slots, places=2, wanted=("a", "b"), weights="ab", **given):
    footprint = Footprint(device_bytes=100, host_bytes=100)
    seen = view(*slots, **{"device": PLENTY, "host": PLENTY, **given})
    return preload(seen, slots=places, wanted=wanted, weights=dict.fromkeys(weights, footprint))


def test_the_likeliest_model_is_brought_and_says_why():
    assert warmed() == Move("a", Tier.DEVICE, "likely to be wanted next")


@pytest.mark.parametrize("tier", [Tier.DEVICE, Tier.HOST])
def test_one_that_is_here_already_is_passed_over(tier):
    assert warmed(slot("a", tier=tier)).model_id == "b"


@pytest.mark.parametrize("given", [{"places": 1}, {"device": Bytes(1000, 390)}])
def test_without_a_place_on_the_device_it_is_brought_into_host_memory(given):
    assert warmed(slot("c"), **given).to is Tier.HOST


def test_without_an_accelerator_a_model_is_brought_to_a_free_place_or_not_at_all():
    assert warmed(slot("c"), places=1, unified=True, device=None) is None
    assert warmed(unified=True, device=None).to is Tier.DEVICE


@pytest.mark.parametrize("given", [{"pressure": Pressure.ELEVATED}, {"host": Bytes(1000, 390)}])
def test_nothing_is_brought_where_memory_is_not_plentiful(given):
    assert warmed(**given) is None


def test_nothing_is_brought_to_a_busy_worker():
    assert warmed(slot("c", busy=True)) is None


def test_what_nobody_has_weighed_is_not_brought():
    assert warmed(weights="") is None


SECONDS = st.integers(0, 50)


@given(
    st.sampled_from([Tier.DEVICE, Tier.HOST]),
    st.sampled_from([None, 0, 5, 40, -1]),
    SECONDS,
    SECONDS,
    st.booleans(),
    st.sampled_from([{}, {"pinned": True}, {"leases": 1}]),
)
def test_what_people_are_foretold_is_what_the_sweeps_do(
    tier, keep_alive_s, vram_s, ram_s, unified, shield
):
    told = {"device": "cuda:0", "pid": 1, "started_at": 0, "beat_at": 0, "state": "ready"}
    foretold = step_down(
        Worker(name="gpu0@a", device_total=0 if unified else 10, **told),
        ModelStatus(
            id="a",
            state="device" if unified else str(tier),
            last_used=NOW,
            vram_timeout_s=vram_s,
            ram_timeout_s=ram_s,
            keep_alive_s=keep_alive_s,
            **shield,
        ),
    )
    it = slot(tier=Tier.DEVICE if unified else tier, keep_alive_s=keep_alive_s, **shield)
    it = replace(it, busy=bool(it.leases))

    def goes(at):
        own = {"a": Timeouts(vram_s, ram_s)}
        return [move.to for move in sweep(View((it,), at, unified=unified, own=own))]

    if foretold is None:
        assert goes(NOW + 9999) == []
    else:
        assert goes(foretold.at - 0.5) == []
        assert goes(foretold.at + 0.5) == [Tier.HOST if foretold.to == "host" else None]
