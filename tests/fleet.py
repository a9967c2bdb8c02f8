"""A stack of two workers with a dashboard, for the tests that look at it."""

import json
import os
import random
import socket
import subprocess
import sys
from contextlib import ExitStack, suppress

import pytest

from api_client import Client, Settings
from api_client.dashboard import child
from api_client.stack.up import Options, temporary_stack
from tests.browser import browser
from tests.collector import collector
from tests.flow import processes

PASSWORD = "a-password-for-tests"
CATALOGUE = """
["fake/vision"]
backend = "fake"

["fake/slow"]
backend = "fake"
options = { run_s = 0.2 }

["fake/words"]
backend = "fake"
kinds = ["text"]
"""


@pytest.fixture(scope="session")
def free_port():
    return processes.free_port()


@pytest.fixture(scope="session")
def metrics_port():
    """Of the first worker; the second has the next one. Both below those of connections."""
    while True:
        first = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.socket() as one, socket.socket() as next_one:
            one.bind(("127.0.0.1", first))
            next_one.bind(("127.0.0.1", first + 1))
            return first


@pytest.fixture(scope="session")
def traces():
    """Where the fleet's workers send their spans."""
    with collector() as collected:
        yield collected


@pytest.fixture(scope="session")
def fleet(tmp_path_factory, free_port, metrics_port, traces):
    """A stack of two workers, a beat and the dashboard; sweeps run every second.

    A folder of pictures that they should see is not there.
    """
    home = tmp_path_factory.mktemp("fleet")
    (home / "catalogue.toml").write_text(CATALOGUE)
    env = child.WORKER_ENV | {
        "CLIPYARD_CATALOGUE": str(home / "catalogue.toml"),
        "CLIPYARD_CACHE_DIR": str(home / "cache"),
        "CLIPYARD_IMAGE_ROOTS": json.dumps([str(home), str(home / "not-mounted")]),
        "CLIPYARD_SINK_ROOTS": json.dumps([str(home)]),
        "CLIPYARD_JOBS_DIR": str(home / "jobs"),
        "CLIPYARD_DEFAULT_MODEL": "fake/vision",
        "CLIPYARD_OFFLINE": "true",
        "CLIPYARD_TRACES": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": traces.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    with ExitStack() as until_the_end:
        # What the children inherit; other tests must not.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CLIPYARD_DASHBOARD_PORT", str(free_port))
            patch.setenv("CLIPYARD_DASHBOARD_PASSWORD", PASSWORD)
            patch.setenv("CLIPYARD_SWEEP_INTERVAL_S", "1")
            options = Options(
                home=home,
                devices=("cpu", "cpu"),
                env=env,
                extras=(child.extra(),),
                metrics_port=metrics_port,
            )
            stack = until_the_end.enter_context(temporary_stack(options, tell=print))
            stack.supervisor.wait_ready(within_s=115)
        yield stack


@pytest.fixture
def looking_on(valkey_url, prefix):
    """A dashboard that may only look, on a key prefix where no worker is: its address."""
    env = {
        "CLIPYARD_REDIS_URL": valkey_url,
        "CLIPYARD_KEY_PREFIX": prefix,
        "CLIPYARD_DASHBOARD_PORT": "0",
        "CLIPYARD_DASHBOARD_PASSWORD": PASSWORD,
        "CLIPYARD_DASHBOARD_READ_ONLY": "true",
    }
    argv = (sys.executable, "-m", "api_client", "dashboard")
    with subprocess.Popen(argv, env=os.environ | env, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().partition("http://")[2].partition("/")[0]
        finally:
            process.terminate()


@pytest.fixture
def caller(fleet):
    with Client(Settings.read(redis_url=fleet.url), asked_by="test") as caller:
        yield caller


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(log=tmp_path_factory.mktemp("browser") / "driver.log") as window:
        yield window


@pytest.fixture
def site(free_port):
    return f"127.0.0.1:{free_port}"
