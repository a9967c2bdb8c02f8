"""Every finding, each provoked for real where a machine allows it."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from api_client import doctor, status
from api_client.doctor import Check, Health, examine
from api_client.status import read_fleet
from api_client.wire.broker import celery_app
from api_client.wire.codec import pack_record
from api_client.wire.errors import LoadFailed
from api_client.wire.messages import (
    Complaint,
    ComplaintAbout,
    Event,
    EventKind,
    ModelStatus,
    WorkerStatus,
)
from api_client.wire.settings import Settings
from api_client.wire.version import VERSION
from tests.fleet import PASSWORD
from tests.flow.processes import until
from worker import housekeeping

DOCUMENT = Path(doctor.__file__).parents[1] / "docs" / "doctor.md"


@pytest.fixture
def look(monkeypatch, tmp_path, prefix):
    """Examines an installation, as {check: the findings}."""

    def look(url, **env):
        env = {"REDIS_URL": url, "KEY_PREFIX": prefix, "HOME": str(tmp_path)} | env
        for name, value in env.items():
            monkeypatch.setenv(f"CLIPYARD_{name}", value)
        found = {}
        for finding in examine().findings:
            found.setdefault(finding.check, []).append(finding)
        return found

    return look


@pytest.fixture
def tell(store, keys):
    """What the workers' status alone leads to, without a process to ask for settings."""

    def tell():
        fleet, found = read_fleet(store, keys), {}
        for finding in doctor.fleet_findings(fleet, now=time.time()):
            found.setdefault(finding.check, []).append(finding)
        return found

    return tell


@pytest.fixture
def show(store, keys):
    """Writes what a worker shows of itself, by default a well one."""

    def show(**fields):
        now = time.time()
        told = {"name": "gpu0@a", "device": "cuda:0", "pid": 1, "state": "ready"}
        told |= {"started_at": now, "beat_at": now, "versions": {"clipyard": VERSION}}
        store.sadd(keys.workers, "gpu0@a")
        store.hset(keys.worker("gpu0@a"), mapping=pack_record(WorkerStatus(**(told | fields))))

    return show


def test_a_working_fleet_has_nothing_to_mend_but_what_the_tests_broke(look, running, client_of):
    client = client_of()
    with pytest.raises(LoadFailed):
        client.load("fake/broken")
    until(lambda: any(event.model == "fake/broken" for event in client.status().events))
    found = look(running.url, KEY_PREFIX="clipyard")
    sick = {check for check, those in found.items() for one in those if one.health is not Health.OK}
    assert sick <= {Check.MODEL}
    [broken] = [one for one in found[Check.MODEL] if "fake/broken" in one.found]
    assert "made of sand" in broken.found
    assert "off on cpu0@" in found[Check.EVENTS][0].found


def test_events_that_are_off_matter_once_there_is_a_dashboard(look, running):
    found = look(running.url, KEY_PREFIX="clipyard", DASHBOARD_PASSWORD="twelve-characters")
    [off] = found[Check.EVENTS]
    assert off.health is Health.WARNING
    assert "CLIPYARD_TASK_EVENTS" in off.mend


def test_a_redis_that_is_not_there_is_sick_and_ends_the_round(look):
    found = look("redis://127.0.0.1:1/0")
    assert found[Check.REDIS][0].health is Health.SICK
    assert Check.WORKERS not in found


def test_who_was_told_of_no_redis_is_told_how_to_start_one(tmp_path):
    [told] = doctor._redis_and_workers(Settings.read(home=tmp_path))
    assert (told.check, told.health) == (Check.REDIS, Health.SICK)
    assert "clipyard up" in told.mend


def test_a_redis_that_evicts_is_sick(look, valkey_of_my_own):
    with redis.Redis.from_url(valkey_of_my_own.url) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
    found = look(valkey_of_my_own.url)
    assert found[Check.EVICTION][0].health is Health.SICK
    assert found[Check.WORKERS][0].health is Health.SICK  # nobody is there either


