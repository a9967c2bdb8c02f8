"""What came of forward passes, from the passes alone."""

import numpy as np

from api_client.wire.errors import BackendFailed
from worker.datapath.pulse import Pass, Passes

ROW = np.ones(1, np.float32)


def test_of_passes_that_run_at_once_the_oldest_tells_how_long() -> None:
    passes, hanging = Passes(), Pass(10.0, "hangs")
    passes.begun(hanging)
    for start in (11.0, 12.0):
        passes.begun(Pass(start, "goes on"))
    pulse = passes.pulse([], queued=0, now=13.0)
    assert (pulse.active, pulse.active_s) == ("hangs", 3.0)


def test_a_model_fails_no_longer_once_a_pass_of_it_works() -> None:
    passes, one = Passes(), Pass(10.0, "one")
    passes.ended(one, [BackendFailed("no")], ok=False)
    passes.ended(Pass(11.0, "other"), [ROW], ok=True)
    pulse = passes.pulse([], queued=0, now=13.0)
    assert (pulse.last_forward_ok, pulse.failing) == (True, ("one",))
    passes.ended(one, [ROW], ok=True)
    assert passes.pulse([], queued=0, now=13.0).failing == ()
