"""The directory a stack lives in: private, and held by one stack at a time."""

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from ..wire.home import STACK_FILE
from .errors import InUse, StackError

LOCK_PATIENCE_S = 1.0  # a holder that was just killed lets go within milliseconds


def private_directory(path: Path) -> Path:
    """`path`, made if need be, open to its owner alone.

    Raises:
        StackError: it cannot be made, or belongs to somebody else.
    """
    with _said_plainly(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)
    return path


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold the file for this process, made if need be with mode 0600; yields its descriptor.

    The kernel keeps the lock for as long as anyone has the descriptor open, and no longer: a
    dead holder leaves the file behind at most, never the lock.

    Raises:
        InUse: somebody else holds it.
    """
    descriptor = _locked(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    give_up_at = time.monotonic() + LOCK_PATIENCE_S
    while True:
        with _said_plainly(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed the name between our open and our lock.
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                os.fchmod(descriptor, 0o600)
                return descriptor
        except (BlockingIOError, FileNotFoundError):
            pass
        os.close(descriptor)
        if time.monotonic() > give_up_at:
            raise InUse(
                f"another stack runs in {path.parent}{_whose(path)}: stop it, "
                "or set CLIPYARD_HOME to another folder"
            )
        time.sleep(0.02)


def _whose(path: Path) -> str:
    with suppress(OSError, ValueError, KeyError, TypeError):  # it says nothing yet
        return f" (process {int(json.loads(path.read_text())['pid'])})"
    return ""


def rewrite(descriptor: int, text: str) -> None:
    """Replace what a held file says, in place: a new file would not carry the lock."""
    with _said_plainly("the stack's home, CLIPYARD_HOME"):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


@contextmanager
def stack_file(home: Path) -> Iterator[int]:
    """Hold the home, by the very file that announces the stack; it goes when the stack goes.

    Raises:
        InUse: another stack runs in this home.
    """
    with _said_plainly(home):  # an existing home keeps its mode: it may hold other things
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / STACK_FILE
    with held(path) as descriptor:
        rewrite(descriptor, "")
        try:
            yield descriptor
        finally:
            path.unlink(missing_ok=True)


def announce(descriptor: int, url: str) -> None:
    """Write where the stack listens, for clients that were told of no Redis.

    Of the process ids only the supervisor's is written: it alone stays the same.
    """
    stack = {"url": url, "pid": os.getpid(), "started_at": datetime.now(UTC).isoformat()}
    rewrite(descriptor, json.dumps(stack))


@contextmanager
def _said_plainly(place: Path | str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StackError(f"cannot use {place}: {error.strerror}") from error
