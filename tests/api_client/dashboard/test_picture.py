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
    held = (model("clip/a", leases=2), model("clip/b", state="host"), model("clip/c"))
    fleet = Fleet(
        workers=(worker(held=held), worker("gpu1@a", state="starting")),
        depths={"embed": Depth(interactive=1, bulk=4, bulk_since=NOW - 12)},
    )
    jobs = (job(JobState.RUNNING, items=5000, done=1000), job(JobState.PAUSED, items=10))
    assert tiles(picture(fleet, *jobs)) == {
        "Workers ready": ("1 of 2", "cuda:0", "danger"),
        "Models on a device": (2, "1 in use, 1 in host memory", "success"),
        "Messages waiting": (5, "the oldest for 12 s", "active"),
        "Bulk jobs": (2, "4,010 items to go, 1 paused", "danger"),
    }
    assert tiles(picture(fleet, jobs[0]))["Bulk jobs"] == (1, "4,000 items to go", "active")


def test_a_fleet_is_well_while_all_of_its_workers_are_ready():
    shown = tiles(picture(Fleet(workers=(worker(),))))
    assert shown["Workers ready"] == ("1 of 1", "cuda:0", "success")


def test_a_model_tells_when_it_steps_down_and_an_overdue_one_does_so_now():
    held = [model(str(ago), last_used=NOW - ago, vram_timeout_s=600) for ago in (590, 3600)]
    [shown] = picture(Fleet(workers=(worker(held=held, device_total=1),)))["workers"]
    assert [one["steps_down"] for one in shown["models"]] == [
        {"to": "host", "in_s": 10},
        {"to": "host", "in_s": 0},
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


def test_a_worker_whose_clock_is_ahead_was_swept_just_now():
    [shown] = picture(Fleet(workers=(worker(last_sweep_at=NOW + 3600),)))["workers"]
    assert shown["swept_s"] == 0


def test_all_is_not_well_while_a_job_waits_for_somebody_to_resume_it():
    fleet = Fleet(workers=(worker(),))
    assert not picture(fleet, job(JobState.PAUSED, items=10))["well"]
    assert picture(fleet, job(JobState.RUNNING, items=10))["well"]


def test_memory_is_told_model_by_model():
    held = (model("clip/a", device_bytes=30, host_bytes=5), model("clip/b", state="host"))
    fleet = Fleet(workers=(worker(held=held, device_total=100, device_free=50),))
    [device] = picture(fleet)["workers"][0]["memories"]
    assert device["models"] == [{"id": "clip/a", "bytes": 30}]
    assert (device["free"], device["others"]) == (50, 20)


def test_what_a_worker_complains_of_stands_with_it():
    oh = Complaint(about=ComplaintAbout.DISK, found="1 GB free", mend="make room")
    [shown] = picture(Fleet(workers=(worker(complaints=(oh,)),)))["workers"]
    assert shown["complaints"] == ["1 GB free: make room"]
    assert not picture(Fleet(workers=(worker(complaints=(oh,)),)))["well"]
    assert picture(Fleet(workers=(worker(),)))["well"]
