"""Arrivals and their summary; nothing here waits for a clock."""

import asyncio
import json
from math import inf

import pytest

from api_client.wire.errors import Expired
from benchmarks.open_loop import Request, arrivals, level, offer, recovered_s
from benchmarks.plot import Panel, points
from benchmarks.report import Report


def test_arrivals_repeat_from_their_seed_and_keep_their_rate() -> None:
    moments = arrivals(50.0, 100.0, seed="a")
    assert moments == arrivals(50.0, 100.0, seed="a") != arrivals(50.0, 100.0, seed="b")
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert moments[-1] < 100
    assert len(moments) == pytest.approx(5000, rel=0.05)


def test_a_level_counts_what_was_sent_and_what_was_answered_in_its_window() -> None:
    requests = [
        Request(0.5, 0.6),  # before
        Request(0.9, 1.5),  # sent before, answered within
        Request(1.0, 1.2),
        Request(1.5, 2.5, code="expired"),
        Request(2.9, 3.5),  # answered after
    ]
    found = level(requests, since=1.0, until=3.0, items=4)
    assert (found.offered, found.goodput) == (6.0, 4.0)
    assert found.p50_ms == pytest.approx(400)
    assert found.p99_ms == pytest.approx(600)


def test_a_level_without_answers_has_no_latency() -> None:
    found = level([Request(1.0, 2.0, code="expired")], since=0.0, until=2.0, items=1)
    assert (found.goodput, found.p50_ms, found.p99_ms) == (0.0, None, None)


def test_recovered_is_when_the_first_of_three_good_answers_was_due() -> None:
    slow, fast = 0.5, 0.01
    spans = [slow, fast, fast, slow, fast, fast, fast, slow]
    probes = [Request(at, at + span) for at, span in enumerate(spans)]
    assert recovered_s(probes, bound_ms=100) == 4
    assert recovered_s(probes[:6], bound_ms=100) == inf
    refused = [Request(0, 0.01, code="expired"), *probes[4:7]]
    assert recovered_s(refused, bound_ms=100) == 4


def test_every_request_ends_as_what_it_was() -> None:
    async def refuse() -> None:
        raise Expired("too late")

    async def break_down() -> None:
        raise ZeroDivisionError

    async def answer() -> None: ...

    async def hang() -> None:
        await asyncio.Event().wait()

    calls = [(0.0, refuse), (0.0, break_down), (0.0, answer), (0.0, hang)]
    ended = asyncio.run(offer(calls, give_up_s=0.05))
    assert [(r.code, r.typed, r.retryable) for r in ended] == [
        ("expired", True, True),
        ("ZeroDivisionError", False, True),
        ("", True, True),
        ("unanswered", False, True),
    ]


def test_curves_stand_in_the_line_and_a_gap_stays_a_gap() -> None:
    rows = [{"x": 1.0, "y": 12.3456}, {"x": 4.0, "y": None}]
    line = json.loads(Report("load-test", seconds=1.0, curves={"some": rows}).line())
    assert line["curves"] == {"some": [{"x": 1.0, "y": 12.35}, {"x": 4.0, "y": None}]}
    panel = Panel("", rows, x="x", ys=["y"], level=24.6912, level_name="")
    assert points(panel, "y") == [(0.25, 0.5)]
