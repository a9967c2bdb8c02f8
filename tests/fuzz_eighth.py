"""Harmed JPEGs through eighth.c, compiled so that the first access beyond its memory ends it.

python -m tests.fuzz_eighth --files 30000
"""

import argparse
import ctypes
import io
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from skimage import data

from worker.datapath import jpeg, native

SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MAX_PIXELS = 10**6
HEADERS = 700  # bytes of a small file that hold them


class NoSanitizers(Exception):
    """The compiler has none, or there is no compiler."""


def run(files: int, *, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """In a process of its own, whose standard output is the number of files that were decoded.

    Raises:
        NoSanitizers: nothing was run.
    """
    with tempfile.TemporaryDirectory(prefix="clipyard-") as folder:
        library = Path(folder) / "eighth.so"
        if trouble := native.compile_to(library, *SANITIZERS):
            raise NoSanitizers(trouble)
        runtime = subprocess.run(
            [*native.compiler(), "-print-file-name=libasan.so"],
            capture_output=True,
            text=True,
            check=True,
        )
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.fuzz_eighth",
                "--files",
                str(files),
                "--through",
                library,
            ],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "LD_PRELOAD": runtime.stdout.strip(),
                "PYTHONMALLOC": "malloc",
                "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
            },
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


def is_decoded(content: bytes) -> bool:
    """False for what is left to Pillow."""
    try:
        image = Image.open(io.BytesIO(content), formats=["JPEG"])
    except Exception:
        return False
    if image.width * image.height > MAX_PIXELS:
        return False
    small = jpeg.eighth(image, content)
    assert small is None or small.size == (-(-image.width // 8), -(-image.height // 8))
    return small is not None


def harmed(photo: Image.Image, dice: random.Random) -> bytes:
    buffer = io.BytesIO()
    photo.resize((dice.randint(8, 300), dice.randint(8, 300))).convert(
        dice.choice(["RGB", "L"])
    ).save(
        buffer,
        "JPEG",
        quality=dice.choice([5, 60, 95, 100]),
        optimize=dice.random() < 0.5,
        restart_marker_blocks=dice.choice([0, 1, 5]),
    )
    content = bytearray(buffer.getvalue())
    if dice.random() < 0.2:
        content[dice.randrange(4, len(content)) :] = dice.choice([b"", b"\xff\xd9"])
    for _ in range(dice.randint(0, 6)):
        place = dice.randrange(min(len(content), dice.choice([HEADERS, len(content)])))
        content[place] = dice.choice([0, 0xFF, dice.randrange(256)])
    return bytes(content)


def longest_block() -> bytes:
    """A file whose only bytes of coefficients begin a block that asks for 250 more."""

    def segment(marker: int, body: bytes) -> bytes:
        return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2) + body

    short = bytes((1, *[0] * 15, 0))  # a code of one bit: the difference is 0
    long = bytes((*[0] * 15, 1, 15))  # a code of 16 bits, and a value of 15
    return (
        b"\xff\xd8"
        + segment(0xDB, bytes((0, *[1] * 64)))
        + segment(0xC0, bytes((8, 0, 8, 0, 8, 1, 1, 0x11, 0)))
        + segment(0xC4, b"\x00" + short + b"\x10" + long)
        + segment(0xDA, bytes((1, 1, 0, 0, 63, 0)))
        + b"\x00\xff\xd9"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=30_000)
    parser.add_argument("--through", type=ctypes.CDLL, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.through is None:
        try:
            done = run(given.files, timeout_s=3600)
        except NoSanitizers as trouble:
            sys.exit(f"nothing was run: {trouble}")
        print(done.stdout, done.stderr, sep="", end="")
        sys.exit(done.returncode)
    native.library = lambda: given.through
    assert not is_decoded(longest_block())
    photo = Image.fromarray(data.astronaut())
    decoded = sum(is_decoded(harmed(photo, random.Random(number))) for number in range(given.files))
    print(f"{given.files} files, {decoded} decoded, the others left to Pillow")


if __name__ == "__main__":
    main()
