"""Two workers and two beats, as processes: models go down and out with nobody asking.

The order of the tests matters: the last one kills a worker.
"""

import os
import signal
import sys
import uuid
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import redis

from api_client.stack.child import Child, Running
from api_client.status import read_fleet
from api_client.wire import names
from api_client.wire.broker import celery_app
from api_client.wire.codec import unpack_answer, unpack_record
from api_client.wire.messages import Event
from api_client.wire.settings import Settings
from tests.flow import processes

CHECKOUT = Path(__file__).parents[2]
NODES = ("gpu0@test", "gpu1@test")
BOUND_S = 60.0
SHORT = {
    "CLIPYARD_SWEEP_INTERVAL_S": "0.5",
    "CLIPYARD_VISION_VRAM_TIMEOUT_S": "1",
    "CLIPYARD_VISION_RAM_TIMEOUT_S": "2",
    "CLIPYARD_FORESIGHT": "false",
    "FLEET_BEAT_S": "0.2",
    "FLEET_EXPIRY_S": "2",
}


class Fleet:
    """The processes, and what their status says."""

    def __init__(self, url: str, directory: Path, stack: ExitStack) -> None:
        self.settings = Settings.read(redis_url=url, key_prefix="fleet")
        self.store = stack.enter_context(redis.Redis.from_url(url))
        self.keys = names.Keys("fleet")
        self.app = celery_app(self.settings)
        self.directory = directory
        self.workers = {
            node: self._run(stack, node, "tests.tasks.fleet", "worker", "-P", "threads", "-n", node)
            for node in NODES
        }
        for beat in ("beat0", "beat1"):
            self._run(stack, beat, "beat_schedule", "beat")

    def _run(self, stack: ExitStack, name: str, app: str, *arguments: str) -> Running:
        env = SHORT | {
            "CLIPYARD_REDIS_URL": self.settings.url(),
            "CLIPYARD_KEY_PREFIX": "fleet",
            "PYTHONPATH": str(CHECKOUT),
        }
        argv = (sys.executable, "-m", "celery", "-A", app, *arguments, "-l", "INFO")
        child = Child(name=name, argv=argv, cwd=self.directory, env=env)
        running = Running(child, log=self.directory / f"{name}.log")
        stack.callback(running.end)
        return running

    def alive(self):
        return {worker.name for worker in read_fleet(self.store, self.keys).workers}

    def load(self, node, model):
        request_id = str(uuid.uuid4())
        queue = names.direct_queue(node)
        self.app.send_task(names.LOAD, kwargs={"model": model}, task_id=request_id, queue=queue)
        answer = self.keys.answer(request_id)
        return unpack_answer(self.store.blmove(answer, answer, BOUND_S))[0]

    def story(self, node, *, until):
        """The kinds of events on one worker from its first to one of this kind."""
        kinds, after = [], "0"
        while until not in kinds:
            found = self.store.xread({self.keys.events: after}, block=int(BOUND_S * 1000))
            assert found, f"no {until} on {node}, but {kinds}"
            [(_, entries)] = found
            after = entries[-1][0]
            events = [unpack_record(Event, fields) for _, fields in entries]
            kinds += [event.kind for event in events if event.worker == node]
        return kinds


until = partial(processes.until, within_s=BOUND_S)


@pytest.fixture(scope="module")
def crew(valkey_url, tmp_path_factory):
    with ExitStack() as stack:
        crew = Fleet(valkey_url, tmp_path_factory.mktemp("fleet"), stack)
        until(lambda: crew.alive() == set(NODES))
        yield crew


@pytest.fixture(autouse=True)
def _fresh_events(crew):
    crew.store.delete(crew.keys.events)


@pytest.mark.timeout(180)
def test_a_model_goes_down_and_out_by_itself_on_every_worker(crew):
    for node in NODES:
        assert crew.load(node, "clip/a").changed
    for node in NODES:
        # Once each, though two beats ask for it.
        assert crew.story(node, until="unloaded") == ["loaded", "lifted", "lowered", "unloaded"]
    for worker in read_fleet(crew.store, crew.keys).workers:
        assert worker.held == ()
        assert worker.last_sweep_at > 0


def test_a_sweep_that_a_worker_missed_is_made_up_by_the_next(crew):
    node = NODES[1]
    crew.load(node, "clip/b")
    pid = crew.workers[node].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: crew.alive() == {NODES[0]})  # nobody sends it sweeps any more
    finally:
        os.kill(pid, signal.SIGCONT)
    assert crew.story(node, until="unloaded")[-1] == "unloaded"
    until(lambda: crew.alive() == set(NODES))


def test_the_beats_leave_no_files_behind(crew):
    left = {path.name for path in crew.directory.iterdir()}
    assert left == {f"{name}.log" for name in (*NODES, "beat0", "beat1")}


def test_a_worker_that_was_killed_vanishes_with_its_models(crew):
    node = NODES[1]
    crew.load(node, "clip/b")
    os.kill(crew.workers[node].pid, signal.SIGKILL)
    until(lambda: crew.alive() == {NODES[0]})
    until(lambda: not crew.store.exists(crew.keys.model(node, "clip/b")))
    until(lambda: crew.store.smembers(crew.keys.workers) == {NODES[0].encode()})


def test_a_worker_told_to_stop_takes_itself_off_the_list_at_once(crew):
    node = NODES[0]
    crew.load(node, "clip/a")
    crew.workers[node].end()
    assert crew.store.smembers(crew.keys.workers) == set()
    assert crew.story(node, until="unloaded")[-1] == "unloaded"
    assert not crew.store.exists(crew.keys.worker(node), crew.keys.model(node, "clip/a"))
