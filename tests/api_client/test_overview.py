"""The picture of the fleet on a terminal."""

import pytest

from api_client import overview
from api_client.status import Fleet, Worker
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
