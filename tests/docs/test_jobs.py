"""The page about jobs is true: what a job wrote is found by a text as it is written there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "jobs.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
[PARQUET] = [block for block in BLOCKS if "to_table(filter" in block]
[LANCE] = [block for block in BLOCKS if "embed_texts" in block]
[NEAREST] = re.findall(r"^\| Parquet, .* \| `(.*)` \|$", PAGE, re.MULTILINE)


@pytest.fixture
def pictures(tmp_path):
    for colour in ("red", "blue", "green"):
        Image.new("RGB", (60, 50), colour).save(tmp_path / f"{colour}.png")
    return tmp_path


def test_what_jobs_wrote_is_found_by_a_text(running, client, pictures):
    for sink in (f"lancedb:{pictures}/lance#photos", pictures / "vectors"):
        job = client.reembed(pictures, sink=sink, model="shapes/demo")
        assert job.wait().done == 3
    program = f"{LANCE}{PARQUET}print({NEAREST})"
    program = program.replace("/data", str(pictures)).replace("ViT-B-32/openai", "shapes/demo")
    env = {"CLIPYARD_REDIS_URL": running.url, "PYTHONPATH": str(ROOT)}
    said = subprocess.check_output([sys.executable, "-c", program], env=env, text=True)
    for colour in ("red", "blue", "green"):
        assert said.count(f"{pictures}/{colour}.png") == 2
