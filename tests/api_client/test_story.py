import re

import pytest

from api_client.status import Fleet, Worker
from api_client.story import span, why
from api_client.wire.messages import Event, EventKind, ModelStatus, WorkerStatus

NOW = 1_800_000_000.0


def worker(name="gpu0@a", **fields):
    told = {"device": "cuda:0", "pid": 1, "started_at": NOW, "beat_at": NOW, "state": "ready"}
    return WorkerStatus(name=name, **(told | {"device_total": 10} | fields))


def model(model_id="clip/a", **fields):
    timeouts = {"vram_timeout_s": 600, "ram_timeout_s": 1800}
    return ModelStatus(
        id=model_id, **({"state": "device", "last_used": NOW - 60} | timeouts | fields)
    )


def event(kind, model_id="clip/a", **fields):
    return Event(**({"kind": kind, "model": model_id, "worker": "gpu0@a", "reason": "r"} | fields))


def fleet_of(status, *models, events=()):
    return Fleet(workers=(Worker(**dict(status), held=models),), events=events)


def test_why_tells_where_a_model_is_who_brought_it_and_what_goes_next():
    story = (
        event(EventKind.REFUSED, at=NOW - 100),
        event(EventKind.LOADED, at=NOW - 200, model_id="clip/b"),
        event(EventKind.LIFTED, at=NOW - 300, reason="asked for", asked_by="ann"),
        event(EventKind.LOADED, at=NOW - 400),
    )
    fleet = fleet_of(worker(), model(next_out=True), events=story)
    sentences = why(fleet, "clip/a")
    assert re.fullmatch(
        r"clip/a is on the device of gpu0@a, last used 60 s ago; "
        r"lifted at 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d \(asked for, asked by ann\)\.",
        sentences[0],
    )
    assert sentences[1:] == [
        "On gpu0@a it is the next to make room for another model.",
        "Unused, it goes to host memory of gpu0@a in 9 min.",
        "Unused, it leaves gpu0@a in 29 min.",
    ]


def test_why_tells_of_each_worker_what_happened_there():
    story = (
        event(EventKind.UNLOADED, at=NOW, worker="gpu1@a", reason="full"),
        event(EventKind.LOADED, at=NOW - 200, worker="gpu1@a"),
        event(EventKind.LOADED, at=NOW - 300, reason="asked for"),
    )
    here, gone, *_ = why(fleet_of(worker(), model(), events=story), "clip/a")
    assert re.search(r"gpu0@a, last used 60 s ago; loaded at .* \(asked for\)\.", here)
    assert re.fullmatch(r"On gpu1@a unloaded at .* \(full\)\.", gone)


def test_a_model_on_its_way_there_is_not_said_to_go():
    where, _ = why(fleet_of(worker(), model(state="loading")), "clip/a")
    assert where == "clip/a is being loaded on gpu0@a."


def test_why_tells_who_goes_first():
    fleet = fleet_of(worker(), model("clip/b", next_out=True), model())
    assert "On gpu0@a clip/b goes before it to make room." in why(fleet, "clip/a")


def test_why_tells_why_a_model_went():
    story = (
        event(EventKind.UNLOADED, at=NOW, reason="idle in RAM for 1812 s"),
        event(EventKind.LOADED, at=NOW - 4000),
    )
    sentences = why(fleet_of(worker(), events=story), "clip/a")
    assert sentences[0] == "clip/a is in no worker's memory."
    assert re.search(r"On gpu0@a unloaded at .* \(idle in RAM for 1812 s\)\.", sentences[1])


def test_why_tells_of_a_model_that_was_lost_with_its_process_and_not_of_how_it_went_before():
    story = (
        event(EventKind.LIFTED, at=NOW, reason="asked for"),
        event(EventKind.UNLOADED, at=NOW - 4000, reason="idle in RAM for 1812 s"),
    )
    [_, went] = why(Fleet(events=story), "clip/a")
    assert re.search(
        r"On gpu0@a lifted at .* \(asked for\), and lost when that process ended", went
    )


def test_a_model_in_use_or_pinned_or_kept_is_not_said_to_go():
    for leases, told in ((1, "1 request"), (2, "2 requests")):
        where, _ = why(fleet_of(worker(), model(leases=leases)), "clip/a")
        assert where == f"clip/a is on the device of gpu0@a, in use by {told}."
    assert any("pinned" in one for one in why(fleet_of(worker(), model(pinned=True)), "clip/a"))
    kept = why(fleet_of(worker(), model(keep_alive_s=-1)), "clip/a")
    assert "A request asked gpu0@a to keep it." in kept


def test_a_keep_alive_stands_in_for_the_timeouts():
    sentences = why(fleet_of(worker(), model(keep_alive_s=90)), "clip/a")
    assert "Unused, it leaves gpu0@a in 30 s." in sentences


def test_without_an_accelerator_there_is_no_way_down_but_out():
    sentences = why(fleet_of(worker(device_total=0), model()), "clip/a")
    assert not any("host memory" in one for one in sentences[1:])
    assert "Unused, it leaves gpu0@a in 29 min." in sentences


def test_a_model_stays_in_host_memory_no_shorter_than_on_the_device():
    sentences = why(fleet_of(worker(), model(ram_timeout_s=300)), "clip/a")
    assert sentences[1:3] == [
        "Unused, it goes to host memory of gpu0@a in 9 min.",
        "Unused, it leaves gpu0@a in 9 min.",
    ]


def test_what_is_overdue_goes_with_the_next_sweep():
    sentences = why(fleet_of(worker(), model(state="host", last_used=NOW - 9999)), "clip/a")
    assert sentences[0].startswith("clip/a is in host memory of gpu0@a, last used 3 h ago")
    assert "Unused, it leaves gpu0@a with the next sweep." in sentences


def test_a_model_nobody_has_heard_of_is_said_to_be_one():
    assert why(Fleet(), "clip/z")[-1].startswith("The event stream tells nothing of it")


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h")],
)
def test_a_span_is_told_in_the_largest_unit_of_which_there_are_two(seconds, told):
    assert span(seconds) == told