def test_a_redis_that_takes_no_writes_is_sick_and_ends_the_round(valkey_of_my_own):
    settings = Settings.read(redis_url=valkey_of_my_own.url)
    with redis.Redis.from_url(valkey_of_my_own.url) as client:
        client.config_set("maxmemory", 1)
        *_, full = doctor._redis_and_workers(settings)
        client.config_set("maxmemory", 0)
        client.replicaof("127.0.0.1", 1)
        *_, replica = doctor._redis_and_workers(settings)
    for one in (full, replica):
        assert (one.check, one.health) == (Check.REDIS, Health.SICK)
        assert "takes no writes" in one.found


def test_a_wrong_password_is_named(look, valkey_of_my_own):
    with redis.Redis.from_url(valkey_of_my_own.url) as client:
        client.config_set("requirepass", "secret")
    [refused] = look(valkey_of_my_own.url)[Check.REDIS]
    assert (refused.health, "password" in refused.mend) == (Health.SICK, True)


def test_a_login_that_may_look_and_ask_no_worker_is_told_which_one_may(
    look, valkey_of_my_own, keys
):
    url = f"redis://looker:pw@127.0.0.1:{valkey_of_my_own.port}/0"
    now = time.time()
    told = WorkerStatus(name="a", device="cpu", pid=1, state="ready", started_at=now, beat_at=now)
    with redis.Redis.from_url(valkey_of_my_own.url) as client:
        client.execute_command("ACL", "SETUSER", "looker", "on", ">pw", "~*", "+@all")
        client.sadd(keys.workers, "a")
        client.hset(keys.worker("a"), mapping=pack_record(told))
    found = look(url)
    assert found[Check.WORKER][0].health is Health.OK
    assert "the login of the role admin" in found[Check.REDIS][-1].mend


def test_a_name_that_is_no_setting_is_told_with_the_one_that_was_meant(monkeypatch, tmp_path):
    (tmp_path / "c.json").write_text('{"clipyard_batchsize": 4, "other_program": 1}')
    monkeypatch.setenv("CLIPYARD_CONFIG", str(tmp_path / "c.json"))
    monkeypatch.setenv("CLIPYARD_REDIS_URL_FILE", "/run/secrets/worker.url")
    monkeypatch.setenv("CLIPYARD_SLOT", "3")
    monkeypatch.delenv("CLIPYARD_EXAMPLES", raising=False)  # of these tests
    known = {"CLIPYARD_SLOTS", "CLIPYARD_BATCH_SIZE", "CLIPYARD_REDIS_URL"}
    told = {one.found: one.mend for one in doctor.unknown_settings(known)}
    assert told == {
        "CLIPYARD_BATCHSIZE is no setting": "did you mean CLIPYARD_BATCH_SIZE?",
        "CLIPYARD_SLOT is no setting": "did you mean CLIPYARD_SLOTS?",
    }


@pytest.mark.parametrize(
    ("number", "health"), [("6.2.14", Health.SICK), ("7.0.0", Health.OK), ("9.1.2", Health.OK)]
)
def test_an_old_redis_is_sick(number, health):
    assert doctor.redis_version(number, url="redis://h").health is health


def test_a_redis_that_is_too_old_is_found_by_asking_it(look, valkey_url, monkeypatch):
    monkeypatch.setattr(doctor, "OLDEST_MAJOR", 99)
    assert look(valkey_url)[Check.REDIS][0].health is Health.SICK


def test_a_real_fleet_tells_what_its_machine_its_beat_and_its_version_lack(
    look, fleet, monkeypatch
):
    monkeypatch.setattr(doctor, "VERSION", "99.0")
    monkeypatch.setattr(status, "SWEEPS_MISSED", 0)  # the beat should have come long ago
    give_up_at = time.monotonic() + 60  # a worker that is starting has not looked around yet
    while True:
        found = look(fleet.url, KEY_PREFIX="clipyard")
        if len(found.get(Check.IMAGE_ROOT, ())) == 2 or time.monotonic() > give_up_at:
            break
        time.sleep(0.2)
    for check, told in (
        (Check.IMAGE_ROOT, "not-mounted"),
        (Check.BEAT, "has not been swept"),
        (Check.VERSIONS, "this client is 99.0"),
    ):
        assert len(found[check]) == 2, check
        assert all(told in one.found and one.mend for one in found[check])
    [events] = look(fleet.url, KEY_PREFIX="clipyard", DASHBOARD_PASSWORD=PASSWORD)[Check.EVENTS]
    assert (events.health, events.found) == (Health.OK, "on")


