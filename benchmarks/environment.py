"""An environment of its own for each peer, kept beside the fixtures."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from . import fixtures


class NoPeer(Exception):
    """A peer cannot be had or does not start here."""


def interpreter(peer: str, release: str, *needs: str) -> Path:
    """The interpreter of the peer's own environment, built once, with our torch.

    Raises:
        NoPeer: it cannot be built here.
    """
    below = fixtures.folder() / "peers" / f"{peer}-{release}-torch-{version('torch')}"
    python, built = below / "bin" / "python", below / "built"
    if not built.exists():
        torch = [f"{name}=={version(name)}" for name in ("torch", "torchvision")]
        _uv(peer, "venv", "--quiet", "--clear", "--python", sys.executable, below)
        _uv(peer, "pip", "install", "--quiet", "--python", python, *needs, *torch)
        built.touch()
    return python


def _uv(peer: str, *arguments: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments], stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise NoPeer(
            f"nothing measured: {peer}'s environment was not built ({last_line(done.stderr)})"
        )


def offline() -> dict[str, str]:
    """Of a peer's process: it asks nobody else."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
