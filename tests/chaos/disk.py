"""A small disk of our own that can be full."""

import subprocess
from contextlib import suppress
from pathlib import Path

CHUNK = b"\0" * 2**20


class Disk:
    """A tmpfs at `folder`; where this process may not mount one, a plain folder.

    Attributes:
        is_own: whether it can be filled.
    """

    def __init__(self, folder: Path, *, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        argv = ("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder))
        self.is_own = subprocess.run(argv, capture_output=True, check=False).returncode == 0
        self._filler = folder / "filler"

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_own:
            subprocess.run(("umount", "--lazy", str(self.folder)), check=False)

    def fill(self) -> None:
        assert self.is_own, "somebody else's disk is not ours to fill"
        with suppress(OSError), self._filler.open("wb", buffering=0) as filler:
            while filler.write(CHUNK):
                pass

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)
