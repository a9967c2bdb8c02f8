"""The wheel is the client: in a bare environment, beside a consumer's own `tasks` and `worker`."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from api_client.wire.version import VERSION

ROOT = Path(__file__).parents[2]
UV = (sys.executable, "-m", "uv")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    run([*UV, "build", "--wheel", "--quiet", "--out-dir", str(out), str(ROOT)], cwd=out)
    [built] = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """A Python that has the wheel and what it asks for; and a folder with the consumer's code."""
    folder = tmp_path_factory.mktemp("consumer")
    run([*UV, "venv", "--quiet", "--python", sys.executable, ".venv"], cwd=folder)
    python = str(folder / ".venv" / "bin" / "python")
    constraints = str(ROOT / "constraints.txt")
    install = [*UV, "pip", "install", "--quiet", "--python", python, "-c", constraints, str(wheel)]
    run(install, cwd=folder)
    (folder / "tasks.py").write_text("MINE = 'tasks'\n")
    (folder / "worker.py").write_text("MINE = 'worker'\n")
    return folder


def run(argv, cwd, **env):
    env = os.environ | env
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(bare, program, **env):
    return run([str(bare / ".venv" / "bin" / "python"), "-c", program], cwd=bare, **env)


def test_the_wheel_holds_the_client_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    roots = {name.partition("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"api_client"}
    assert "api_client/py.typed" in names  # else who checks types sees none of ours


def test_pip_knows_the_wheel_by_the_version_that_it_tells(wheel, bare):
    assert wheel.name == f"clipyard-{VERSION}-py3-none-any.whl"
    command = str(bare / ".venv" / "bin" / "clipyard")
    assert run([command, "--version"], cwd=bare) == f"clipyard {VERSION}\n"


def test_importing_it_loads_no_torch_and_nothing_heavy(bare):
    program = "import sys, api_client; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(python(bare, program).split())
    assert not loaded & {"torch", "open_clip", "celery", "numpy", "PIL"}


ASKS_THE_FAKE = """
from PIL import Image
from api_client.testing import FakeClient
picture = Image.new("RGB", (4, 4))
with FakeClient() as client:
    assert client.embed_texts(["a", "b"]).shape == (2, 16)
    assert client.embed_images([picture]).shape == (1, 16)
    assert len([*client.stream_images([picture] * 3)]) == 3
    assert client.reembed("/pictures", sink="/vectors", model="fake/small").wait(1).done == 0
print("done")
"""
PRINTS = """
import sys
from api_client import cli
from api_client.testing import FakeClient
cli.a_client, sys.argv = FakeClient, ["clipyard", "text", "a cat", "--json"]
cli.main()
"""
ASKS_REDIS = """
from api_client import Client
from api_client.wire.errors import NoWorker
with Client() as client:
    try:
        client.embed_texts(["a"])
    except NoWorker:
        print("nobody")
"""


def test_the_clients_work_with_what_the_wheel_asks_for(bare, valkey_url, prefix):
    assert python(bare, ASKS_THE_FAKE) == "done\n"
    env = {"CLIPYARD_REDIS_URL": valkey_url, "CLIPYARD_KEY_PREFIX": prefix}
    assert python(bare, ASKS_REDIS, **env) == "nobody\n"
    [row] = json.loads(python(bare, PRINTS))
    assert len(row["vector"]) == 16


def test_a_consumers_own_modules_stay_theirs(bare):
    program = "import api_client, tasks, worker; print(tasks.MINE, worker.MINE)"
    assert python(bare, program).split() == ["tasks", "worker"]


def test_the_command_is_there_and_says_where_the_worker_is_not(bare):
    command = str(bare / ".venv" / "bin" / "clipyard")
    assert "quickstart" in run([command, "--help"], cwd=bare)
    for wanted in ("up", "quickstart"):
        argv = [command, wanted]
        done = subprocess.run(argv, cwd=bare, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        told = "error: the worker is not here: run from a checkout of Clipyard\n"
        assert done.stderr == told
    assert not (bare / "out").exists()