def test_clocks_that_are_apart_are_told(store):
    [apart] = doctor.clocks(store, clock=lambda: time.time() + 10)
    assert apart.health is Health.WARNING
    assert "10.0 s" in apart.found
    assert [one.health for one in doctor.clocks(store)] == [Health.OK]


@pytest.mark.parametrize(("by_s", "side"), [(300, "300 s ahead of"), (-300, "300 s behind")])
def test_a_workers_clock_that_is_apart_is_told(tell, show, by_s, side):
    show(beat_at=time.time() + by_s)
    [apart] = tell()[Check.CLOCKS]
    assert (apart.health, side in apart.found) == (Health.WARNING, True)
    show(beat_at=time.time() - 20)  # a beat of before the last ones
    assert Check.CLOCKS not in tell()


def test_a_worker_without_a_beat_is_told_by_the_interval_that_holds_there(tell, show):
    long_ago = time.time() - 500
    show(started_at=long_ago, sweep_interval_s=60)
    [missing] = tell()[Check.BEAT]
    assert "not been swept for 50" in missing.found
    assert "beat_schedule" in missing.mend
    assert "its machine's clock" in missing.mend  # what is sent by one that is behind has expired
    show(started_at=long_ago, sweep_interval_s=60, last_sweep_at=time.time() - 10)
    assert Check.BEAT not in tell()
    for seldom in (600, None):
        show(started_at=long_ago, sweep_interval_s=seldom)
        assert Check.BEAT not in tell()


def test_a_second_beat_is_told_by_the_gates_it_finds_shut(store, keys, prefix):
    settings = Settings.read(key_prefix=prefix)
    housekeeping.first_in_period(store, keys, period_s=60)
    assert list(doctor.two_beats(store, settings)) == []
    for _ in range(doctor.GATES_REFUSED):
        housekeeping.first_in_period(store, keys, period_s=60)
    [two] = doctor.two_beats(store, settings)
    assert two.check is Check.TWO_BEATS


def test_versions_that_differ_are_told(tell, show):
    show(versions={"clipyard": "0.0.1"})
    [differ] = tell()[Check.VERSIONS]
    assert "0.0.1" in differ.found


def test_what_redis_holds_as_a_worker_and_is_none_needs_no_stack(look, valkey_url, store, keys):
    store.sadd(keys.workers, "stranger")
    store.hset(keys.worker("stranger"), "state", "canary")
    *_, strange = look(valkey_url)[Check.REDIS]
    assert strange.health is Health.SICK
    assert "WorkerStatus is none" in strange.found
    assert "CLIPYARD_KEY_PREFIX" in strange.mend


@pytest.mark.parametrize("spoil", ["set", "lpush"])
def test_a_count_that_is_none_is_a_finding(look, valkey_url, store, keys, spoil):
    getattr(store, spoil)(keys.refused, "text")
    *_, strange = look(valkey_url)[Check.REDIS]
    assert "count of refused sweeps is none" in strange.found


def test_a_broken_worker_is_sick(tell, show):
    show(state="broken", trouble="the last forward pass failed")
    [broken] = tell()[Check.WORKER]
    assert (broken.health, "forward pass" in broken.found) == (Health.SICK, True)


def test_a_ready_worker_of_which_something_failed_is_a_warning(tell, show):
    show(trouble="the model family mine cannot be imported")
    [troubled] = tell()[Check.WORKER]
    assert (troubled.health, "mine" in troubled.found) == (Health.WARNING, True)
    assert "its log" in troubled.mend


