"""The folder of one job: its specification, manifest, markers and report."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import BinaryIO

from api_client.wire.errors import JobRefused, StoreDown
from api_client.wire.jobs import JobSpec

from .files import lasting, lay, replacing, store_errors

REOPENED = -1  # no round
WHAT = {"id", "source", "sink", "model", "chunk_size"}  # what two submissions of a job agree on


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

    def stands(self, this_round: int) -> bool:
        """Whether nothing of the chunk is to be done in this round."""
        return self.round != REOPENED and (not self.losses or self.round == this_round)


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

    @property
    def has_report(self) -> bool:
        """Whether the job was over before, however it ended."""
        return (self.folder / "report.json").exists()

    def report(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file for people."""
        with replacing(self.folder / name) as out:
            write(out)

    def _marker(self, chunk: int) -> Path:
        # A thousand to a folder: file systems and people cope.
        return self.folder / "chunks" / f"{chunk // 1000:05d}" / f"{chunk:08d}.json"
