"""What the slots and the batcher rely on in a family of models, as checks that `check.py` runs."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image

from api_client.wire.errors import ClipyardError, ItemError
from api_client.wire.messages import Kind, Priority

from ..catalogue import Entry
from ..datapath.batcher import Batcher
from ..datapath.outcomes import Outcome
from ..residency.memory import Memory
from .base import Backend, Collated, Model, Placement, Prepared
from .samples import SAME, lowest_cosine, prepared, samples

__all__ = ["CHECKS", "Subject"]

SLACK_BYTES = 64 * 2**20  # a process grows and shrinks by itself by so much
UNTOLD_SHARE = 1.5  # a load may take so many times what the model says
OVERTOLD_SHARE = 4.0  # it may say so many times what it takes: a server counts its buffers too
THREADS = 8
WITHIN_S = 120.0

BAD_TEXTS = ("", " ", "\0", "\N{COMBINING ACUTE ACCENT}" * 300, "word " * 20_000)


@dataclass(frozen=True)
class Subject:
    """A family and one entry that it can load here."""

    backend: Backend
    entry: Entry
    placement: Placement

    @contextmanager
    def model(self) -> Iterator[Model]:
        """On the device for the length of the block, then unloaded."""
        model = self.load()
        try:
            yield model
        finally:
            model.unload()

    def load(self) -> Model:
        self.backend.check(self.entry)
        model = self.backend.load(self.entry)
        model.lift()
        return model


def order(subject: Subject) -> None:
    """Rows come in the order of the batch."""
    with subject.model() as model:
        for kind, batch in _batches(model):
            rolled = _rows(model, kind, [*batch[1:], batch[0]])
            rows = np.roll(_rows(model, kind, batch), -1, axis=0)
            _must_match(model, rows, rolled, f"{kind}s in another order")


def batch_independence(subject: Subject) -> None:
    """A row depends on its item, not on its neighbours or their number."""
    with subject.model() as model:
        for kind, batch in _batches(model):
            together = _rows(model, kind, batch)
            alone = np.concatenate([_rows(model, kind, [one]) for one in batch])
            _must_match(model, together, alone, f"{kind}s alone and together")
            collated = _rows(model, kind, model.collate(kind, batch))
            _must_match(model, together, collated, f"{kind}s as prepared and collated")
            many = [*batch * (model.traits.max_batch // len(batch))][:33] or batch[:1]
            _must_match(
                model, _rows(model, kind, many)[: len(batch)], together[: len(many)], "many rows"
            )


def determinism(subject: Subject) -> None:
    """The same items give the same rows, now, after lower and lift, and after another load."""
    with subject.model() as model:
        traits = model.traits
        first = {kind: _rows(model, kind, batch) for kind, batch in _batches(model)}
        again = {kind: _rows(model, kind, batch) for kind, batch in _batches(model)}
        model.lower()
        model.lift()
        moved = {kind: _rows(model, kind, batch) for kind, batch in _batches(model)}
    with subject.model() as model:
        _must(model.traits == traits, f"another load has other traits: {model.traits}, {traits}")
        later = {kind: _rows(model, kind, batch) for kind, batch in _batches(model)}
        for kind, rows in first.items():
            _must_match(model, rows, again[kind], f"{kind}s, asked twice")
            _must_match(model, rows, moved[kind], f"{kind}s, after lower and lift")
            _must_match(model, rows, later[kind], f"{kind}s, after another load")


def normalisation(subject: Subject) -> None:
    """What callers get has length one and tells different items apart; the traits are true."""
    with subject.model() as model, _batcher() as batcher:
        traits = model.traits
        _must(bool(traits.kinds), "it embeds nothing")
        _must(bool(traits.fingerprint), "it has no fingerprint")
        told = subject.entry.dimension
        _must(
            told in (0, traits.dimension), f"its entry says {told}, its traits {traits.dimension}"
        )
        for kind, items in _items(model):
            vectors = _embedded(batcher, model, kind, items)
            _must(len(vectors) == len(items), f"{len(vectors)} outcomes for {len(items)} {kind}s")
            rows = [_vector(outcome) for outcome in vectors]
            lengths = np.linalg.norm(rows, axis=1)
            _must(np.allclose(lengths, 1, atol=1e-5), f"lengths {lengths}")
            _must(len({row.tobytes() for row in rows}) > 1, f"all {kind}s get the same vector")


def bytes_reported(subject: Subject) -> None:
    """A load takes no more than the footprint says, and not a fraction of it.

    What lies in a server or in pages that nobody touched is not seen here; the family's own
    estimate stands for it.
    """
    with subject.model() as model:  # what comes with the first load only, such as libraries
        _warm(model)
    gc.collect()
    before, memory = _used(subject), Memory(subject.placement.device)
    with subject.model() as model:
        _warm(model)
        taken, footprint = _used(subject).since(before), model.footprint()
        told = footprint.host_bytes + footprint.device_bytes
        _must(
            taken <= told * UNTOLD_SHARE + SLACK_BYTES,
            f"it took {taken >> 20} MiB and reports {told >> 20} MiB",
        )
        foreseen = subject.backend.check(subject.entry)
        _must(
            told <= max(taken, foreseen) * OVERTOLD_SHARE + SLACK_BYTES,
            f"it took {taken >> 20} MiB, its family's check foresees {foreseen >> 20} MiB, and it "
            f"reports {told >> 20} MiB: others would be unloaded for nothing",
        )
        device = memory.device()
        most = memory.host().total + (device.total if device else 0)
        _must(told <= most, f"it reports {told} bytes")


def memory_comes_back(subject: Subject) -> None:
    """After an unload the memory is free again."""
    for _ in range(2):
        with subject.model() as model:
            _warm(model)
    gc.collect()
    before = _used(subject)
    for _ in range(3):
        with subject.model() as model:
            _warm(model)
        del model
    gc.collect()
    grown = _used(subject).since(before)
    _must(grown <= SLACK_BYTES, f"three loads and unloads left {grown >> 20} MiB behind")


def errors_typed(subject: Subject) -> None:
    """An entry that cannot be served is refused with a sentence, not with a traceback."""
    entry, nowhere = subject.entry, Path("/no/such/file.safetensors")
    for wrong in (
        replace(entry, id="no/such", architecture="no-such-architecture", tag="none"),
        replace(entry, id="no/file", checkpoint=nowhere),
        replace(entry, id="no/option", options={"no_such_option": 1}),
    ):
        try:
            subject.backend.check(wrong)
            subject.backend.load(wrong).unload()
        except (ClipyardError, MemoryError) as error:
            _must(bool(str(error)), f"{type(error).__name__} without a sentence for {wrong.id}")
        except Exception as error:
            raise AssertionError(f"{wrong.id} raised {error!r}, no error of ours") from error


def one_bad_item(subject: Subject) -> None:
    """An item that cannot be embedded fails alone; its neighbours have their vectors."""
    with subject.model() as model, _batcher() as batcher:
        for kind, good in _items(model):
            alone = _embedded(batcher, model, kind, good)
            bad: Sequence[Any] = BAD_TEXTS if kind is Kind.TEXT else _bad_pictures()
            mixed = [item for pair in zip(good, bad, strict=False) for item in pair]
            outcomes = _embedded(batcher, model, kind, mixed)
            for i, want in zip(range(0, len(mixed), 2), alone, strict=False):
                _must_match(
                    model, [_vector(want)], [_vector(outcomes[i])], f"{kind} beside a bad one"
                )
            for outcome in outcomes[1::2]:
                is_typed = not isinstance(outcome, ClipyardError) or isinstance(outcome, ItemError)
                _must(is_typed, f"a bad {kind} is {outcome!r} instead of an ItemError")


def threads(subject: Subject) -> None:
    """Preparing in many threads at once gives what one thread gives, also while it runs."""
    with subject.model() as model, ThreadPoolExecutor(THREADS) as pool:
        for kind, items in _items(model):
            want = [_content(prepared(model, kind, item)) for item in items]
            running = pool.submit(_rows, model, kind, [prepared(model, kind, items[0])])
            found = list(pool.map(partial(prepared, model, kind), items * THREADS))
            running.result(WITHIN_S)
            got = [_content(row) for row in found]
            _must(got == want * THREADS, f"{kind}s come out otherwise in {THREADS} threads")


CHECKS: tuple[Callable[[Subject], None], ...] = (
    order,
    batch_independence,
    determinism,
    normalisation,
    bytes_reported,
    memory_comes_back,
    errors_typed,
    one_bad_item,
    threads,
)


@contextmanager
def _batcher() -> Iterator[Batcher]:
    batcher = Batcher(batch_size=32, decode_threads=2)
    try:
        yield batcher
    finally:
        batcher.close()


def _embedded(batcher: Batcher, model: Model, kind: Kind, items: Sequence[Any]) -> list[Outcome]:
    return batcher.embed(
        model,
        kind,
        items,
        partial(prepared, model, kind),
        model_id="the model",
        priority=Priority.BULK,
        deadline=time.time() + WITHIN_S,
    ).vectors


def _items(model: Model) -> Iterator[tuple[Kind, list[Any]]]:
    for kind in model.traits.kinds:
        yield kind, samples(kind)


def _batches(model: Model) -> Iterator[tuple[Kind, list[Prepared]]]:
    for kind, items in _items(model):
        yield kind, [prepared(model, kind, item) for item in items]


def _bad_pictures() -> list[Image.Image]:
    sizes = (
        ("RGB", (1, 1)),
        ("1", (3, 900)),
        ("I;16", (40, 40)),
        ("CMYK", (50, 20)),
        ("P", (9, 9)),
    )
    return [Image.new(mode, size) for mode, size in sizes]


def _content(row: Prepared) -> object:
    if isinstance(row, np.ndarray):
        return row.tobytes()
    tokens = row.tokens
    return tokens if isinstance(tokens, str) else tokens.tobytes()


def _rows(model: Model, kind: Kind, batch: Collated) -> NDArray[np.float32]:
    most = model.traits.max_batch
    parts = (batch[at : at + most] for at in range(0, len(batch), most))
    rows = np.concatenate([model.run(kind, part) for part in parts])
    want = (len(batch), model.traits.dimension)
    _must(np.shape(rows) == want, f"it answered {np.shape(rows)} where {want} was due")
    return rows


def _vector(outcome: Outcome) -> NDArray[np.float32]:
    _must(not isinstance(outcome, ClipyardError), f"a good item failed: {outcome}")
    return np.asarray(outcome)


def _must_match(model: Model, rows: Any, others: Any, what: str) -> None:
    lowest = lowest_cosine(rows, others)
    wanted = SAME.get(model.traits.precision, SAME["float32"])
    _must(lowest >= wanted, f"{what}: cosine {lowest:.5f}, at least {wanted} is due")


def _warm(model: Model) -> None:
    """Mapped weights come into memory as they are touched."""
    for kind, batch in _batches(model):
        _rows(model, kind, batch)


@dataclass(frozen=True)
class _Bytes:
    """Of this process in memory: its own and those of files; and of the device, if there is one."""

    own: int
    files: int
    device: int

    def since(self, before: "_Bytes") -> int:
        """What was added. Pages of files may go at any time, which frees nothing of the model's."""
        files = max(0, self.files - before.files)
        return self.own - before.own + files + self.device - before.device


def _used(subject: Subject) -> _Bytes:
    memory, device = psutil.Process().memory_info(), Memory(subject.placement.device).device()
    files = int(getattr(memory, "shared", 0))  # Linux tells them apart
    return _Bytes(int(memory.rss) - files, files, device.total - device.free if device else 0)


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)
