"""Broken and hostile pictures through the worker's own path: open, decode, prepare for a model.

    python -m tests.fuzz --files 10000 --seed 1

Every file must end as pixels or as an ItemError, within a second or so and within the memory of
its limits; AVIF, which goes through a process, without breaking that. Prints one JSON line; exits
with 1 if anything else came out, or took too much. File number n of a seed is always the same:
`--first n --files 1` shows it again, `--keep FOLDER` writes it down.
`--parsers RUNS` does the same to everything else that strangers send, see `tests.fuzz_parsers`.
"""

import argparse
import faulthandler
import io
import json
import random
import resource
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data

from api_client.wire.errors import ItemError
from api_client.wire.messages import BlobRef
from tests import fuzz_parsers
from worker.backends.base import Model, Placement
from worker.catalogue import Entry
from worker.datapath.images import ImageReader
from worker.settings import WorkerSettings

MAX_PIXELS = 4_000_000
HANG_S = 30.0
SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {
        "context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
    },
}  # fmt: skip
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
LONGEST_SLICE = 4096
BROKEN = "broke its decoder"
MOST_MIB, MOST_S = 200, 5.0  # more than before the first file; of the processor, for any file


@dataclass
class Report:
    files: int
    seed: int
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: int = 0
    grown_mib: int = 0
    escaped: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        is_bounded = self.grown_mib < MOST_MIB and self.slowest_s < MOST_S
        return is_bounded and not self.escaped and BROKEN not in self.outcomes

    def line(self) -> str:
        told = {"outcomes": dict(sorted(self.outcomes.items())), "ok": self.ok}
        return json.dumps(vars(self) | told)


def run(
    *, files: int, seed: int, first: int = 0, processes: int = 0, keep: Path | None = None
) -> Report:
    """Put files `first` to `first + files` of a seed through one reader and one model."""
    report = Report(files, seed)
    seed_files()  # before what they take is counted
    reader = ImageReader(
        WorkerSettings.read(max_image_pixels=MAX_PIXELS, decode_processes=processes)
    )
    with small_model() as model:
        before = _peak_mib()
        for number in range(first, first + files):
            content = numbered(seed, number)
            if keep is not None:
                (keep / f"{seed}-{number}").write_bytes(content)
            faulthandler.dump_traceback_later(HANG_S, exit=True)
            begun = time.process_time()  # others take none of it; AVIF's process has HANG_S
            report.outcomes[_outcome(reader, model, content, number, report)] += 1
            if (took := time.process_time() - begun) > report.slowest_s:
                report.slowest_s, report.slowest = round(took, 3), number
        faulthandler.cancel_dump_traceback_later()
        report.grown_mib = _peak_mib() - before
    reader.close()
    return report


def _outcome(reader: ImageReader, model: Model, content: bytes, number: int, report: Report) -> str:
    near = (None, model.traits.input_size)[number % 2]
    try:
        pixels = model.prepare_image(reader.open(BlobRef(blob=0), {0: content}, near=near))
    except ItemError as error:
        return BROKEN if str(error).endswith(BROKEN) else error.code
    except Exception as error:
        report.escaped.append(f"{number}: {type(error).__name__}: {error}"[:200])
        return "escaped"
    assert np.asarray(pixels).shape == (32, 32, 3)
    return "pixels"


def numbered(seed: int, number: int) -> bytes:
    return mutated(seed_files(), random.Random(f"{seed}/{number}"))


