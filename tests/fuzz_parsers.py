"""Atheris looks for inputs on which tests/test_parsers.py fails, guided by what it reaches.

    python -m tests.fuzz --parsers 20000 --seed 1

An input that takes longer than `HANG_S`, or all of them more memory than `MOST_MIB`, fails as well.
Needs `pip install atheris` and a Python that it has wheels for.
"""

import json
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HANG_S = 10
MOST_MIB = 2048
SEEDS = 50
LONGEST = 8192  # bytes; hypothesis makes the test's input of them


def run(*, runs: int, seed: int) -> bool:
    """One process and one JSON line for each test; whether none failed."""
    from tests import test_parsers

    names = [name for name, one in vars(test_parsers).items() if hasattr(one, "hypothesis")]
    return all([_run(name, runs, seed) for name in names])


def _run(name: str, runs: int, seed: int) -> bool:
    limits = (f"-timeout={HANG_S}", f"-rss_limit_mb={MOST_MIB}", f"-max_len={LONGEST}")
    command = [sys.executable, "-m", "tests.fuzz_parsers", name, f"-runs={runs}", f"-seed={seed}"]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as corpus:
        _sow(Path(corpus), random.Random(seed))
        done = subprocess.run(
            [*command, *limits, "-len_control=0", corpus],
            capture_output=True,
            text=True,
            check=False,
        )
    said = done.stderr
    line = {
        "parser": name.removeprefix("test_"),
        "seed": seed,
        "runs": _last(r"Done (\d+) runs", said),
        "edges": _last(r"cov: (\d+)", said),
        "peak_mib": _last(r"rss: (\d+)Mb", said),
        "seconds": round(time.monotonic() - begun),
        "failed": "" if done.returncode == 0 else said[-2000:],
    }
    print(json.dumps(line), flush=True)
    return done.returncode == 0


def _sow(corpus: Path, dice: random.Random) -> None:
    """Something to begin with: of a few bytes hypothesis makes nothing."""
    for number in range(SEEDS):
        (corpus / str(number)).write_bytes(dice.randbytes(dice.randrange(LONGEST)))


def _last(pattern: str, text: str) -> int:
    found = re.findall(pattern, text)
    return int(found[-1]) if found else 0


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["api_client", "worker"]):
        from tests import test_parsers
    one_input = getattr(test_parsers, sys.argv.pop(1)).hypothesis.fuzz_one_input
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
