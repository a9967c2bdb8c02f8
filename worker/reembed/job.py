"""One job on one worker: its parts, and the three things a worker does for it."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from threading import Lock

from api_client.wire.errors import ClipyardError, JobRefused
from api_client.wire.jobs import FOLDERS, JobSpec, JobState

from ..datapath.images import ImageReader
from ..delivery.suspects import Start
from ..runtime import Runtime
from . import manifest, report
from .check import compare, sound
from .doors import Doors
from .embedding import embed, refuse_another_kind, refuse_another_space
from .files import BESIDE, tidy
from .items import Chunk, Item, Shard, Space, Vector, storable
from .ledger import JobLedger
from .migration import refuse_taken, refuse_unready
from .neighbours import neighbours
from .papers import REOPENED, Loss, Marker, Papers
from .sinks import Settling, Sink, open_sink
from .sources import Source, open_source

log = logging.getLogger(__name__)

REPAIRS = 2  # times that a check may have chunks done again
WALKED_AT_ONCE = 1024  # items between two looks at whether to go on


class Job:
    """The parts are made when they are first needed, and kept: sinks hold connections.

    Args:
        here: the worker's parts.
    """

    def __init__(self, here: Runtime, spec: JobSpec, ledger: JobLedger) -> None:
        self._here = here
        self.spec = spec
        self.ledger = ledger
        self.doors = Doors(here.settings)
        self._making = Lock()

    @cached_property
    def papers(self) -> Papers:
        return Papers(papers_folder(self.spec, self.doors, self._here.settings.jobs_dir))

    @cached_property
    def source(self) -> Source:
        return open_source(self.spec.source, self.doors)

    @property
    def images(self) -> ImageReader:
        return self._here.images

    @cached_property
    def space(self) -> Space:
        """The vector space that was pinned when the job was planned."""
        pinned = self.ledger.pinned()
        return Space(
            model=self.spec.model,
            fingerprint=pinned.fingerprint,
            dimension=pinned.dimension,
            job=self.spec.id,
        )

    @cached_property
    def index(self) -> str:
        """The digest of the manifest's index, as it was when the job was planned."""
        return self.ledger.pinned().index

    @property
    def sink(self) -> Sink:
        with self._making:  # once for all chunks that begin together: Python locks nothing here
            return self._sink

    @cached_property
    def _sink(self) -> Sink:
        return open_sink(self.spec.sink, self.space, self.doors)

    def plan(self, go_on: Callable[[], None]) -> list[str]:
        """Walk the source into the manifest and pin the space; gives what to start.

        Args:
            go_on: called often; raises to stop.

        Raises:
            JobRefused, SpaceMismatch, LoadFailed: the job cannot be done as it was asked for.
        """
        entry = self._here.catalogue[self.spec.model]
        with self._here.slots.lease(entry, asked_by=f"job {self.spec.id}") as model:
            traits = model.traits
        space = Space(self.spec.model, traits.fingerprint, traits.dimension, self.spec.id)
        refuse_another_space(self.spec, traits, self.spec.fingerprint)
        refuse_unready(self)
        refuse_taken(self, open_sink(self.spec.sink, space, self.doors))
        self.papers.begin(self.spec)
        # Submitted again after Redis was lost, a job has the items that it began with: its markers
        # and files are of their chunks, and the source may have changed.
        if not manifest.is_whole(self.papers.manifest):
            self._walk(go_on)
        found = manifest.read(self.papers.manifest)
        first = manifest.chunk(self.papers.manifest, 0, index=found.index).items[0]
        refuse_another_kind(self.spec, traits, first)
        return self.ledger.planned(
            found,
            fingerprint=space.fingerprint,
            dimension=space.dimension,
            papers=str(self.papers.folder),
        )

    def _walk(self, go_on: Callable[[], None]) -> None:
        walk = _watched(self.source.walk(), go_on)
        for items in manifest.write(self.papers.manifest, walk, chunk_size=self.spec.chunk_size):
            self.ledger.walked(items)

    def check(self, go_on: Callable[[], None]) -> list[str]:
        """Compare manifest, markers and sink; end the job with a report, or give what to redo."""
        plan = manifest.read(self.papers.manifest)
        if plan.index != self.index:
            raise JobRefused(f"{self.papers.manifest} was changed after the job started")
        pinned = self.ledger.pinned()
        if isinstance(self.sink, Settling):
            self.sink.settle()
        found = compare(self.papers, plan, self.sink, go_on=go_on)
        if self.ledger.pinned() != pinned:
            return []  # overtaken, and chunks were done again meanwhile: the next check tells
        if found.unfinished and pinned.repairs < REPAIRS:
            for number in found.unfinished:
                self.papers.reopen(number)
            log.warning("job %s: %d chunks are done again", self.spec.id, len(found.unfinished))
            done, failed = found.done - found.begun[0], found.failed - found.begun[1]
            return self.ledger.reopen(found.unfinished, done=done, failed=failed)
        tidy(self.papers.folder)
        if self.spec.sink.kind in FOLDERS:
            tidy(self.doors.writing(self.spec.sink.where))
        moved = neighbours(self, plan, go_on) if self.spec.migration else None
        state = JobState.INCOMPLETE if found.unfinished else JobState.COMPLETE
        missing = plan.items - found.done - found.failed
        reason = f"{missing} items are neither in the sink nor recorded" if missing else ""
        status = self.ledger.status()
        if status.state is JobState.CANCELLED:  # meanwhile; the report would not say so
            return []
        report.write(self.papers, status, found, state=state, moved=moved)
        counts = {"done": found.done, "failed": found.failed, "cut": found.cut}
        self.ledger.end(state, reason, at=JobState.CHECKING, **counts)
        return []

    def finish(self, number: int, go_on: Callable[[], None], start: Start) -> Marker:
        """Embed a chunk, store it, and mark it; or find that it is marked already.

        Args:
            start: knows which rows a worker died of before.

        Raises:
            Unfit: this worker answers in another space.
            ClipyardError: it did not work.
        """
        pinned = self.ledger.pinned()
        before = self.papers.marker(number)
        if before and before.stands(pinned.round):
            return before
        begun = time.monotonic()
        # What is away is found out before anything is embedded; and the manifest first, for a sink
        # that holds it is not to be made anew without it.
        chunk = manifest.chunk(self.papers.manifest, number, index=self.index)
        sink = self.sink
        read = time.monotonic()
        held = self._held(chunk, before) if before or pinned.repairs else {}
        found = embed(
            self._here,
            self.spec,
            self.source,
            chunk.items,
            held=held,
            fingerprint=self.space.fingerprint,
            is_outage=partial(self.ledger.is_outage, number),
            between=go_on,
            start=start,
        )
        overtaken = self.papers.marker(number)
        if overtaken and overtaken != before and overtaken.round != REOPENED:
            return overtaken  # our claim has run out, and another worker may have got what we lack
        embedded = time.monotonic()
        shard = Shard(chunk, [found.rows[item.id] for item in chunk.items])
        if refused := sink.write(shard):
            rows = {**found.rows, **refused}
            shard = Shard(chunk, [rows[item.id] for item in chunk.items])
        cut_rows = _cut_rows(chunk, found.cut, held, before)
        uncounted = before.cut if before and held and not before.cut_rows else 0
        marker = Marker(
            chunk=number,
            items=len(chunk.items),
            losses=_losses(shard),
            round=pinned.round,
            worker=self._here.node,
            at=self.ledger.now(),
            stages={
                "read_s": round(read - begun, 4),
                "decode_s": round(found.decode_s, 4),
                "forward_s": round(found.forward_s, 4),
                "write_s": round(time.monotonic() - embedded, 4),
            },
            cut=len(cut_rows) + uncounted,
            cut_rows=cut_rows,
            held=len(held),
        )
        self.papers.mark(marker)
        self._here.meter.chunk(
            self.spec.model,
            done=marker.done,
            failures=(loss.code for loss in marker.losses),
            stages=marker.stages,
        )
        return marker

    def _held(self, chunk: Chunk, before: Marker | None) -> Mapping[str, Vector]:
        """What an earlier round got: its pictures may be gone by now."""
        lost = {loss.row for loss in before.losses} if before else set()
        ids = [item.id for row, item in enumerate(chunk.items) if row not in lost]
        return sound(self.sink.read(ids, chunk=chunk.number)) if ids else {}