def test_two_workers_of_one_name_tell_of_it_themselves(monkeypatch):
    app = celery_app(Settings.read(redis_url="redis://127.0.0.1:1/0"))
    replies = [{"gpu0@a": {"task_events": True}}, {"gpu0@a": {"task_events": False}}]
    monkeypatch.setattr(app.control, "broadcast", lambda *_, **__: replies)
    monkeypatch.setattr(doctor, "celery_app", lambda _: app)
    [told] = doctor.events(Settings.read())
    assert (told.check, told.found) == (Check.EVENTS, "off on gpu0@a")


def test_where_no_worker_answers_it_is_not_known_whether_events_are_on(look, valkey_url, show):
    show()
    [told] = look(valkey_url)[Check.EVENTS]
    assert (told.health, told.found) == (Health.OK, "no worker has said")


def test_a_model_that_was_refused_is_told_until_it_is_there(tell, show, store, keys):
    show(models=("clip/a",))
    refused = {"kind": EventKind.REFUSED, "model": "clip/a", "reason": "in use"}
    gone = Event(**refused, worker="gpu1@a", at=time.time())
    before = Event(**(refused | {"model": "clip/b"}), worker="gpu0@a", at=1.0)
    for event in (gone, before, Event(**refused, worker="gpu0@a", at=time.time())):
        store.xadd(keys.events, pack_record(event))
    told = []
    for state in ("loading", "device"):
        status = ModelStatus(id="clip/a", state=state)
        store.hset(keys.model("gpu0@a", "clip/a"), mapping=pack_record(status))
        told.append([one.found for one in tell().get(Check.MODEL, ())])
    assert told == [["clip/a could not be had on gpu0@a: in use"], []]


def test_a_current_model_that_nobody_lists_is_told(show, store, keys):
    show(default="clip/typo")
    [told] = doctor.current(store, keys, read_fleet(store, keys))
    assert (told.check, told.found) == (
        Check.MODEL,
        "no worker lists the current model, clip/typo",
    )
    store.hset(keys.catalogue, "clip/typo", "{}")
    assert not list(doctor.current(store, keys, read_fleet(store, keys)))


@pytest.mark.parametrize("about", list(ComplaintAbout))
def test_what_a_worker_complains_of_is_told_with_its_mend(tell, show, about):
    show(complaints=[Complaint(about=about, found="oh", mend="do this")])
    told = [one for one in tell()[Check(about.value)] if one.found == "gpu0@a: oh"]
    assert [one.mend for one in told] == ["do this"]


def test_a_full_disk_is_told(tmp_path):
    [full] = doctor.disk(tmp_path / "not" / "there", least_free_bytes=10**18)
    assert full.health is Health.WARNING


def test_a_home_that_cannot_even_be_looked_at_is_told(tmp_path):
    [told] = doctor.disk(tmp_path / ("a" * 300))
    assert told.health is Health.WARNING
    assert "File name too long" in told.found


@pytest.mark.parametrize("setting", ["CHUNK_SIZE", "GATEWAY_PORT", "DASHBOARD_PORT", "SLOTS"])
def test_a_setting_that_cannot_be_used_is_sick(look, setting):
    found = look("redis://127.0.0.1:1/0", **{setting: "many"})
    assert found[Check.SETTINGS][0].health is Health.SICK


def test_the_exit_code_and_json_are_for_scripts():
    env = os.environ | {"CLIPYARD_REDIS_URL": "redis://127.0.0.1:1/0"}
    argv = [sys.executable, "-m", "api_client", "doctor", "--json"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert {"redis", "disk"} <= {one["check"] for one in said["findings"]}
    pages = "".join(DOCUMENT.with_name(page).read_text() for page in ("settings.md", "http.md"))
    documented = set(re.findall(r"^\| `(CLIPYARD_\w+)`", pages, re.MULTILINE))
    assert {row["setting"] for row in said["settings"]} == documented


def test_every_finding_is_documented():
    page = DOCUMENT.read_text()
    assert [check for check in Check if f"| `{check}` |" not in page] == []
