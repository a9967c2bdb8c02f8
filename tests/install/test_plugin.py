"""The sample plug-in, from its wheel in an environment of its own, under this tree's worker."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json
from api_client.wire.messages import Kind
from PIL import Image
from worker.backends.registry import Families
from worker.backends.base import Placement
from worker.settings import WorkerSettings

families = Families(Placement(), WorkerSettings.read().backends)
(entry,) = families.discover()
model = families.load(entry)
model.lift()
image = model.run(Kind.IMAGE, [model.prepare_image(Image.new("RGB", (9, 9), "red"))])
text = model.run(Kind.TEXT, [model.prepare_text("a Red circle")])
[family] = [family for family in families.status() if family.name == "colour_words"]
print(json.dumps([entry.id, entry.backend, entry.kinds, image.tolist(), text.tolist(),
                  family.origin, family.state]))
"""


def run(*argv, **env):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """A bare environment with the plug-in's wheel in it; the worker's needs are lent to it."""
    folder = tmp_path_factory.mktemp("plugin")
    wheels, bare = folder / "wheels", folder / "venv"
    uv = (sys.executable, "-m", "uv")
    run(*uv, "build", "--wheel", "-o", str(wheels), str(ROOT / "examples" / "plugin"))
    venv.create(bare, symlinks=True)
    interpreter = str(bare / "bin" / "python")
    (wheel,) = wheels.glob("*.whl")
    run(*uv, "pip", "install", "--python", interpreter, "--no-deps", str(wheel))
    site = run(interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "lent.pth").write_text(sysconfig.get_path("purelib"))
    return interpreter


def test_the_sample_plug_in_serves_from_its_wheel(python):
    said = json.loads(run(python, "-c", PROGRAM, CLIPYARD_BACKENDS='["colour_words"]'))
    model_id, backend, kinds, image, text, origin, state = said
    assert (model_id, backend, kinds) == ("colour_words/rgb", "colour_words", ["image", "text"])
    assert image == text == [[255, 0, 0, 1]]
    assert (origin, state) == ("clipyard-colour-words 1.0", "ready")


def test_it_keeps_the_contract(python):
    said = run(
        python,
        *("-m", "worker.backends.check", "colour_words"),
        CLIPYARD_BACKENDS='["colour_words"]',
        CLIPYARD_DEVICE="cpu",
    )
    assert said.count("passed") == 9
