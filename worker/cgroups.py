"""The control groups of this process: its own, and those above it up to the root's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

__all__ = ["groups"]


def groups(controller: str, *, root: Path = Path("/")) -> Iterator[tuple[Literal[1, 2], Path]]:
    """The folders in which one controller's limits may stand, each with the version of its files.

    Args:
        root: where `proc` and `sys` are mounted.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    version: Literal[1, 2]
    for hierarchy, controllers, path in (line.split(":", 2) for line in lines):
        if hierarchy == "0":
            top, version = root / "sys/fs/cgroup", 2
        elif controller in controllers.split(","):
            top, version = root / "sys/fs/cgroup" / controller, 1
        else:
            continue
        # In a container the path is often the host's and not visible: then the mount's top is ours.
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield version, folder
