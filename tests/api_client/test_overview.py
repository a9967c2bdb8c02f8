"""The picture of the fleet on a terminal."""

import pytest

from api_client import overview
from api_client.status import Depth, Fleet, Worker
from api_client.wire.messages import Event, EventKind, ModelStatus

NOW = 1_800_000_000.0


def worker(name, **fields):
    told = {"device": "cuda:0", "pid": 1, "started_at": NOW, "beat_at": NOW, "state": "ready"}
    return Worker(name=name, **told, **fields)


@pytest.fixture
def shown(capsys, monkeypatch):
    """What is printed of a fleet on a wide terminal, line by line."""
    monkeypatch.setenv("COLUMNS", "200")

    def shown(fleet):
        overview.show(fleet)
        return capsys.readouterr().out.splitlines()

    return shown


def test_names_and_reasons_are_shown_as_they_are(shown):
    model = ModelStatus(
        id="own/[copy]", state="device", last_used=NOW, vram_timeout_s=9, ram_timeout_s=9
    )
    refused = Event(
        kind=EventKind.REFUSED, model="own/[copy]", worker="cpu0@a", reason="no [/b]", asked_by=""
    )
    fleet = Fleet(
        workers=(worker("cpu0@a", held=(model,)),), current="own/[copy]", events=(refused,)
    )
    drawn = "\n".join(shown(fleet))
    assert "current model: own/[copy]" in drawn
    assert drawn.count("own/[copy]") == 3
    assert "no [/b]" in drawn


@pytest.mark.parametrize("workers", [(), (worker("cpu0@a"),)])
def test_what_is_none_of_ours_is_told_below(shown, workers):
    fleet = Fleet(workers=workers, strange=("'clip:worker:x@a': what Redis holds",))
    assert shown(fleet)[-1].strip() == "'clip:worker:x@a': what Redis holds"


def test_what_troubles_a_worker_tells_the_terminal_nothing(shown):
    fleet = Fleet(workers=(worker("cpu0@a", trouble="the server said \x1b[2J"),))
    drawn = "\n".join(shown(fleet))
    assert "\x1b" not in drawn
    assert "the server said \\x1b[2J" in drawn


def test_a_worker_is_shown_what_waits_for_it_and_not_for_its_namesakes(shown):
    depths = {"embed": 1, "control": 1, "cpu0@node1.dq2": 2, "cpu0@node10.dq2": 40}
    fleet = Fleet(
        workers=(worker("cpu0@node1"), worker("cpu0@node10")),
        depths={queue: Depth(interactive=n - 1, bulk=1) for queue, n in depths.items()},
    )
    counts = [line.split("\u2502")[6].strip() for line in shown(fleet) if "\u2502 cpu0@" in line]
    assert counts == ["4", "42"]


@pytest.mark.parametrize(
    ("fields", "memory", "pressure", "swept"),
    [
        ({}, "1.5 of 16.0 GB", "normal", "never"),
        (
            {
                "device_total": 24_000_000_000,
                "device_free": 21_000_000_000,
                "pressure": "high",
                "last_sweep_at": NOW - 180,
            },
            "3.0 of 24.0 GB",
            "high",
            "3 min ago",
        ),
    ],
)
def test_a_worker_tells_of_its_devices_memory_if_that_is_not_the_hosts(
    shown, fields, memory, pressure, swept
):
    host = {"host_total": 16_000_000_000, "host_free": 14_500_000_000}
    [line] = [
        one for one in shown(Fleet(workers=(worker("gpu0@a", **host, **fields),))) if "gpu0@" in one
    ]
    cells = [cell.strip() for cell in line.split("\u2502")[1:-1]]
    assert cells == ["gpu0@a", "cuda:0", "ready", memory, pressure, "0", swept]


def test_what_stays_is_said_not_to_step_down(shown):
    told = {"state": "device", "last_used": NOW, "vram_timeout_s": 9, "ram_timeout_s": 9}
    held = (
        ModelStatus(id="pinned", pinned=True, **told),
        ModelStatus(id="used", leases=2, **told),
    )
    drawn = shown(Fleet(workers=(worker("gpu0@a", held=held),)))
    cells = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in drawn]
    assert ["pinned", "", "0", "", "pinned"] in cells
    assert ["used", "", "0", "", ""] in cells


def test_the_id_of_a_model_in_memory_stays_on_one_line(shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    long = ModelStatus(
        id="ViT-B-32/laion2b_s34b_b79k",
        state="device",
        last_used=NOW,
        vram_timeout_s=9,
        ram_timeout_s=9,
    )
    assert any(long.id in line for line in shown(Fleet(workers=(worker("cpu0@a", held=(long,)),))))


def test_nothing_said_of_a_model_is_folded_on_a_narrow_terminal(shown, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    model = ModelStatus(
        id="ViT-B-32/openai",
        state="device",
        last_used=NOW - 180,
        usage_count=12_345,
        device_bytes=150_000_000,
        host_bytes=2_000_000,
        vram_timeout_s=1800,
        ram_timeout_s=1800,
        next_out=True,
    )
    drawn = shown(Fleet(workers=(worker("gpu0@somewhere", held=(model,)),)))
    above, below = (line.split("\u2502") for line in drawn[-3:-1])
    assert [cell.strip() for cell in above[1:-1]] == [
        "gpu0@somewhere",
        "device",
        "0",
        "152",
        "3 min ago",
    ]
    assert [cell.strip() for cell in below[1:-1]] == [
        "ViT-B-32/openai",
        "out",
        "12345",
        "",
        "in 27 min",
    ]
