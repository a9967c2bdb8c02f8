"""A chunk's items through the device, a slice at a time."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from api_client.wire import names
from api_client.wire.errors import (
    Cancelled,
    ClipyardError,
    ImageForbidden,
    ImageMissing,
    ItemError,
    JobRefused,
    Quarantined,
    SpaceMismatch,
    TextInvalid,
)
from api_client.wire.jobs import JobSpec
from api_client.wire.messages import BlobRef, Kind
from api_client.wire.quarantine import Crash, Evidence

from ..backends.base import Model, Prepared, Traits
from ..datapath.content_cache import Pictures
from ..datapath.outcomes import Known
from ..delivery import quarantine
from ..delivery.pool import canceller, give_way
from ..delivery.suspects import TWICE, Start
from ..runtime import Runtime
from .items import Item, Vector, storable
from .sources import Source
from .sources.refs import FolderEmpty, stranded

# Between two slices the model is free for others and the task can be stopped. Several chunks are
# at work at once, so the device does not wait for a slice to begin.
SLICE = 128
OUTAGE = 8  # items in a row that cannot be reached are no coincidence


@dataclass(frozen=True)
class Portion:
    """Rows of a chunk that are embedded together.

    Attributes:
        place: from and to, the second excluded, when the chunk is sorted by length.
        crashes: of the processes that died at work on them; then it is a single row.
    """

    place: tuple[int, int]
    crashes: tuple[Crash, ...] = ()

    @property
    def is_condemned(self) -> bool:
        """Two workers died over it alone; in a slice, or once, it may have been a bystander."""
        return sum(crash.place == self.place for crash in self.crashes) >= TWICE


def portions(count: int, crashes: Sequence[Crash]) -> Iterator[Portion]:
    """A chunk's rows in slices, those that a process died over one by one."""
    row = 0
    while row < count:
        if over := _over(row, crashes):
            yield Portion((row, row + 1), over)
            row += 1
            continue
        stop = row + 1
        while stop < min(count, row + SLICE) and not _over(stop, crashes):
            stop += 1
        yield Portion((row, stop))
        row = stop


def _over(row: int, crashes: Sequence[Crash]) -> tuple[Crash, ...]:
    return tuple(c for c in crashes if c.place and c.place[0] <= row < c.place[1])


class Unfit(SpaceMismatch):
    """This worker answers in another space than the job's; another worker may not."""


@dataclass
class Embedded:
    """A vector or an error by an item's id, and the seconds that the stages took.

    Attributes:
        cut: the ids of texts that were longer than the model reads; not of those held before.
    """

    rows: dict[str, Vector | ClipyardError]
    cut: set[str] = field(default_factory=set)
    decode_s: float = 0.0
    forward_s: float = 0.0


def embed(
    here: Runtime,
    spec: JobSpec,
    source: Source,
    items: Sequence[Item],
    *,
    held: Mapping[str, Vector],
    fingerprint: str,
    is_outage: Callable[[ClipyardError], bool],
    between: Callable[[], None],
    start: Start,
) -> Embedded:
    """A vector for every item, or why it has none.

    Args:
        held: vectors that are there already, by id.
        fingerprint: the job's vector space.
        is_outage: asked when nothing of a slice can be reached, with what came of its first item:
            whether that is to be tried again, or recorded.
        between: called before every slice; may raise to stop.
        start: of the chunk.

    Raises:
        Unfit: this worker answers in another space.
        ClipyardError: all of it failed; nothing is known of the items, and the same may well
            succeed later.
    """
    entry, found = here.catalogue[spec.model], Embedded(dict(held))
    ordered = _by_length(items)
    for portion in portions(len(ordered), start.crashes):
        between()
        part = [item for item in ordered[slice(*portion.place)] if item.id not in held]
        if not part:
            continue
        if portion.is_condemned:
            found.rows[part[0].id] = _set_aside(here, spec, part[0], start.id, portion)
            continue
        with _noted(start, portion), here.slots.lease(entry, asked_by=f"job {spec.id}") as model:
            if not portion.place[0]:  # nothing is done twice for it
                give_way()
            refuse_another_kind(spec, model.traits, part[0])
            refuse_another_space(spec, model.traits, fingerprint)
            pictures = here.pictures(model, entry.id)
            try:
                rows = here.batcher.embed(
                    model,
                    _kind_of(part[0]),
                    list(enumerate(part)),
                    partial(_prepare, model, pictures, source),
                    model_id=entry.id,
                    priority=spec.priority,
                    cancelled=canceller(),
                )
            except Cancelled:
                between()  # knows whether that is a stop, which is no failure
                raise
            pictures.keep(rows.vectors)
        here.tracker.used(entry)
        _raise_outages(part, rows.vectors, is_outage)
        found.rows.update(zip((item.id for item in part), rows.vectors, strict=True))
        found.cut.update(part[position].id for position in rows.truncated)
        found.decode_s += rows.decode_s
        found.forward_s += rows.forward_s
    start.note()  # what dies from here on dies of no item
    return found


