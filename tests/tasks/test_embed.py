import math
import time

import pytest

from api_client.wire.messages import EmbedBatch
from tasks import embed


@pytest.mark.parametrize(("left_s", "patience_s"), [(30.0, 29.0), (1.0, 0.5), (-9.0, 0.0)])
def test_a_model_is_waited_for_as_long_as_its_caller_is_there(monkeypatch, left_s, patience_s):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    request = EmbedBatch(texts=("a",), deadline=1e9 + left_s)
    assert embed._patience_s(request) == pytest.approx(patience_s)


def test_a_caller_without_a_deadline_waits_as_long_as_the_settings_say():
    assert embed._patience_s(EmbedBatch(texts=("a",))) == math.inf
