"""How much room a folder has."""

import shutil
from pathlib import Path

__all__ = ["free_bytes"]


def free_bytes(folder: Path) -> int:
    """There, or where it will be made.

    Raises:
        OSError: it cannot be looked at.
    """
    try:
        return shutil.disk_usage(folder).free
    except FileNotFoundError:
        return free_bytes(folder.parent)
