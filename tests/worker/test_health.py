from dataclasses import replace

import pytest

from worker.datapath.pulse import Pulse
from worker.health import WEDGED_S, Health, verdict

CALM = Pulse(queued=0, active_s=0, last_forward_ok=None, calls={}, ages_s={})


@pytest.mark.parametrize("ok", [None, True])
def test_a_worker_is_ready_until_a_forward_pass_fails(ok):
    assert verdict(replace(CALM, last_forward_ok=ok)).state == "ready"


def test_a_failed_forward_pass_makes_it_broken_and_says_so():
    found = verdict(replace(CALM, last_forward_ok=False, failing=("a/b",)))
    assert found.state == "broken"
    assert "of a/b failed" in found.trouble


def test_a_model_that_fails_among_others_that_work_is_named_and_breaks_nobody():
    found = verdict(replace(CALM, last_forward_ok=True, failing=("a/b",)))
    assert (found.state, "of a/b failed" in found.trouble) == ("ready", True)


def test_what_stops_nobody_is_told_and_taken_back(caplog):
    said, wrong = [], ["the model family slow hangs in load", ""]
    health = Health(
        pulse=lambda: CALM, probe=lambda: None, say=said.append, trouble=lambda: wrong.pop(0)
    )
    health.look()
    health.look()
    assert [(found.state, found.trouble) for found in said] == [
        ("ready", "the model family slow hangs in load"),
        ("ready", ""),
    ]
    assert caplog.messages == [
        "this worker is ready, and in trouble: the model family slow hangs in load"
    ]


def test_a_forward_pass_that_never_ends_is_seen_by_its_age():
    assert verdict(replace(CALM, active_s=WEDGED_S / 2)).state == "ready"
    stuck = replace(CALM, active_s=WEDGED_S + 1, active="a/b")
    assert "forward pass of a/b" in verdict(stuck).trouble


def test_a_forward_pass_that_goes_on_never_ending_is_no_news():
    said, ages_s = [], iter((WEDGED_S + 2, WEDGED_S + 4))
    health = Health(
        pulse=lambda: replace(CALM, active_s=next(ages_s)), probe=lambda: None, say=said.append
    )
    health.look()
    health.look()
    assert len(said) == 1


def test_a_worker_that_will_end_for_a_long_pass_is_broken_by_then():
    health = Health(
        pulse=lambda: replace(CALM, active_s=11),
        probe=lambda: None,
        say=lambda _: None,
        wedged_after_s=10,
    )
    assert health.look().state == "broken"


class Device:
    """A device that works, or does not, and can be probed."""

    def __init__(self, *, works):
        self.works = works
        self.pulse = replace(CALM, last_forward_ok=False, failing=("a/b",))
        self.probes = 0
        self.said = []
        self.health = Health(pulse=lambda: self.pulse, probe=self.probe, say=self.said.append)

    def probe(self):
        self.probes += 1
        self.pulse = replace(CALM, last_forward_ok=self.works)
        if not self.works:
            raise RuntimeError("the device is on fire")


def test_a_tiny_probe_brings_a_worker_back():
    device = Device(works=True)
    assert device.health.look().state == "ready"
    assert device.probes == 1
    device.health.look()
    assert device.probes == 1


def test_it_stays_broken_while_the_probe_fails_and_says_so_once():
    device = Device(works=False)
    for _ in range(3):
        assert device.health.look().state == "broken"
    assert device.probes == 3
    assert [found.state for found in device.said] == ["broken"]
    device.works = True
    device.health.look()
    assert [found.state for found in device.said] == ["broken", "ready"]


def test_who_has_closed_says_nothing_more():
    device = Device(works=False)
    device.health.close()
    device.health.look()
    assert device.said == []


def test_a_busy_device_is_not_probed():
    device = Device(works=True)
    device.pulse = replace(device.pulse, active_s=1.0)
    device.health.look()
    assert device.probes == 0