def papers_folder(spec: JobSpec, doors: Doors, jobs_dir: Path) -> Path:
    """Where the manifest, the markers and the report of a job are."""
    if spec.papers is not None:
        return doors.writing(spec.papers)
    if spec.sink.kind in FOLDERS:
        # Readers of Parquet folders and clip-retrieval's index builder leave it alone.
        return doors.writing(spec.sink.where) / f"{BESIDE}{spec.id}"
    return jobs_dir / spec.id


def _losses(shard: Shard) -> tuple[Loss, ...]:
    return tuple(
        Loss(row=i, id=item.id, code=row.code, message=storable(str(row)), retryable=row.retryable)
        for i, (item, row) in enumerate(zip(shard.chunk.items, shard.rows, strict=True))
        if isinstance(row, ClipyardError)
    )


def _cut_rows(
    chunk: Chunk, now: Collection[str], held: Mapping[str, Vector], before: Marker | None
) -> tuple[int, ...]:
    """Of texts that were cut, the rows: of what was held, those that were cut when it was made."""
    earlier = set(before.cut_rows) if before else set()
    return tuple(
        row
        for row, item in enumerate(chunk.items)
        if item.id in now or (row in earlier and item.id in held)
    )


def _watched(items: Iterator[Item], go_on: Callable[[], None]) -> Iterator[Item]:
    for number, item in enumerate(items):
        if number % WALKED_AT_ONCE == 0:
            go_on()
        yield item.kept()
