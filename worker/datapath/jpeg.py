"""JPEG files: what their headers say, and our own decoder to an eighth of their size."""

import ctypes
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.Image import Resampling
from PIL.JpegImagePlugin import JpegImageFile

from . import native

BLOCK = 8  # pixels along an edge
_TABLES, _COMPONENTS = 2, 3  # as in eighth.c
_FACTORS = {1, 2}  # blocks of a component in an MCU, along an edge: more is rare

_BASELINE, _EXTENDED = 0xC0, 0xC1  # frames in one pass and in Huffman code, as nearly all are
_PROGRESSIVE = 0xC2
_CODES, _SCAN, _RESTART, _APP1 = 0xC4, 0xDA, 0xDD, 0xE1
_EXIF = b"Exif\0\0"
_TABLES_AND_TEXTS = frozenset({_CODES, 0xDB, _RESTART, *range(0xE0, 0xF0), 0xFE})


def passes(data: bytes) -> int:
    """The most scans of a JPEG that its decoder may go through.

    A sequential one whose first scan has all its components has no other: libjpeg stops there. All
    the rest is counted, which takes a fifteenth of the time of decoding.
    """
    components = None
    for marker, body in _segments(data):
        if marker == _SCAN and body[0] == components:
            return 1
        if marker in (_BASELINE, _EXTENDED):
            components = body[5]
        elif marker not in _TABLES_AND_TEXTS:
            break
    return data.count(bytes((0xFF, _SCAN)))


def exif_pieces(data: bytes) -> int:
    """The most pieces of EXIF that whoever reads the header may find, counted as in `passes`."""
    found = 0
    for marker, body in _segments(data):
        if marker == _SCAN:
            return found
        found += marker == _APP1 and body.startswith(_EXIF)
        if marker not in {_BASELINE, _EXTENDED, _PROGRESSIVE, *_TABLES_AND_TEXTS}:
            break
    return data.count(_EXIF)


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of what comes before the first coefficients."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
        yield data[at + 1], data[at + 4 : end]
        at = end


class _Codes(ctypes.Structure):
    _fields_ = (("counts", ctypes.c_uint8 * 16), ("symbols", ctypes.c_uint8 * 256))


class _Component(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int32) for name in ("across", "down", "dc", "ac", "step"))


class _Plan(ctypes.Structure):
    """`struct plan` of eighth.c."""

    _fields_ = (
        ("dc", _Codes * _TABLES),
        ("ac", _Codes * _TABLES),
        ("components", _Component * _COMPONENTS),
        *((name, ctypes.c_int32) for name in ("count", "wide", "high", "restart")),
    )


class _Odd(Exception):
    """A file that eighth.c does not decode."""


def eighth(image: JpegImageFile, data: bytes) -> Image.Image | None:
    """Each block of 8x8 pixels as one: (ceil(width / 8), ceil(height / 8)), mode RGB or L.

    The greys are those of libjpeg-turbo at that scale, in half of its time. Colours that are stored
    at half the resolution stay at that; see docs/why.md, "Which JPEG decoder".

    Args:
        image: the file `data`, opened and not loaded.

    Returns:
        None if it is anything but a whole sequential JPEG in grey or YCbCr, or nothing is compiled.
    """
    if (library := native.library()) is None:
        return None
    try:
        plan, start = _plan(image, data)
    except (_Odd, LookupError, ValueError):
        return None
    parts = plan.components[: plan.count]
    shapes = [(plan.high * part.down, plan.wide * part.across) for part in parts]
    planes = [np.empty(shape, np.uint8) for shape in shapes]
    work = np.empty(len(data) - start + library.clipyard_padding(), np.uint8)
    if not library.clipyard_eighth(
        ctypes.byref(plan),
        ctypes.c_char_p(data),
        ctypes.c_size_t(start),
        ctypes.c_size_t(len(data)),
        ctypes.c_void_p(work.ctypes.data),
        (ctypes.c_void_p * _COMPONENTS)(*(plane.ctypes.data for plane in planes)),
    ):
        return None
    high, wide = map(max, zip(*shapes, strict=True))
    grey, *colours = (
        Image.fromarray(plane).resize((wide, high), Resampling.NEAREST) for plane in planes
    )
    picture = Image.merge("YCbCr", (grey, *colours)).convert("RGB") if colours else grey
    return picture.crop((0, 0, -(-image.width // BLOCK), -(-image.height // BLOCK)))


def _plan(image: JpegImageFile, data: bytes) -> tuple[_Plan, int]:
    """What eighth.c has to know, and where in `data` the coefficients begin."""
    if image.layers != len(image.layer) or not _is_grey_or_ycbcr(image):
        raise _Odd
    plan, at = _Plan(count=image.layers), 2
    for marker, body in _segments(data):
        at += 4 + len(body)
        if marker == _CODES:
            _read_codes(plan, body)
        elif marker == _RESTART:
            plan.restart = int.from_bytes(body[:2])
        elif marker == _SCAN:
            _read_scan(plan, image, body)
            return plan, at
        elif marker not in _TABLES_AND_TEXTS and marker not in (_BASELINE, _EXTENDED):
            break
    raise _Odd


def _is_grey_or_ycbcr(image: JpegImageFile) -> bool:
    """By the rules of libjpeg; the few that have colours of another kind are left to it."""
    if image.layers == 1:
        return True
    transform = None if "jfif" in image.info else image.info.get("adobe_transform")
    ids = [number for number, *_ in image.layer]
    return ids == [1, 2, 3] and transform in (None, 1)


def _read_codes(plan: _Plan, body: bytes) -> None:
    while body:
        codes = (plan.ac if body[0] >> 4 else plan.dc)[body[0] & 15]
        counts = body[1:17]
        end = 17 + sum(counts)
        codes.counts[:] = counts
        codes.symbols[: end - 17] = body[17:end]
        body = body[end:]


def _read_scan(plan: _Plan, image: JpegImageFile, body: bytes) -> None:
    count = plan.count
    if body[0] != count or body[1 + 2 * count :] != bytes((0, 63, 0)):
        raise _Odd
    # A component that is alone has its blocks one by one, whatever its factors say.
    factors = [(wide, high) if count > 1 else (1, 1) for _, wide, high, _ in image.layer]
    across, down = map(max, zip(*factors, strict=True))
    for index, ((wide, high), (number, _, _, quantiser)) in enumerate(
        zip(factors, image.layer, strict=True)
    ):
        whose, codes = body[1 + 2 * index], body[2 + 2 * index]
        dc, ac = codes >> 4, codes & 15
        if whose != number or max(dc, ac) >= _TABLES or {wide, high} - _FACTORS:
            raise _Odd
        plan.components[index] = (wide, high, dc, ac, image.quantization[quantiser][0])
    plan.wide = -(-image.width // (BLOCK * across))
    plan.high = -(-image.height // (BLOCK * down))
