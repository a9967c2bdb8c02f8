"""Prepared checkpoints: copies in the serving form that a load can map at once."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .content import sha256

LIMIT_BYTES = 32 * 2**30  # a dozen of the largest models that people ask for


class Checkpoints:
    """A folder of prepared files and of what was once worked out about the originals.

    An original is known by path, size, and when it was written and last changed: archives and
    images give the files in them any time of writing, but nobody sets the other. Several processes
    may share the folder: each file is made by one of them under a lock and appears whole or not at
    all.

    Args:
        folder: made when first needed.
        limit_bytes: of all prepared files together; those used longest ago go first.
    """

    def __init__(self, folder: Path, *, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes

    @contextmanager
    def prepared(self, source: Path, *, form: str, write: Callable[[Path], None]) -> Iterator[Path]:
        """The prepared file, made by `write(path)` if need be; inside the block it stays.

        Args:
            form: what it was made into; another form is another file.

        Raises:
            OSError: it could not be written; nothing is left behind.
        """
        file = self._path(source, form)
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(file, fcntl.LOCK_EX):
            if not _is_whole(file):
                self._make(file, write)
            _touch(file)
            yield file

    def remember(self, file: Path, what: str, compute: Callable[[], str]) -> str:
        """`compute()`, or what it answered when the file was the same as now.

        Of a prepared file too. What is in one goes by its name, and no longer by its original,
        which somebody may have replaced meanwhile.
        """
        is_prepared = file.parent == self._folder
        note = self._folder / f"{file.stem if is_prepared else _key(file, what)}.json"
        try:
            return str(json.loads(note.read_text())[what])
        except (OSError, ValueError, KeyError, TypeError):
            answer = compute()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = note.with_suffix(f".{os.getpid()}.note")
            temporary.write_text(json.dumps({what: answer, "of": str(file)}))
            temporary.replace(note)
        except OSError:
            pass  # it will be worked out again
        return answer

    def sha256(self, file: Path) -> str:
        """Of the file's bytes, in hex; read once per version of the file."""
        return self.remember(file, "sha256", lambda: sha256(file))

    def _path(self, source: Path, form: str) -> Path:
        return self._folder / f"{_key(source, form)}.safetensors"

    def _make(self, file: Path, write: Callable[[Path], None]) -> None:
        for left_by_a_crash in self._folder.glob("*.tmp"):
            if left_by_a_crash.name.startswith(file.stem):
                left_by_a_crash.unlink(missing_ok=True)
            else:  # perhaps of a source that was replaced since, and is never asked for again
                _remove_unless_held(left_by_a_crash)
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        try:
            write(temporary)
            _flush(temporary)
            file.with_suffix(".json").unlink(missing_ok=True)  # of one that was trimmed
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
        self._trim(keep=file)

    def _trim(self, *, keep: Path) -> None:
        files = []
        for file in self._folder.glob("*.safetensors"):
            with suppress(FileNotFoundError):  # another process trims as well
                status = file.stat()
                files.append((status.st_atime_ns, status.st_size, file))
        excess = sum(size for _, size, _ in files) - self._limit_bytes
        for _, size, file in sorted(files):
            if excess > 0 and file != keep:
                excess -= size
                _remove_unless_held(file)  # whoever has it mapped keeps it


def _is_whole(file: Path) -> bool:
    """Whether it is there and as long as its header says."""
    try:
        with safe_open(file, framework="numpy"):
            return True
    except (OSError, SafetensorError):
        return False


def _key(source: Path, form: str) -> str:
    status = source.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    identity = json.dumps([str(source.resolve()), status.st_size, *times, form])
    return hashlib.sha256(identity.encode()).hexdigest()[:32]


def _remove_unless_held(file: Path) -> None:
    """By another process, which writes it or is about to map it; or by another user."""
    with suppress(OSError), _locked(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
        file.unlink(missing_ok=True)


@contextmanager
def _locked(file: Path, how: int) -> Iterator[None]:
    """A prepared file, whole or half written."""
    with file.with_name(f"{file.name.partition('.')[0]}.lock").open("w") as lock:
        fcntl.flock(lock, how)
        yield


def _touch(file: Path) -> None:
    """Counts as used now, on mounts without access times too; the time of change stays."""
    status = file.stat()
    os.utime(file, ns=(max(status.st_atime_ns, time.time_ns()), status.st_mtime_ns))


def _flush(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())
