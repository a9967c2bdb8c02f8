"""A worker that cannot go on gives its work back and comes again; who kills it is set aside. One
that cannot begin yet leaves the work to others.

The worker is a real process under the supervisor, with models that can be told to end it.
"""

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from typer.testing import CliRunner

from api_client import Client, Settings
from api_client.quarantine import cli as quarantine
from api_client.quarantine import talks
from api_client.stack.child import Child
from api_client.stack.supervisor import Patience, Supervisor
from api_client.talks import Call
from api_client.wire.broker import redis_client
from api_client.wire.codec import unpack_record
from api_client.wire.errors import Quarantined
from api_client.wire.messages import Load, WorkerStatus
from api_client.wire.names import EMBED, EMBED_BATCH, LOAD, Keys, direct_queue
from api_client.wire.quarantine import Crash, Evidence
from tests.flow.processes import until
from worker.delivery.watchdog import EXIT_CODE

ROOT = Path(__file__).parents[2]
NODE, NEWCOMER = "cpu0@healing", "cpu1@healing"
CODE = f"exited with code {EXIT_CODE}"
BRISK = Patience(deaths=99, first_delay_s=0.01, longest_delay_s=0.1)
CATALOGUE = """
["fake/words"]
backend = "fake"
kinds = ["text"]
options = { die_on = "die", hang_on = "hang", lose_on = "lose", load_s = LOAD_S }
"""
FOR_EVER_S = 3600


