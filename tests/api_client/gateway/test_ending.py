"""A gateway that is asked to end, as a process of its own."""

import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx

from api_client.gateway import child
from api_client.wire import names
from tests.flow.processes import until


def test_what_it_has_begun_is_finished_before_it_ends(stage):
    env = {
        "CLIPYARD_REDIS_URL": stage.settings.redis_url.get_secret_value(),
        "CLIPYARD_KEY_PREFIX": stage.settings.key_prefix,
        "CLIPYARD_GATEWAY_PORT": "0",
    }
    queue = stage.keys.queue(names.EMBED, names.INTERACTIVE)
    argv = (sys.executable, "-m", "api_client", "gateway")
    stage.show_worker()
    with (
        subprocess.Popen(argv, env=os.environ | env, stderr=subprocess.PIPE, text=True) as gateway,
        ThreadPoolExecutor() as callers,
    ):
        try:
            running = next(line for line in gateway.stderr if child.extra().ready(line))
            [url] = re.findall(r"http://[\d.:]+", running)
            begun = callers.submit(httpx.post, f"{url}/encode/text?text=a", timeout=60)
            until(lambda: stage.store.llen(queue) == 1)
            gateway.send_signal(signal.SIGTERM)
            next(line for line in gateway.stderr if "Shutting down" in line)
            with stage.worker():
                assert begun.result().status_code == 200
            assert gateway.wait(60) == 0
        finally:
            gateway.kill()
