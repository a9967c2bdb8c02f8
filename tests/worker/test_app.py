import os
import subprocess
import sys

import pytest


def test_a_worker_that_cannot_start_says_why_in_one_sentence_and_shows_no_traceback():
    argv = (sys.executable, "-m", "celery", "-A", "tests.light_app", "worker", "-P", "threads")
    env = {"CLIPYARD_REDIS_URL": "redis://unused", "CLIPYARD_BACKENDS": '["fake"]'}
    ran = subprocess.run(argv, env=os.environ | env, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr.endswith("CLIPYARD_BACKENDS: there is a model family 'fake' already\n")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("part", [("tests.light_app", "worker"), ("beat_schedule", "beat")])
def test_a_login_that_redis_refuses_ends_worker_and_beat_with_a_sentence(valkey_url, part):
    app, command = part
    wrong = valkey_url.replace("redis://:", "redis://:not-")
    ran = subprocess.run(
        (sys.executable, "-m", "celery", "-A", app, command),
        env=os.environ | {"CLIPYARD_REDIS_URL": wrong},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 2
    assert ran.stderr.endswith("; correct CLIPYARD_REDIS_URL\n")
    assert "refuses the login" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--autoscale=3", "--autoscale is not for these workers: leave it out"),
        ("-B", "--beat is not for these workers: start `celery -A beat_schedule beat` instead"),
    ],
)
def test_a_worker_is_not_begun_with_an_option_of_celery_that_does_not_hold(
    valkey_url, option, told
):
    argv = (sys.executable, "-m", "celery", "-A", "tests.light_app", "worker", option)
    env = {"CLIPYARD_REDIS_URL": valkey_url}
    ran = subprocess.run(
        argv, env=os.environ | env, capture_output=True, text=True, check=False, timeout=60
    )
    assert ran.returncode == 2
    assert ran.stderr.endswith(f"{told}\n")
