"""The main job from one end to the other: pictures in, vectors out, found again by text."""

import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np

from .. import show, vectorfile
from ..client import Client
from ..inputs import pictures_in, printable
from ..results import Item, similarity
from ..stack.devices import visible_devices
from ..stack.settings import StackSettings
from ..stack.up import Options, find_checkout, temporary_stack
from ..wire import endings
from ..wire.codec import Vectors
from ..wire.errors import BadRequest
from ..wire.settings import Settings
from ..wire.version import VERSION
from . import shapes, sheet

PICTURES = 384  # enough for every caption of the demonstration set, one at least
SEED = 2026
DEMO_QUERIES = (
    "a red circle",
    "a big blue square",
    "two green triangles",
    "a small yellow star",
    "three purple hearts",
    "a black ring",
)
OWN_QUERIES = ("a person", "an animal", "a building", "food", "a landscape")
READY_S = 60.0  # importing torch takes most of it on a cold disk
LOAD_S = 3600.0  # the largest weights of the catalogue, 4 GB, at 10 Mbit/s
PACKAGES = {"celery", "torch", "open_clip_torch"}
VECTORS = "vectors.parquet"
BEST = 5  # pictures shown per query

console = show.console(stderr=True)


@dataclass(frozen=True)
class Collection:
    """Pictures on disk; `captions` only where they are known."""

    files: tuple[Path, ...]
    captions: tuple[str, ...] | None = None


def quickstart(
    *, images: Path | None, model: str, queries: Sequence[str], out: Path, as_json: bool
) -> dict[str, Any]:
    """Run the job in a stack of its own; leaves only what it wrote under `out`.

    Args:
        images: a folder of pictures; None draws coloured shapes with known captions.
        queries: texts to look for; a handful of our own if empty.
        as_json: shows no table of what was found: standard output is for JSON alone.

    Returns:
        What `summary.json` holds. `top1` is the share of pictures whose nearest caption is
        theirs; None where captions are not known.

    Raises:
        StackError: no stack can be started here.
    """
    find_checkout()  # before anything is drawn
    vectorfile.check(out / VECTORS)
    # Of a user who is not here it leaves the name as it is.
    folder = Path(os.path.expanduser(images)) if images else out / "pictures"
    collection = _own(folder) if images else _drawn(folder)
    asked = tuple(queries) or (OWN_QUERIES if images else DEMO_QUERIES)
    settings = StackSettings.read(image_roots=_roots(folder, collection), default_model=model)
    with tempfile.TemporaryDirectory(prefix="clipyard-") as home:
        options = Options(
            home=Path(home),
            devices=visible_devices(cuda_visible=settings.cuda_visible_devices)[:1],
            env=settings.for_workers(),
        )
        console.print("starting a private Redis, one worker and beat ...")
        with temporary_stack(options, tell=console.print) as stack:
            stack.supervisor.wait_ready(within_s=READY_S)
            with Client(Settings.read(redis_url=stack.url), asked_by="quickstart") as client:
                return _job(client, collection, model, asked, out, as_json=as_json)


def _job(
    client: Client,
    collection: Collection,
    model: str,
    queries: tuple[str, ...],
    out: Path,
    *,
    as_json: bool,
) -> dict[str, Any]:
    console.print(f"loading {model} ...")
    client.load(model, timeout=LOAD_S)
    begun = time.perf_counter()
    with show.progress("embedding pictures", len(collection.files)) as advance:
        items = client.embed_images_detailed(collection.files, model=model, progress=advance)
    seconds = time.perf_counter() - begun
    good = [i for i, item in enumerate(items) if item.vector is not None]
    if not good:
        raise BadRequest(f"none of {len(items)} pictures could be embedded: {items[0].error}")
    vectors = np.stack([v for item in items if (v := item.vector) is not None])
    cosines = similarity(client.embed_texts(queries, model=model), vectors)
    best = [_best(row, good) for row in cosines]
    files = [printable(file) for file in collection.files]
    vectorfile.write(out / VECTORS, files, items)
    sheet.draw(queries, [[(collection.files[i], c) for i, c in row] for row in best]).save(
        out / "contact-sheet.png"
    )
    if not as_json:
        _print(queries, best, collection)
    show.failures(files, items)
    summary = {
        "images": len(items),
        "failed": len(items) - len(good),
        "images_per_second": round(len(good) / seconds, 1),
        "top1": _top1(client, collection, model, vectors, good),
        **_where(items[good[0]]),
    }
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    top1 = (
        f", {summary['top1']:.1%} nearest their own caption" if summary["top1"] is not None else ""
    )
    console.print(
        f"{len(good)} of {len(items)} pictures at {summary['images_per_second']} images/s on "
        f"{summary['device']} in {summary['precision']}{top1}; see {out}/contact-sheet.png",
        soft_wrap=True,  # a path in two lines is none
    )
    return summary


def _where(item: Item) -> dict[str, Any]:
    return {
        "model_id": item.model,
        "fingerprint": item.fingerprint,
        "device": item.device,
        "precision": item.precision,
        "versions": {"clipyard": VERSION}
        | {one.name: one.version for one in distributions() if one.name in PACKAGES},
    }


def _best(cosines: Vectors, good: Sequence[int]) -> list[tuple[int, float]]:
    order = np.argsort(-cosines)[:BEST]
    return [(good[column], float(cosines[column])) for column in order]


def _top1(
    client: Client, collection: Collection, model: str, vectors: Vectors, good: Sequence[int]
) -> float | None:
    if collection.captions is None:
        return None
    captions = shapes.CAPTIONS
    nearest = similarity(vectors, client.embed_texts(captions, model=model)).argmax(axis=1)
    right = [captions[n] == collection.captions[i] for n, i in zip(nearest, good, strict=True)]
    return round(float(np.mean(right)), 4)


def _print(
    queries: Sequence[str], best: Sequence[Sequence[tuple[int, float]]], collection: Collection
) -> None:
    def label(i: int) -> str:
        return (
            collection.captions[i] if collection.captions else printable(collection.files[i].name)
        )

    rows = [
        {"query": query, "best pictures": "\n".join(f"{c:.2f}  {label(i)}" for i, c in row[:3])}
        for query, row in zip(queries, best, strict=True)
    ]
    show.table(["query", "best pictures"], rows, as_json=False)


def _drawn(folder: Path) -> Collection:
    folder.mkdir(parents=True, exist_ok=True)
    files, captions = [], []
    for number, (caption, picture) in enumerate(shapes.collection(PICTURES, seed=SEED)):
        file = folder / f"{number:04d} {caption}.png"
        picture.save(file)
        files.append(file)
        captions.append(caption)
    return Collection(tuple(files), tuple(captions))


def _roots(folder: Path, collection: Collection) -> tuple[Path, ...]:
    """The folder, and those to which links in it lead: all there are would be too many to pass."""
    root = folder.resolve()
    places = {file.resolve().parent for file in collection.files}
    return (root, *sorted(place for place in places if not place.is_relative_to(root)))


def _own(folder: Path) -> Collection:
    if not folder.is_dir():
        raise BadRequest(f"{folder} is no folder; name one that holds pictures")
    files = tuple(file for file in pictures_in(folder) if file.is_file())  # no link to nowhere
    if not files:
        raise BadRequest(f"{folder} holds no pictures ({', '.join(sorted(endings.PICTURES))})")
    return Collection(files)
