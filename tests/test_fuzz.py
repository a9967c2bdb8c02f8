"""The fuzzer, as a process of its own: by then another test may have taken the memory it bounds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import fuzz

ROOT = Path(__file__).parents[1]
FILES, SEED = 300, 7
Ran = tuple[subprocess.CompletedProcess[str], Path]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """What it said, and its files."""
    kept = tmp_path_factory.mktemp("kept")
    options = f"--files {FILES} --seed {SEED} --keep {kept}".split()
    argv = [sys.executable, "-m", "tests.fuzz", *options]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False), kept


def test_broken_pictures_end_as_pixels_or_as_item_errors(ran: Ran) -> None:
    done, _ = ran
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads(done.stdout)["outcomes"]
    assert outcomes.keys() == {"pixels", "image_unreadable", "image_too_large"}
    assert outcomes["pixels"] > 30


def test_a_file_of_a_seed_is_always_the_same(ran: Ran) -> None:
    _, kept = ran
    fuzz.seed_files.cache_clear()
    for number in range(FILES):
        assert fuzz.numbered(SEED, number) == (kept / f"{SEED}-{number}").read_bytes(), number


def test_a_run_that_takes_too_much_is_not_well() -> None:
    report = fuzz.Report(files=1, seed=1)
    assert report.ok
    report.grown_mib = fuzz.MOST_MIB
    assert not report.ok
    report.grown_mib, report.slowest_s = 0, fuzz.MOST_S
    assert not report.ok
