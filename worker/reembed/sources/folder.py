"""The pictures below a folder, or those that a glob finds."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from api_client.wire.endings import PICTURES
from api_client.wire.errors import JobRefused, StoreDown
from api_client.wire.jobs import Place

from ..doors import Doors
from ..items import Item
from ..plugins import options_of
from . import Content
from .refs import content

MAGIC = frozenset("*?[")


class Folder:
    """A folder with all below it, sorted within each folder; ids are paths relative to it.

    `where` may be a glob such as `/photos/2024-*/**/*.jpg`: `**` crosses folders. Without one the
    endings of picture formats count. Names that begin with a dot, and links to folders, are left
    out. Memory: the names of one folder at a time.
    """

    def __init__(self, place: Place, doors: Doors) -> None:
        options_of(place)
        # A folder may be called `Trip [2024]`.
        base, pattern = (place.where, "") if os.path.isdir(place.where) else split(place.where)
        self._doors = doors
        self._base = doors.reading(base)
        self._match = matching(pattern)

    def walk(self) -> Iterator[Item]:
        if not self._base.is_dir():
            raise JobRefused(f"there is no folder {str(self._base)!r} on this worker")
        return self._below(self._base, "")

    def _below(self, folder: Path, inside: str) -> Iterator[Item]:
        try:
            with os.scandir(folder) as found:
                entries = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in found)
        except OSError as error:
            sentence = f"{str(folder)!r} cannot be read: {error.strerror}"
            if isinstance(error, PermissionError):
                raise JobRefused(sentence) from None
            raise StoreDown(sentence) from None  # its server is away, or it was removed just now
        for name, is_folder in entries:
            if name.startswith("."):
                continue
            if is_folder:
                yield from self._below(folder / name, f"{inside}{name}/")
            elif self._match(inside + name):
                yield Item(id=inside + name, ref=f"{folder}/{name}")

    def fetch(self, item: Item) -> Content:
        return content(item.ref, self._doors)


def split(where: str) -> tuple[str, str]:
    """A glob's folder and the pattern below it; the pattern is empty for a plain folder."""
    parts = where.split("/")
    fixed = next((i for i, part in enumerate(parts) if MAGIC & set(part)), len(parts))
    return "/".join(parts[:fixed]) or "/", "/".join(parts[fixed:])


def matching(pattern: str) -> Callable[[str], bool]:
    """Whether a path below the base is meant: by a glob, or by the endings of pictures.

    Raises:
        JobRefused: it is no glob.
    """
    if not pattern:
        return lambda path: path.lower().endswith(PICTURES)
    *folders, name = pattern.split("/")
    if name == "**":
        folders, name = [*folders, name], "*"
    runs = [""]
    for step in folders:
        if step == "**":
            runs.append("")
        else:
            runs[-1] += f"{_step(step)}/"
    runs[-1] += _step(name)
    try:
        wanted = re.compile(_with_gaps(runs, "(?:[^/]*/)*"), re.DOTALL)
    except re.error as error:
        raise JobRefused(f"{pattern!r} cannot be a glob: {error.msg}") from None
    return lambda path: wanted.fullmatch(path) is not None


def _step(glob: str) -> str:
    """One step of a glob as an expression; unlike `fnmatch`'s, `*` does not cross a slash."""
    pieces = [""]
    for part in re.split(r"(\*+|\?|\[[^\]]+\])", glob):
        match part[:1]:
            case "*":
                pieces.append("")
            case "?":
                pieces[-1] += "[^/]"
            case "[":
                pieces[-1] += "(?!/)" + part.replace("[!", "[^")
            case _:
                pieces[-1] += re.escape(part)
    return _with_gaps(pieces, "[^/]*")


def _with_gaps(pieces: Sequence[str], gap: str) -> str:
    """These in their order, with anything between.

    Each but the last is where it comes first, for good. With all ways tried, `*?*?*?*?*?*?*?*.jpg`
    would take hours for one name, and nothing else of the worker would run meanwhile.
    """
    first, *rest = pieces
    between = "".join(f"(?>{gap}?{piece})" for piece in rest[:-1] if piece)
    return first + between + "".join(gap + last for last in rest[-1:])
