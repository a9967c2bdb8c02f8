"""A symbolic link as the name of what is in use: it leads somewhere else in one step."""

import os
from pathlib import Path

from api_client.wire.errors import JobRefused

from .doors import Doors
from .files import store_errors, temporary_for


def named(folder: Path, alias: str, doors: Doors, *, ending: str = "") -> Path:
    """The link of that name in a folder.

    Raises:
        JobRefused: the name is a path, or jobs may not write into the folder.
    """
    if alias == ".." or Path(alias).name != alias or "\0" in alias:
        raise JobRefused(f"{alias!r} cannot be the name of a link; use one without folders in it")
    return doors.writing(str(folder)) / f"{alias}{ending}"


def lead(link: Path, target: Path) -> None:
    """Let the link lead to the target.

    Raises:
        JobRefused: there is a file or folder of that name.
    """
    leads_to(link)
    temporary = temporary_for(link)
    with store_errors(link.parent):
        temporary.symlink_to(os.path.relpath(target, link.parent))
        os.replace(temporary, link)


def leads_to(link: Path) -> str | None:
    """Where it leads, or None if there is no such link.

    Raises:
        JobRefused: there is a file or folder of that name.
    """
    if link.is_symlink():
        return os.path.realpath(link)
    if link.exists():
        raise JobRefused(f"{link} is no symbolic link, so it cannot be switched: move it aside")
    return None