class Healing:
    """One worker, one client, and what the supervisor has said."""

    def __init__(self, client, said, folder, env):
        self.client, self.said = client, said
        self._folder, self._env = folder, env
        self.store, self.keys = redis_client(client._desk.line.settings), Keys("healing")

    def embed(self, *texts):
        return self.client.embed_texts(texts, model="fake/words", timeout=60)

    def status(self, node):
        fields = self.store.hgetall(self.keys.worker(node))
        return unpack_record(WorkerStatus, fields) if fields else None

    def trouble(self):
        status = self.status(NODE)
        return "" if status is None or status.state == "ready" else status.trouble

    @contextmanager
    def newcomer(self):
        """A second worker, which loads its model for ever: its process."""
        env = self._env | {
            "CLIPYARD_CATALOGUE": str(catalogue(self._folder, load_s=FOR_EVER_S)),
            "CLIPYARD_PRELOAD": '["fake/words"]',
        }
        with (self._folder / "newcomer.log").open("w") as log:
            process = subprocess.Popen(
                argv(NEWCOMER), env=os.environ | env, cwd=ROOT, stdout=log, stderr=log
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def evidence(self):
        return self.client._hold(talks.held(self.client._desk.line))


def argv(node):
    rest = f"-m celery -A tests.light_app worker -P threads -n {node} -l INFO --without-gossip"
    return sys.executable, *rest.split()


def catalogue(folder, *, load_s):
    file = folder / f"catalogue-{load_s}.toml"
    file.write_text(CATALOGUE.replace("LOAD_S", str(load_s)))
    return file


@pytest.fixture(scope="module")
def healing(valkey_url, tmp_path_factory):
    folder = tmp_path_factory.mktemp("healing")
    env = {
        "CLIPYARD_REDIS_URL": valkey_url,
        "CLIPYARD_KEY_PREFIX": "healing",
        "CLIPYARD_CATALOGUE": str(catalogue(folder, load_s=0)),
        "CLIPYARD_DEFAULT_MODEL": "fake/words",
        "CLIPYARD_DEVICE": "cpu",
        "CLIPYARD_WEDGED_AFTER_S": "1.5",
        "PYTHONPATH": str(ROOT),
    }
    child = Child(
        name="worker", argv=argv(NODE), cwd=ROOT, env=env, ready=lambda said: " ready." in said
    )
    said = []
    with (
        Supervisor([child], logs=folder / "logs", tell=said.append, patience=BRISK) as supervisor,
        Client(Settings.read(redis_url=valkey_url, key_prefix="healing"), asked_by="t") as client,
    ):
        supervisor.wait_ready(within_s=60)
        yield Healing(client, said, folder, env)


@pytest.fixture(scope="module")
def newcomer(healing):
    until(lambda: healing.status(NODE).state == "ready")
    with healing.newcomer() as process:
        until(lambda: (status := healing.status(NEWCOMER)) and status.models)
        yield process


@pytest.fixture
def clipyard(healing, monkeypatch):
    """Runs `clipyard quarantine ...`; gives what it prints."""
    monkeypatch.setattr(quarantine, "a_client", lambda: nullcontext(healing.client))

    def clipyard(*argv):
        ran = CliRunner().invoke(quarantine.app, argv)
        return ran.output or str(ran.exception)

    return clipyard


def test_a_request_that_kills_twice_is_set_aside_and_its_batch_mates_are_answered(healing):
    with ThreadPoolExecutor() as threads:
        doomed = threads.submit(healing.embed, "die")
        mates = [threads.submit(healing.embed, f"mate {n}") for n in range(6)]
        with pytest.raises(Quarantined, match="clipyard quarantine show"):
            doomed.result()
        assert [mate.result().shape for mate in mates] == [(1, 8)] * 6
    assert any("signal 9" in line for line in healing.said)
    [evidence] = healing.evidence()
    assert evidence.task == "clipyard.embed_batch"
    assert evidence.items == ("a text of 3 characters",)
    assert [crash.worker for crash in evidence.crashes] == [NODE, NODE]


def test_what_was_set_aside_can_be_looked_at_sent_again_and_forgotten(healing, clipyard):
    for held in healing.evidence():
        clipyard("drop", held.id)
    evidence = Evidence(
        id="guilty",
        task=EMBED_BATCH,
        at=2.0,
        crashes=(Crash(worker=NODE, at=1.0),),
        queue=EMBED,
        payload={"texts": ["die"]},
    )
    healing.store.hset(healing.keys.quarantine, "guilty", evidence.model_dump_json())
    assert json.loads(clipyard("list", "--json"))[0]["id"] == evidence.id
    assert NODE in clipyard("show", evidence.id)
    innocent = evidence.model_copy(update={"id": "innocent", "payload": {"texts": ["well"]}})
    healing.store.hset(healing.keys.quarantine, "innocent", innocent.model_dump_json())
    assert json.loads(clipyard("retry", "innocent", "--json"))["items"] == 1
    clipyard("drop", evidence.id)
    assert healing.evidence() == []
    assert "not in quarantine" in clipyard("show", evidence.id)


@pytest.mark.parametrize(
    ("word", "why"), [("hang", "forward pass"), ("lose", "device-side assert")]
)
def test_a_worker_with_a_lost_device_gives_its_work_back_and_comes_again(healing, word, why):
    before = len(healing.said)
    with ThreadPoolExecutor() as threads:
        culprit = healing.client.submit_texts([word], model="fake/words", timeout=60)
        mates = [threads.submit(healing.embed, f"mate {n} of {word[0]}") for n in range(4)]
        until(lambda: why in healing.trouble())
        until(lambda: any(CODE in line for line in healing.said[before:]))
        culprit.cancel()  # once is enough
        assert [mate.result().shape for mate in mates] == [(1, 8)] * 4
    assert healing.embed("afterwards").shape == (1, 8)


def test_a_worker_that_brings_its_first_model_leaves_requests_to_one_that_is_ready(
    healing, newcomer
):
    with ThreadPoolExecutor() as threads:
        asked = [threads.submit(healing.embed, f"text {n}") for n in range(100)]
        assert [one.result().shape for one in asked] == [(1, 8)] * 100


def test_a_worker_that_is_asked_to_end_says_so_while_it_works_on_what_it_has_begun(
    healing, newcomer
):
    request = Load(model="fake/words", deadline=time.time() + 600)
    call = Call(LOAD, request, queue=direct_queue(NEWCOMER))
    healing.client._hold(healing.client._desk.line.send(call))
    until(lambda: healing.store.exists(healing.keys.started(call.id)))
    newcomer.terminate()
    until(lambda: healing.status(NEWCOMER).state == "stopping")
    assert newcomer.poll() is None
    assert not healing.status(NEWCOMER).trouble
