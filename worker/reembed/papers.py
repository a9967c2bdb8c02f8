"""The folder of one job: its specification, manifest, markers and report, each written whole."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO
from uuid import uuid4

from api_client.wire.errors import JobRefused, StoreDown
from api_client.wire.jobs import JobSpec

TEMPORARY = ".tmp-"
BESIDE = "_job-"  # before a job's id: its papers, where they lie in its sink
REOPENED = -1  # no round
WHAT = {"id", "source", "sink", "model", "chunk_size"}  # what two submissions of a job agree on


def temporary_for(path: Path) -> Path:
    """A name of this writer's own beside it; what is left under it is for `tidy`."""
    return path.with_name(f"{TEMPORARY}{path.name}.{uuid4().hex[:12]}")


def left_of(path: Path) -> list[Path]:
    """What writers who were killed have left that was to be this file, whole or not."""
    return sorted(path.parent.glob(f"{TEMPORARY}{path.name}.*"))


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
        for left in folder.rglob(f"{TEMPORARY}*"):
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


@dataclass(frozen=True)
class Loss:
    """An item without a vector. `row` is its position in the chunk."""

    row: int
    id: str
    code: str
    message: str
    retryable: bool = False


@dataclass(frozen=True)
class Marker:
    """What became of a chunk, written after the sink has it.

    Attributes:
        round: of retries; 0 for the first try, REOPENED when the chunk is to be done again.
        at: unix seconds, by Redis's clock as the job's other times.
        cut: texts that were longer than the model reads, also of rounds before.
        cut_rows: their positions in the chunk; earlier versions wrote none.
        held: items whose vector an earlier round had got; not written.
    """

    chunk: int
    items: int
    losses: Sequence[Loss]
    round: int
    worker: str
    at: float
    stages: Mapping[str, float]
    cut: int = 0
    cut_rows: Sequence[int] = ()
    held: int = 0

    @property
    def done(self) -> int:
        return self.items - len(self.losses)


# Fields of a marker that have come later: who does not know one takes a marker with it for none.
LATER = ("cut", "cut_rows")
FIELDS = {field.name for field in fields(Marker)}


class Papers:
    """Reads and writes the folder. Names within it are this class's business alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = folder / "manifest"

    def begin(self, spec: JobSpec) -> None:
        """Lay the specification down.

        Raises:
            JobRefused: the folder belongs to another job, if only by what it asked for: the markers
                say nothing of this one's items.
        """
        file, text = self.folder / "job.json", spec.model_dump_json(indent=2).encode()
        with store_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            lay(file, text)  # of two jobs that come at once one is first
        held = self.spec()
        if held.model_dump(include=WHAT) != spec.model_dump(include=WHAT):
            raise JobRefused(
                f"{self.folder} holds the papers of another job {held.id!r}: submit this one "
                "under another id"
            )
        if held != spec:
            with lasting(file) as out:
                out.write(text)

    def spec(self) -> JobSpec:
        with store_errors(self.folder):
            return JobSpec.read((self.folder / "job.json").read_bytes())

    def mark(self, marker: Marker) -> None:
        told = asdict(marker)
        del told["held"]
        for later in LATER:
            if not told[later]:
                del told[later]
        file = self._marker(marker.chunk)
        with store_errors(self.folder):
            for folder in (file.parent.parent, file.parent):
                folder.mkdir(exist_ok=True)
        with replacing(file) as out:
            out.write(json.dumps(told, ensure_ascii=False).encode())

    def marker(self, chunk: int) -> Marker | None:
        """What became of a chunk, or None while nothing has."""
        try:
            found = json.loads(self._marker(chunk).read_bytes())
            losses = tuple(Loss(**loss) for loss in found.pop("losses"))
            known = {name: found[name] for name in found.keys() & FIELDS}
            return Marker(losses=losses, **known)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreDown(f"{self.folder}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None  # cut short when the machine lost its power, or not ours

    def reopen(self, chunk: int) -> None:
        """Make a chunk count as not finished; what was lost or cut of it stays known."""
        marker = self.marker(chunk)
        if marker and (marker.losses or marker.cut_rows):
            self.mark(replace(marker, round=REOPENED))
        else:  # earlier versions take a marker without losses for the chunk's end
            with store_errors(self.folder):
                self._marker(chunk).unlink(missing_ok=True)

    def report(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file for people."""
        with replacing(self.folder / name) as out:
            write(out)

    def _marker(self, chunk: int) -> Path:
        # A thousand to a folder: file systems and people cope.
        return self.folder / "chunks" / f"{chunk // 1000:05d}" / f"{chunk:08d}.json"
