"""The content of files, as SHA-256 in hex: fingerprints are made of it, so it never changes."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def sha256(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def lines(folder: Path, files: Iterable[Path]) -> list[str]:
    """Of those that are files, by name: each with its place in the folder and its content."""
    return [f"{f.relative_to(folder)} {sha256(f)}" for f in sorted(files) if f.is_file()]
