"""Files that appear under their names whole or not at all, and what is left of the others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from api_client.wire.errors import StoreDown

TEMPORARY, DIGITS = ".tmp-", 12  # of a writer's own, hexadecimal, at the end
BESIDE = "_job-"  # before a job's id: its papers, where they lie in its sink


def temporary_for(path: Path) -> Path:
    """A name of this writer's own beside it; what is left under it is for `tidy`."""
    return path.with_name(f"{TEMPORARY}{path.name}.{uuid4().hex[:DIGITS]}")


def left_of(path: Path) -> list[Path]:
    """What writers who were killed have left that was to be this file, whole or not."""
    return sorted(path.parent.glob(_left(path.name)))


def meant_in(folder: Path) -> set[Path]:
    """The files of a folder for which something is left."""
    left = folder.glob(_left("?*"))
    return {one.with_name(one.stem.removeprefix(TEMPORARY)) for one in left}


def _left(name: str) -> str:
    """A glob of temporary names, and of no file of people's own."""
    return f"{TEMPORARY}{name}.{'[0-9a-f]' * DIGITS}"


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that appears under its name, whole, at the end of the block, or not at all.

    Its folder is not made: one that was moved away, or is not mounted, would be there twice.

    Raises:
        StoreDown: the folder is away, not writable, or full.
    """
    temporary = temporary_for(path)
    with store_errors(path.parent):
        try:
            with temporary.open("wb") as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextmanager
def lasting(path: Path) -> Iterator[BinaryIO]:
    """As `replacing`, and on the disk before it has its name: for what nothing could make again.

    Raises:
        StoreDown: the folder is away, not writable, or full.
    """
    with replacing(path) as file:
        yield file
        _to_disk(file)


def lay(path: Path, content: bytes) -> None:
    """Lay a file down, lasting, unless somebody else was first.

    Raises:
        StoreDown: the folder is away, not writable, or full.
    """
    with store_errors(path.parent):
        temporary = temporary_for(path)
        try:
            with temporary.open("wb") as file:
                file.write(content)
                _to_disk(file)
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without hard links
                os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def tidy(folder: Path) -> None:
    """Remove what writers who were killed have left behind.

    One who is just at it finds the store down, which is worth another try; the papers of jobs that
    lie within are left alone, as a planner is at it for hours.
    """
    with store_errors(folder):
        for left in folder.rglob(_left("?*")):
            of_another = any(step.startswith(BESIDE) for step in left.relative_to(folder).parts)
            if not of_another and not left.is_dir():
                left.unlink(missing_ok=True)


@contextmanager
def store_errors(what: object) -> Iterator[None]:
    """Says of an operating system's refusal that the store is down, which is worth another try."""
    try:
        yield
    except OSError as error:
        raise StoreDown(f"{what}: {error.strerror or error}") from error