def _by_length(items: Sequence[Item]) -> list[Item]:
    """Texts of like length run together, see `Desk.each_text`; pictures stay as they are."""
    return sorted(items, key=lambda item: -len(item.text or ""))


@contextmanager
def _noted(start: Start, portion: Portion) -> Iterator[None]:
    if portion.crashes:
        with start.on_trial(portion.place):
            yield
    else:
        start.note(portion.place)
        yield


def _set_aside(
    here: Runtime, spec: JobSpec, item: Item, chunk: str, portion: Portion
) -> Quarantined:
    evidence = Evidence(
        id=f"{chunk}#{portion.place[0]}",
        task=names.JOB_CHUNK,
        model=spec.model,
        items=(quarantine.reference(storable(item.ref)),),
        asked_by=spec.asked_by,
        at=time.time(),
        crashes=portion.crashes,
    )
    quarantine.put(here.redis, here.keys, evidence)
    return Quarantined(
        f"{item.id} took {' and '.join(c.worker for c in portion.crashes)} down; see `clipyard "
        f"quarantine show {evidence.id}`"
    )


def _raise_outages(
    items: Sequence[Item],
    rows: Sequence[Vector | ClipyardError],
    is_outage: Callable[[ClipyardError], bool],
) -> None:
    """A picture that cannot be reached is recorded; when not one can be, its store may be away.

    A model that has come to answer in another space is no item's fault either.
    """
    for row in rows:
        if isinstance(row, SpaceMismatch):
            raise row
    for row in rows:
        if isinstance(row, ClipyardError) and row.retryable and not isinstance(row, ItemError):
            raise row
    away = map(_away, items, rows)  # none is looked at behind one that is not
    if len(rows) >= OUTAGE and (first := next(away)) and all(away) and is_outage(first):
        raise first


def _away(item: Item, row: Vector | ClipyardError) -> ClipyardError | None:
    """What may be wrong with the store of an item that has no vector, if it may be its store."""
    match row:
        case ImageMissing() if folder := stranded(item.ref):
            return FolderEmpty(f"{str(folder)!r} is empty: is its file system mounted?")
        case ImageForbidden():  # the worker's key to it may have expired
            return row
        case ClipyardError() if row.retryable:
            return row
    return None


def _kind_of(item: Item) -> Kind:
    return Kind.IMAGE if item.text is None else Kind.TEXT


def refuse_another_kind(spec: JobSpec, traits: Traits, item: Item) -> None:
    """
    Raises:
        JobRefused: the model does not embed such items.
    """
    if (kind := _kind_of(item)) not in traits.kinds:
        raise JobRefused(f"{spec.model} does not embed {kind}s")


def refuse_another_space(spec: JobSpec, traits: Traits, fingerprint: str | None) -> None:
    """
    Raises:
        Unfit: the model answers in another space here.
    """
    if fingerprint not in (None, traits.fingerprint):
        raise Unfit(
            f"{spec.model} answers in the space {traits.fingerprint} on this worker, "
            f"the job is in {fingerprint}"
        )


def _prepare(
    model: Model, pictures: Pictures, source: Source, numbered: tuple[int, Item]
) -> Prepared | Known:
    position, item = numbered
    content = source.fetch(item)
    if isinstance(content, str):
        if not content.strip():
            raise TextInvalid(f"{item.ref} is blank")
        try:
            content.encode()
        except UnicodeEncodeError:
            raise TextInvalid(f"{item.ref} is no text of UTF-8, or has half a character") from None
        return model.prepare_text(content)
    if isinstance(content, bytes):
        return pictures.prepare(position, BlobRef(blob=0), {0: content})
    return pictures.prepare(position, content, {})
