import os
import subprocess
import sys


def test_a_worker_that_cannot_start_says_why_in_one_sentence_and_shows_no_traceback():
    argv = (sys.executable, "-m", "celery", "-A", "tests.light_app", "worker", "-P", "threads")
    env = {"CLIPYARD_REDIS_URL": "redis://unused", "CLIPYARD_BACKENDS": '["fake"]'}
    ran = subprocess.run(argv, env=os.environ | env, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert ran.stderr.endswith("CLIPYARD_BACKENDS: there is a model family 'fake' already\n")
    assert "Traceback" not in ran.stderr
