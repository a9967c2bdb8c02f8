import subprocess
import sys
from itertools import count
from pathlib import Path

from celery import Celery

from api_client.wire import names
from api_client.wire.broker import celery_app
from api_client.wire.names import Keys
from api_client.wire.settings import Settings

CHECKOUT = Path(__file__).parents[2]


def schedule(monkeypatch, **settings):
    monkeypatch.setenv("CLIPYARD_REDIS_URL", "redis://127.0.0.1:1/0")
    import beat_schedule

    return beat_schedule.schedule(Settings.read(**settings))


def test_small_tasks_go_to_whoever_takes_them_and_do_not_pile_up(monkeypatch):
    entries = schedule(monkeypatch, sweep_interval_s=7, tend_interval_s=3).values()
    assert {e["task"]: e["schedule"] for e in entries} == {names.SWEEP_FLEET: 7, names.JOBS_TEND: 3}
    for entry in entries:
        expires = entry["schedule"]
        assert entry["options"] == {"queue": "control", "priority": 0, "expires": expires}


def test_sweeps_can_be_switched_off_and_jobs_are_looked_after_all_the_same(monkeypatch):
    [entry] = schedule(monkeypatch, sweeps_enabled=False).values()
    assert entry["task"] == names.JOBS_TEND


def test_without_a_redis_it_says_so_in_one_line():
    env = {"PATH": "/usr/bin:/bin", "CLIPYARD_HOME": "/nowhere"}
    told = subprocess.run(
        (sys.executable, "-m", "celery", "-A", "beat_schedule", "beat"),
        cwd=CHECKOUT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 2
    assert "no Redis is configured" in told.stderr
    assert "Traceback" not in told.stderr


def test_a_clock_that_is_set_back_holds_nothing_up(monkeypatch):
    schedule(monkeypatch)
    import beat_schedule

    assert beat_schedule.app.conf.beat_scheduler == "beat_schedule:Scheduler"

    class Beat(beat_schedule.Scheduler):
        def apply_entry(self, entry):
            sent.append((entry.name, now[0]))

    sent, now = [], [100.0]
    app = Celery(set_as_current=False)
    app.conf.beat_schedule = {
        "often": {"task": "a", "schedule": 2},
        "seldom": {"task": "b", "schedule": 3},
    }
    beat = Beat(app, clock=lambda: now[0])
    monkeypatch.setattr("time.time", lambda: 0.0)  # the time of day is no part of it
    for _ in range(4):
        now[0] += beat.tick()
    assert [at for name, at in sent if name == "often"] == [100, 102, 104]
    assert [at for name, at in sent if name == "seldom"] == [100, 103]


def test_nothing_is_sent_while_nobody_takes_what_waits(
    monkeypatch, valkey_url, store, keys, prefix
):
    clock = schedule(monkeypatch)
    import beat_schedule

    settings = Settings.read(redis_url=valkey_url, key_prefix=prefix)
    monkeypatch.setattr(beat_schedule, "_settings", settings)
    monkeypatch.setattr(beat_schedule, "_store", store)
    queue, most = keys.queue(names.CONTROL, names.INTERACTIVE), beat_schedule.MOST_WAITING
    store.lpush(queue, *range(most))
    with celery_app(settings, beat_schedule=clock) as app:
        beat = beat_schedule.Scheduler(app, clock=count(step=1000).__next__)
        beat.tick()
        assert store.llen(queue) == most
        store.ltrim(queue, len(clock), -1)
        beat.tick()
        assert store.llen(queue) == most


def test_a_redis_that_was_away_for_longer_than_it_tries_is_sent_to_again(
    monkeypatch, valkey_of_my_own, caplog
):
    clock = schedule(monkeypatch)
    import beat_schedule

    once_more = {"max_retries": 1, "interval_start": 0.01, "interval_max": 0.01}
    app = celery_app(
        Settings.read(redis_url=valkey_of_my_own.url),
        beat_schedule=clock,
        task_publish_retry_policy=once_more,
    )
    with app:
        beat = beat_schedule.Scheduler(app, clock=count(step=1000).__next__)
        beat.tick()
        valkey_of_my_own.stop()
        beat.tick()
        told = caplog.text
        valkey_of_my_own.start()
        beat.tick()
    assert told.count("Couldn't apply scheduled task") == len(clock)
    assert "Traceback" not in told
    queue = Keys("clipyard").queue(names.CONTROL, names.INTERACTIVE)
    with valkey_of_my_own.client() as client:
        assert client.llen(queue) == 2 * len(clock)
