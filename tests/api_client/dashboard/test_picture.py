"""What the page is given to show, from statuses alone."""

from api_client.dashboard.picture import ENDED_SHOWN_S, drawn
from api_client.status import Depth, Fleet, Worker
from api_client.wire.jobs import JobSpec, JobState, JobStatus, Place
from api_client.wire.messages import Complaint, ComplaintAbout, ModelStatus

NOW = 1_800_000_000.0
PLACE = Place(kind="list", where="/list")


def worker(name="gpu0@a", **fields):
    told = {"device": "cuda:0", "pid": 1, "started_at": NOW, "beat_at": NOW, "state": "ready"}
    return Worker(name=name, **(told | fields))


def model(model_id, **fields):
    return ModelStatus(id=model_id, **({"state": "device", "last_used": NOW} | fields))


def job(state, **fields):
    spec = JobSpec(id=str(state), source=PLACE, model="m", sink=PLACE)
    return JobStatus(spec=spec, state=state, **fields)


def picture(fleet, *jobs):
    return drawn(fleet, jobs, now=NOW, read_only=False)


def tiles(shown):
    return {tile["label"]: (tile["value"], tile["about"], tile["mood"]) for tile in shown["tiles"]}


def test_a_fleet_at_work_is_told_at_a_glance():
    held = (
        model("clip/a", leases=2),
        model("clip/b", state="host"),
        model("clip/c"),
        model("clip/d", state="loading"),
    )
    fleet = Fleet(
        workers=(worker(held=held), worker("cpu0@a", device="cpu", state="starting")),
        depths={"embed": Depth(interactive=1, bulk=4, bulk_since=NOW - 12), "control": Depth()},
    )
    jobs = [
        job(JobState.RUNNING, items=5000, done=1000),
        job(JobState.PLANNING),
        job(JobState.PAUSED, items=10),
        job(JobState.CANCELLED, items=10, ended_at=NOW),
    ]
    shown = picture(fleet, *jobs)
    assert tiles(shown) == {
        "Workers ready": ("1 of 2", "cpu, cuda:0", "danger"),
        "Models on a device": (2, "1 in use, 1 in host memory, 1 loading", "success"),
        "Messages waiting": (5, "the oldest for 12 s", "active"),
        "Bulk jobs": (3, "4,010 items to go, 1 paused", "danger"),
    }
    assert tiles(picture(fleet, jobs[0]))["Bulk jobs"] == (1, "4,000 items to go", "active")
    assert shown["queues"] == {
        "embed": {"interactive": 1, "bulk": 4, "oldest_s": 12},
        "control": {"interactive": 0, "bulk": 0, "oldest_s": 0},
    }
    assert [one["running"] for one in shown["jobs"]] == [True, False, False, False]


def test_a_fleet_is_well_while_all_of_its_workers_are_ready():
    shown = tiles(picture(Fleet(workers=(worker(),))))
    assert shown["Workers ready"] == ("1 of 1", "cuda:0", "success")


def test_a_model_tells_when_it_steps_down_and_an_overdue_one_does_so_now():
    held = [model(str(ago), last_used=NOW - ago, vram_timeout_s=600) for ago in (590, 3600)]
    [shown] = picture(Fleet(workers=(worker(held=held, device_total=1),)))["workers"]
    assert [(one["idle_s"], one["steps_down"]) for one in shown["models"]] == [
        (590, {"to": "host", "in_s": 10}),
        (3600, {"to": "host", "in_s": 0}),
    ]


def test_an_empty_fleet_is_in_danger_and_nothing_else_is():
    assert tiles(picture(Fleet())) == {
        "Workers ready": ("0 of 0", "none", "danger"),
        "Models on a device": (0, "none in use", "success"),
        "Messages waiting": (0, "none for long", "success"),
        "Bulk jobs": (0, "none at work", "success"),
    }


def test_a_job_that_is_over_stays_for_a_while():
    ended = job(JobState.COMPLETE, ended_at=NOW - 1)
    forgotten = job(JobState.FAILED, ended_at=NOW - ENDED_SHOWN_S)
    assert [one["id"] for one in picture(Fleet(), ended, forgotten)["jobs"]] == ["complete"]


def test_a_job_tells_its_trouble_and_else_why_it_stands():
    told = (job(JobState.PAUSED, reason="by ann", trouble=why) for why in ("", "no room"))
    assert [one["trouble"] for one in picture(Fleet(), *told)["jobs"]] == ["by ann", "no room"]


def test_a_worker_whose_clock_is_ahead_was_swept_just_now():
    fleet = Fleet(workers=(worker(last_sweep_at=NOW + 3600), worker()))
    assert [one["swept_s"] for one in picture(fleet)["workers"]] == [0, None]


def test_all_is_not_well_while_a_job_waits_for_somebody_to_resume_it():
    fleet = Fleet(workers=(worker(),))
    assert not picture(fleet, job(JobState.PAUSED, items=10))["well"]
    assert picture(fleet, job(JobState.RUNNING, items=10))["well"]


def test_memory_is_told_model_by_model():
    held = (model("clip/a", device_bytes=30, host_bytes=5), model("clip/b", state="host"))
    total = {"device_total": 100, "device_free": 50, "host_total": 80, "host_free": 76}
    [shown] = picture(Fleet(workers=(worker(held=held, **total),)))["workers"]
    one = {"id": "clip/a", "bytes": 30}
    assert shown["memories"] == [
        {"name": "device", "total": 100, "free": 50, "models": [one], "others": 20},
        {"name": "host", "total": 80, "free": 76, "models": [one | {"bytes": 5}], "others": 0},
    ]
    assert [held["bytes"] for held in shown["models"]] == [35, 0]


def test_what_a_worker_complains_of_stands_with_it():
    oh = Complaint(about=ComplaintAbout.DISK, found="1 GB free", mend="make room")
    [shown] = picture(Fleet(workers=(worker(complaints=(oh,)),)))["workers"]
    assert shown["complaints"] == ["1 GB free: make room"]


def test_all_is_well_while_nothing_is_said_of_any_worker_nor_of_the_fleet():
    oh = Complaint(about=ComplaintAbout.DISK, found="1 GB free", mend="make room")
    assert picture(Fleet(workers=(worker(),)))["well"]
    assert not picture(Fleet())["well"]
    for sick in (worker(complaints=(oh,)), worker(trouble="the last forward pass failed")):
        assert not picture(Fleet(workers=(worker("gpu1@a"), sick)))["well"]
