"""The wheel is the client: in a bare environment, beside a consumer's own `tasks` and `worker`."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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


def run(argv, cwd):
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(bare, program):
    return run([str(bare / ".venv" / "bin" / "python"), "-c", program], cwd=bare)


def test_the_wheel_holds_the_client_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        roots = {name.partition("/")[0] for name in archive.namelist()}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"api_client"}


def test_importing_it_loads_no_torch_and_nothing_heavy(bare):
    program = "import sys, api_client; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(python(bare, program).split())
    assert not loaded & {"torch", "open_clip", "celery", "numpy", "PIL"}


def test_using_the_client_never_needs_torch(bare):
    program = "import sys; from api_client import Client; print('torch' in sys.modules)"
    assert python(bare, program).strip() == "False"


def test_a_consumers_own_modules_stay_theirs(bare):
    program = "import api_client, tasks, worker; print(tasks.MINE, worker.MINE)"
    assert python(bare, program).split() == ["tasks", "worker"]


def test_the_command_is_there_and_says_where_the_worker_is_not(bare):
    command = str(bare / ".venv" / "bin" / "clipyard")
    assert "quickstart" in run([command, "--help"], cwd=bare)
    up = subprocess.run([command, "up"], cwd=bare, capture_output=True, text=True, check=False)
    assert up.returncode == 1
    assert "checkout" in up.stdout + up.stderr
    assert "Traceback" not in up.stderr
