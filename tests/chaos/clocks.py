"""Clocks that can be moved, one for each process, by a small library that is loaded before libc."""

import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("clock.c")


class Clocks:
    """The clocks in a folder, a file each; none where this machine has no C compiler."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._library = folder / "clock.so"
        compiler = shutil.which("cc")
        self.can_move = compiler is not None
        if compiler is not None:
            argv = (compiler, "-shared", "-fPIC", "-O2", SOURCE, "-o", self._library)
            subprocess.run(argv, check=True)

    def env(self, name: str) -> dict[str, str]:
        """What gives a process the clock of that name."""
        if not self.can_move:
            return {}
        self.move(name, by_s=0)
        return {"LD_PRELOAD": str(self._library), "CHAOS_CLOCK": str(self._folder / name)}

    def move(self, name: str, *, by_s: float) -> None:
        """Off the true time by so much."""
        (self._folder / name).write_text(f"{by_s:.0f}")
