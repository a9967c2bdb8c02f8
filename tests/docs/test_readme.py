"""The README is true: its commands run as they are written."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(first_word):
    lines = (
        line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()
    )
    return [line for line in lines if line.startswith(first_word)]


@pytest.fixture
def home(tmp_path):
    """A home folder with pictures in it."""
    pictures = tmp_path / "Pictures"
    pictures.mkdir()
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
        Image.new("RGB", (60, 50), colour).save(pictures / f"{name}.jpg")
    return tmp_path


def run(argv, home, **env):
    env = {**os.environ, "HOME": str(home), **env}
    done = subprocess.run(argv, cwd=home, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [c for c in commands("clipyard") if c != "clipyard up"])
def test_a_command_of_the_readme_runs(command, running, home, client):
    words = [os.path.expandvars(word.replace("~", str(home))) for word in shlex.split(command)]
    argv = [sys.executable, "-m", "api_client", *words[1:]]
    # `clipyard doctor` looks for the worker's settings in the checkout.
    said = run(argv, home, CLIPYARD_REDIS_URL=running.url, PYTHONPATH=str(ROOT))
    assert said
    if "switch" in words:  # other tests count on the stack's own default
        client.switch("fake/vision")


def test_the_python_of_the_readme_runs(running, home):
    [program] = blocks("python")
    run(
        [sys.executable, "-c", program],
        home / "Pictures",
        CLIPYARD_REDIS_URL=running.url,
        PYTHONPATH=str(ROOT),
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", [c for c in commands("make") if "test" not in c])
def test_make_quickstart_does_what_the_readme_says(command, models, home):
    words = [word.replace("~", str(home)) for word in shlex.split(command)]
    out = home / "out"
    variables = {"CLIPYARD_MODELS_DIR": str(models / "by-tag"), "CLIPYARD_OFFLINE": "true"}
    run(["make", "-C", str(ROOT), *words[1:], f"OUT={out}"], home, **variables)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["failed"] == 0
    assert (out / "contact-sheet.png").is_file()
    if "IMAGES" not in command:
        assert summary["top1"] >= 0.95
