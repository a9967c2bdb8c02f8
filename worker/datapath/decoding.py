"""The bytes of a picture to its pixels, within limits, whatever the bytes are.

What comes out is what open_clip's own loading would have seen: orientation tags are not applied,
16-bit, CMYK, palette and transparent pictures keep their mode until the model's preprocessing
converts them with Pillow's `convert("RGB")` (16-bit values above 255 become white), and of an
animation the first frame counts.
"""

import io
import math
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from api_client.wire.errors import ImageTooLarge, ImageUnreadable, ItemError

from ..extent import set_extent

# What Pillow may try. Formats that run other programs or carry scripts (EPS, PDF, WMF) stay out.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# Pillow reads the variants of PPM that are written in plain text one comment at a time, in time
# that grows with the square of their number: minutes for 3 MB.
_PLAIN_PPM = (b"P1", b"P2", b"P3")

# The JPEG decoder may shrink down to this many times the model's input, so that the resize after
# it still decides how the picture looks: see docs/why.md, "What fast decoding may change".
SPARE = 1.5

# A progressive JPEG is coded in passes over the whole picture, usually ten, at about 3 ns a pixel
# each. Sixty bytes make another pass, so a file within the limits could ask for days.
PASSES = 20

_START_OF_SCAN = b"\xff\xda"
_SCAN = 0xDA
_SEQUENTIAL = frozenset({0xC0, 0xC1})  # frames in Huffman code, as nearly all are
_TABLES_AND_TEXTS = frozenset({0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE})


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one picture. `scales`: a JPEG may come out smaller than it is."""

    pixels: int
    scales: bool


def set_up() -> None:
    """For the whole process: our limit of pixels replaces Pillow's, half warning, half error."""
    Image.MAX_IMAGE_PIXELS = None
    warnings.filterwarnings("ignore", module=r"PIL\.")


def decode(data: bytes, *, name: str, near: int | None, limits: Limits) -> Image.Image:
    """The picture, and its `extent`.

    Args:
        name: for sentences.
        near: pixels along one edge of the model's input; None always decodes in full.

    Raises:
        ImageTooLarge: its header, or its decoding, asks for more than the limits allow.
        ImageUnreadable: it is none, or broken.
    """
    try:
        if data.startswith(_PLAIN_PPM):
            raise ImageUnreadable(f"{name} is a PPM in plain text; write it in binary")
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _refuse_large(image, data, name, limits)
        extent = _shrunk(image, near) if limits.scales and near else image.size
        image.load()
        set_extent(image, extent)
    except ItemError:
        raise
    except UnidentifiedImageError:
        raise ImageUnreadable(f"{name} is none of {', '.join(FORMATS)}") from None
    except MemoryError:
        raise ImageTooLarge(f"{name} does not fit into memory") from None
    except Exception as error:  # a decoder given hostile bytes may raise anything
        raise ImageUnreadable(f"{name} cannot be decoded: {error}") from None
    return image


def _refuse_large(image: Image.Image, data: bytes, name: str, limits: Limits) -> None:
    pixels = image.width * image.height
    if pixels > limits.pixels:
        raise ImageTooLarge(
            f"{name} is {image.width}x{image.height}, more than {limits.pixels} pixels"
        )
    if _is_jpeg(image) and _passes(data) * pixels > PASSES * limits.pixels:
        raise ImageTooLarge(f"{name} is coded in too many passes for its size")


def _passes(data: bytes) -> int:
    """The most scans of a JPEG that its decoder may go through.

    A sequential one whose first scan has all its components has no other: libjpeg stops there. All
    the rest is counted, which takes a fifteenth of the time of decoding.
    """
    at, components = 2, None
    while at + 9 < len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == _SCAN and data[at + 4] == components:
            return 1
        if marker in _SEQUENTIAL:
            components = data[at + 9]
        elif marker not in _TABLES_AND_TEXTS:
            break
        at += 2 + length
    return data.count(_START_OF_SCAN)


def _is_jpeg(image: Image.Image) -> bool:
    return image.format in ("JPEG", "MPO")


def _shrunk(image: Image.Image, near: int) -> tuple[float, float]:
    """Has a JPEG decoded at a half, a quarter or an eighth of its size; what that leaves of it.

    Other fractions take longer than the whole picture: libjpeg-turbo has no vector code for them.
    """
    if _is_jpeg(image):
        least = math.ceil(SPARE * near)
        if drafted := image.draft(None, (least, least)):
            _, (_, _, width, height) = drafted
            return width, height
    return image.size
