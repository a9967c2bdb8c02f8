"""References that are enough to fetch an item again, in this job or in one years later.

/photos/a.jpg                       a file that the worker can open
/shards/7.tar::b.jpg@1024+53311     a member of a tar file: its first byte, its length
https://host/c.jpg                  left to the picture reader and its guard
s3://bucket/d.jpg                   anything else that fsspec opens

But texts.jsonl:7, the seventh text of a file, leads nowhere: a job's manifest has the text itself.
"""

import os
import re
import tarfile
from pathlib import Path

from pydantic import ValidationError

from api_client.wire.errors import (
    ImageForbidden,
    ImageMissing,
    ImageTooLarge,
    ImageUnreadable,
    JobRefused,
    StoreDown,
    first_mistake,
)
from api_client.wire.messages import PathRef, UrlRef

from ..doors import Doors
from . import Content

# The file ends at the first `.tar`, for both may have a `::` in their names.
_MEMBER = re.compile(
    r"(?P<file>.+?\.tar|.+?)::(?P<name>.+)@(?P<begin>\d{1,18})\+(?P<length>\d{1,18})", re.DOTALL
)
_TEXT = re.compile(r"(?P<file>[^/]+):\d+")


def member(file: Path, name: str, *, begin: int, length: int) -> str:
    """The reference of a tar file's member."""
    return f"{file}::{name}@{begin}+{length}"


def text(file: Path, row: int) -> str:
    """The reference of a file's text."""
    return f"{file.name}:{row}"


def file_of_text(ref: str) -> str | None:
    """The name of the file that a text is of; None: it is another reference."""
    found = _TEXT.fullmatch(ref)
    return found and found["file"]


def content(ref: str, doors: Doors) -> Content:
    """What a reference leads to.

    Raises:
        ImageMissing, ImageForbidden: no archive is there or it has the member elsewhere, or the
            worker may not open it.
        ImageTooLarge: the member has more bytes than a picture may have.
        ImageUnreadable: it is longer than an address may be, or no text.
        StoreDown: it cannot be read at the moment.
    """
    try:
        if "://" in ref:
            return _url(ref)
        if found := _MEMBER.fullmatch(ref):
            file, length = doors.reading(found["file"]), int(found["length"])
            if length > doors.max_image_bytes:
                raise ImageTooLarge(
                    f"the member of {str(file)!r} has more than {doors.max_image_bytes} bytes"
                )
            return _part(file, found["name"], int(found["begin"]), length)
    except JobRefused as refused:
        raise ImageForbidden(str(refused)) from None
    return PathRef.model_construct(path=ref)  # a file's name need not be fit for a message


def _url(ref: str) -> UrlRef:
    try:
        return UrlRef(url=ref)
    except ValidationError as error:
        raise ImageUnreadable(f"{ref!r:.100} is no URL: {first_mistake(error)}") from None


class FolderEmpty(StoreDown):
    """Nothing is where a file should be: its file system is away, or all of it was removed."""


def stranded(ref: str) -> Path | None:
    """The folder in which the way to a missing file ends, if it is empty: as a mount point is while
    its file system is away."""
    if "://" in ref:
        return None
    found = _MEMBER.fullmatch(ref)
    try:
        way = Path(os.path.realpath(found["file"] if found else ref))
        end = next(folder for folder in (way, *way.parents) if folder.is_dir())
        with os.scandir(end) as entries:
            return None if any(entries) else end
    except (OSError, ValueError):  # it cannot be looked into, or named
        return None


def _part(file: Path, name: str, begin: int, length: int) -> bytes:
    """The bytes of a member, if it still is where it was: its header ends where they begin."""
    try:
        with file.open("rb") as archive:
            there = os.fstat(archive.fileno()).st_size  # memory is taken for all that is asked for
            start = max(0, min(begin, there) - tarfile.BLOCKSIZE)
            found = os.pread(archive.fileno(), min(length, there) + tarfile.BLOCKSIZE, start)
    except (FileNotFoundError, IsADirectoryError):
        raise ImageMissing(f"there is no archive {str(file)!r}") from None
    except OSError as error:
        raise StoreDown(f"{file}: {error.strerror}") from error
    header, body = found[: tarfile.BLOCKSIZE], found[tarfile.BLOCKSIZE :]
    if not _is_of(header, name, length):
        raise ImageMissing(f"{name!r} is not where it was in {str(file)!r}: submit a new job")
    return body


def _is_of(header: bytes, name: str, length: int) -> bool:
    try:
        held = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    is_told = name.isascii() and len(name) <= tarfile.LENGTH_NAME  # in full, by every writer
    return held.size == length and (held.name == name or not is_told)
