from pathlib import Path

import pytest

from api_client.testing import FakeClient
from api_client.wire.errors import UnknownModel
from benchmarks import fixtures, latency


def test_no_stack_is_taken_for_a_busy_one_whose_load_has_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fixtures, "photos", lambda *_: [Path("/a.jpg")])
    monkeypatch.setattr(latency, "FILL_S", 0.0)
    with pytest.raises(UnknownModel), latency._bulk(FakeClient()):
        pass
