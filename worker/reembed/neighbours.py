"""How much the neighbours of the same items moved between two vector spaces."""

import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from api_client.wire.errors import ClipyardError, ItemError, JobRefused
from api_client.wire.messages import BlobRef

from . import manifest
from .items import Item, Vector
from .manifest import Manifest
from .sinks import open_sink

if TYPE_CHECKING:
    from .job import Job

log = logging.getLogger(__name__)

NEIGHBOURS = 10
POOL = 4096  # items whose neighbours are looked for among each other
SAMPLE = 512  # of them, those whose neighbours are compared
WORST = 6  # told, and shown as pictures
DRAWING_S = 20.0  # after which no further picture is fetched
TILE = 96  # pixels of a picture's edge on the sheet
GREY = "#ddd"  # below texts, and in the place of what could not be had
Matrix = NDArray[np.float32]
Ranks = NDArray[np.intp]  # (sample, neighbours): positions, the nearest first
Line = tuple[Item, Sequence[Item], Sequence[Item]]  # an item, its neighbours before, and after


@dataclass(frozen=True)
class Moved:
    """
    Attributes:
        overlap_at_10: mean share of an item's ten nearest that stayed among its ten nearest.
        sample: how many items that mean is over, and `pool` how many neighbours were drawn from.
        worst: the ids of the items with the least overlap, and theirs.
    """

    overlap_at_10: float
    sample: int
    pool: int
    worst: Sequence[tuple[str, float]]


def neighbours(job: "Job", plan: Manifest, go_on: Callable[[], None]) -> Moved | None:
    """Compare the job's sink with the collection that it is to replace; draws `moved.png`.

    None if they have no two items in common, as one has no neighbours; or if the old one has gone,
    as it may once the name has left it, and a check is made again.

    Raises:
        JobRefused: the old one cannot be read, and never was.
    """
    assert job.spec.migration is not None
    items = _pool(job, plan)
    ids = [item.id for item in items]
    new = job.sink.read(ids)
    go_on()
    try:
        old = open_sink(job.spec.migration.old, None, job.doors).read(ids)
    except JobRefused as gone:
        if not job.papers.has_report:
            raise JobRefused(
                f"{gone}: put it back, or an empty one, as the new one is compared with it"
            ) from None
        log.warning("job %s is compared with nothing: %s", job.spec.id, gone)
        return None
    go_on()
    both = [item for item in items if item.id in new and item.id in old]
    if len(both) < 2:
        return None
    shares, before, after = compared(_matrix(both, old), _matrix(both, new))
    order = np.argsort(shares, kind="stable")[:WORST]
    lines = [(both[i], [both[j] for j in before[i]], [both[j] for j in after[i]]) for i in order]
    sheet = _sheet(lines, _tiles(job, lines), width=1 + before.shape[1])
    job.papers.report("moved.png", lambda out: sheet.save(out, "PNG"))
    return Moved(
        overlap_at_10=float(shares.mean()),
        sample=len(shares),
        pool=len(both),
        worst=[(both[i].id, float(shares[i])) for i in order],
    )


def compared(old: Matrix, new: Matrix) -> tuple[NDArray[np.float64], Ranks, Ranks]:
    """Share of kept neighbours for the first `SAMPLE` rows, and their neighbours in both spaces.

    Args:
        old, new: (items, any dimension), L2-normalised; row i is the same item in both.
    """
    before, after = _nearest(old), _nearest(new)
    shares = [len(set(b) & set(a)) / len(b) for b, a in zip(before, after, strict=True)]
    return np.array(shares), before, after


def _nearest(vectors: Matrix) -> Ranks:
    """(sample, neighbours): of each row, the most similar other rows, the nearest first."""
    sample = min(SAMPLE, len(vectors))
    cosines = vectors[:sample] @ vectors.T
    np.fill_diagonal(cosines, -np.inf)
    count = min(NEIGHBOURS, len(vectors) - 1)
    return np.argsort(-cosines, axis=1, kind="stable")[:, :count]


def _pool(job: "Job", plan: Manifest) -> list[Item]:
    """Whole chunks by lot, the same ones each time; their items shuffled."""
    dice = random.Random(plan.index)
    wanted = max(1, -(-POOL // plan.chunk_size))
    chunks = dice.sample(range(plan.chunks), min(wanted, plan.chunks))
    items = [
        item
        for number in sorted(chunks)
        for item in manifest.chunk(job.papers.manifest, number, index=plan.index).items
    ]
    dice.shuffle(items)
    return items[:POOL]


def _matrix(items: Sequence[Item], vectors: Mapping[str, Vector]) -> Matrix:
    rows = np.stack([vectors[item.id] for item in items])
    unit: Matrix = rows / np.linalg.norm(rows, axis=1, keepdims=True)  # old ones may not be
    return unit


def _tiles(job: "Job", lines: Sequence[Line]) -> Mapping[str, Image.Image]:
    """Pictures by their items' ids, those that come in time: a migration that is proven waits for
    none of them."""
    tiles: dict[str, Image.Image] = {}
    give_up_at = time.monotonic() + DRAWING_S
    why: object = None
    for item in (item for own, before, after in lines for item in (own, *before, *after)):
        if time.monotonic() > give_up_at:
            why = f"they took {DRAWING_S:g} s"
            break
        try:
            if item.id not in tiles:
                tiles[item.id] = _tile(job, item)
        except ClipyardError as error:
            why = error
    if why:
        log.warning("job %s: not all pictures of what moved are drawn: %s", job.spec.id, why)
    return tiles


def _tile(job: "Job", item: Item) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE), GREY)
    if item.text is not None:
        ImageDraw.Draw(tile).text(
            (2, 2), "\n".join(item.text[i : i + 14] for i in range(0, 84, 14)), "black"
        )
        return tile
    try:
        content = job.source.fetch(item)
        if isinstance(content, bytes):
            picture = job.images.open(BlobRef(blob=0), {0: content}, near=TILE)
        else:
            assert not isinstance(content, str)
            picture = job.images.open(content, {}, near=TILE)
        tile.paste(picture.convert("RGB").resize((TILE, TILE)))
    except ItemError:
        pass  # grey
    return tile


def _sheet(lines: Sequence[Line], tiles: Mapping[str, Image.Image], *, width: int) -> Image.Image:
    """A line an item: it, its neighbours in the old space, and below them those in the new."""
    gap = 4
    grey = Image.new("RGB", (TILE, TILE), GREY)
    sheet = Image.new("RGB", (width * (TILE + gap), len(lines) * (2 * TILE + 3 * gap)), "white")
    for line, (own, before, after) in enumerate(lines):
        top = line * (2 * TILE + 3 * gap)
        for column, item in enumerate([own, *before]):
            sheet.paste(tiles.get(item.id, grey), (column * (TILE + gap), top))
        for column, item in enumerate(after, start=1):
            sheet.paste(tiles.get(item.id, grey), (column * (TILE + gap), top + TILE + gap))
    return sheet
