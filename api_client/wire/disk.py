"""How much room a folder has, and whether for us."""

import os
import shutil
from pathlib import Path

__all__ = ["free_bytes", "may_write"]


def free_bytes(folder: Path) -> int:
    """There, or where it will be made.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        return shutil.disk_usage(folder).free
    except FileNotFoundError:
        return free_bytes(folder.parent)


def may_write(folder: Path) -> bool:
    """Whether this process may write there, or make the folder."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)