def mutated(seeds: list[bytes], dice: random.Random) -> bytes:
    """One of the seeds, harmed in one to eight places."""
    content = bytearray(dice.choice(seeds))
    for _ in range(dice.choice((1, 1, 1, 2, 3, 5, 8))):
        # Half of the blows go to the first bytes, where headers are.
        end = min(len(content), 512) if dice.random() < 0.5 else len(content)
        at = dice.randrange(max(1, end))
        length = dice.randrange(1, min(LONGEST_SLICE, len(content) + 1) + 1)
        match dice.randrange(7):
            case 0:
                content[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                width, order = dice.choice((1, 2, 4)), dice.choice(("big", "little"))
                value = dice.choice(INTERESTING) % 256**width
                content[at : at + width] = value.to_bytes(width, order)
            case 2:
                del content[at:]
            case 3:
                del content[at : at + length]
            case 4:
                content[at:at] = content[at : at + length] * dice.choice((1, 2, 50))
            case 5:
                content[at:at] = dice.randbytes(length)
            case 6:
                other = dice.choice(seeds)
                content[at:] = other[dice.randrange(len(other)) :]
    return bytes(content)


@cache
def seed_files() -> list[bytes]:
    """Whole pictures of every format and mode that is let in, some of them odd, and impostors."""
    photo = Image.fromarray(data.chelsea()).resize((90, 60))
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    floats = Image.fromarray(np.float32(data.coins()[:40, :40]))
    deep = Image.fromarray(data.coins()[:40, :40].astype(np.uint16) * 200)
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = 6, "words " * 50
    return [
        *(_saved(photo, "JPEG", progressive=steps, exif=tags) for steps in (False, True)),
        *(_saved(photo.convert(mode), "JPEG") for mode in ("L", "CMYK")),
        _saved(photo.resize((900, 600)), "JPEG"),
        *(_saved(photo.convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        _saved(deep, "PNG"),
        *(
            _saved(frames[0], kind, save_all=True, append_images=frames)
            for kind in ("PNG", "GIF", "WEBP", "AVIF")
        ),
        *(_saved(photo, "WEBP", lossless=whole) for whole in (False, True)),
        *(_saved(photo.convert(mode), "AVIF", exif=tags) for mode in ("L", "RGB", "RGBA")),
        *(_saved(photo.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")),
        *(
            _saved(photo.convert(mode), "TIFF", compression=how)
            for mode in ("1", "L", "RGB", "CMYK", "LAB")
            for how in ("raw", "tiff_lzw", "tiff_deflate", "packbits")
        ),
        *(_saved(photo, "TIFF", compression=how) for how in ("jpeg", "tiff_adobe_deflate")),
        *(_saved(image, "TIFF") for image in (floats, deep)),
        *(_saved(photo.convert(mode), "PPM") for mode in ("1", "L", "RGB")),
        _huge(),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        b"P3 2 2 255\n" + b"1 " * 12,
        b"%PDF-1.7\n",
    ]  # fmt: skip


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    if kind == "AVIF":  # threads of its encoder answer otherwise on a busy machine
        options["max_threads"] = 1
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return _timeless(buffer.getvalue())


def _timeless(content: bytes) -> bytes:
    """Sequences of AVIF and the profile of LAB say when they were made."""
    whole = bytearray(content)
    for box in (b"mvhd", b"tkhd", b"mdhd"):
        if (at := content.find(box)) > 0:
            whole[at + 8 : at + 24] = bytes(16)
    if (at := content.find(b"acsp")) > 0:
        whole[at - 12 : at] = bytes(12)
    return bytes(whole)


def _huge() -> bytes:
    """400 million black pixels; Pillow would take a byte for each, more than may be grown by."""
    size, rows = 20_000, zlib.compressobj()
    row = bytes(1 + size // 8)
    data = b"".join(rows.compress(row) for _ in range(size)) + rows.flush()
    header = struct.pack(">IIBBBBB", size, size, 1, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(it)) + kind + it + struct.pack(">I", zlib.crc32(kind + it))
        for kind, it in parts
    )


@contextmanager
def small_model() -> Iterator[Model]:
    """A small open_clip model with random weights: the real preprocessing, in little memory."""
    import open_clip
    from safetensors.torch import save_file

    from worker.backends.openclip import OpenClip

    with tempfile.TemporaryDirectory() as folder:
        config, weights = Path(folder, "config.json"), Path(folder, "weights.safetensors")
        config.write_text(json.dumps({"model_cfg": SMALL}))
        save_file(open_clip.CLIP(**deepcopy(SMALL)).state_dict(), weights)
        family = OpenClip(Placement(cache_dir=Path(folder, "cache"), offline=True))
        yield family.load(Entry(id="small", architecture=str(config), checkpoint=weights))


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--processes", type=int, default=0, help="CLIPYARD_DECODE_PROCESSES")
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--parsers", type=int, metavar="RUNS", help="instead of pictures")
    given = vars(parser.parse_args())
    if (runs := given.pop("parsers")) is not None:
        return not fuzz_parsers.run(runs=runs, seed=given["seed"])
    report = run(**given)
    print(report.line())
    return not report.ok


if __name__ == "__main__":
    sys.exit(main())
