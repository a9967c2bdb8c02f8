"""The proof at a job's end: manifest, markers and sink are compared, item by item."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from . import manifest
from .items import Vector
from .manifest import Manifest
from .papers import Loss, Papers
from .sinks import Sink

NORM_SLACK = 0.01  # sinks may keep half precision
TOLD = 100  # of the missing, and of the failed


@dataclass
class Findings:
    """What the comparison found.

    Attributes:
        done, failed: items with a vector in the sink, and items recorded as failures.
        unfinished: chunks with an item that is neither, or without a marker.
        begun: of `done` and `failed`, those in unfinished chunks.
        missing: the ids of such items; the first hundred.
        losses: of the failures, the first hundred; and `codes` of all.
        cut: texts that were longer than the model reads.
        pace: for every chunk, when it was finished and how many items it has.
    """

    done: int = 0
    failed: int = 0
    unfinished: list[int] = field(default_factory=list)
    begun: tuple[int, int] = (0, 0)
    missing: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    pace: list[tuple[float, int]] = field(default_factory=list)


def compare(papers: Papers, plan: Manifest, sink: Sink, *, go_on: Callable[[], None]) -> Findings:
    """Every item of the manifest is looked for, in the markers' failures and in the sink.

    Args:
        go_on: called for every chunk; raises to stop.

    Raises:
        JobRefused: the manifest was changed.
        StoreDown: the sink does not answer.
    """
    found = Findings()
    for number in range(plan.chunks):
        go_on()
        items = manifest.chunk(papers.manifest, number, index=plan.index).items
        marker = papers.marker(number)
        lost = {loss.id for loss in marker.losses} if marker else set()
        wanted = [item.id for item in items if item.id not in lost]
        held = sound(sink.read(wanted, chunk=number)) if wanted else {}
        missing = [item_id for item_id in wanted if item_id not in held]
        found.done += len(held)
        found.failed += len(lost)
        found.missing += missing[: TOLD - len(found.missing)]
        if marker:
            found.losses += marker.losses[: TOLD - len(found.losses)]
            found.codes.update(loss.code for loss in marker.losses)
            found.cut += marker.cut
            found.pace.append((marker.at, marker.items))
        if marker is None or missing:
            found.unfinished.append(number)
            found.begun = found.begun[0] + len(held), found.begun[1] + len(lost)
    return found


def sound(held: Mapping[str, Vector]) -> dict[str, Vector]:
    """Those that are vectors of length one."""
    rows = np.stack(list(held.values())) if held else np.empty((0, 1))
    off = np.abs(np.linalg.norm(rows, axis=1) - 1.0)
    pairs = zip(held.items(), off, strict=True)
    return {item_id: row for (item_id, row), by in pairs if by < NORM_SLACK}  # not NaN
