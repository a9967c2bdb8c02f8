"""eighth.c: compiled where a C compiler is at hand, and done without elsewhere.

    python -m worker.datapath.native

is what `make` and the image do. The name of what comes out says of which source, so that nobody
ever loads what was compiled from another.
"""

import ctypes
import hashlib
import os
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

_SOURCE = Path(__file__).with_name("eighth.c")
_FLAGS = ("-O2", "-shared", "-fPIC")


@cache
def library() -> ctypes.CDLL | None:
    """What was compiled here, if anything."""
    try:
        return ctypes.CDLL(str(_compiled()))
    except OSError:
        return None


def compiler() -> list[str]:
    """The command, which CC in the environment may name."""
    return shlex.split(os.environ.get("CC", "cc"))


def compile_to(file: Path, *flags: str) -> str | None:
    """Why there is none after all, or None.

    Args:
        flags: for the compiler, beside ours.
    """
    fresh = file.with_suffix(f".{os.getpid()}")
    command = [*compiler(), *_FLAGS, *flags]
    try:
        subprocess.run(
            [*command, "-o", fresh, _SOURCE], check=True, stderr=subprocess.PIPE, text=True
        )
        fresh.rename(file)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    except subprocess.CalledProcessError as error:
        return str(error.stderr).strip()
    return None


def _compiled() -> Path:
    version = hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:12]
    return _SOURCE.with_name(f"eighth-{version}.so")


def main() -> None:
    """Compiles it, unless that was done."""
    file = _compiled()
    if file.exists():
        return
    if trouble := compile_to(file):
        sys.exit(f"large JPEGs will take twice as long: eighth.c was not compiled ({trouble})")
    for other in _SOURCE.parent.glob("eighth-*.so"):
        if other != file:
            other.unlink()


if __name__ == "__main__":
    main()
