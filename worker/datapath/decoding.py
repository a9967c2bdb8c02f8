"""The bytes of a picture to its pixels, within limits, whatever the bytes are.

What comes out is what open_clip's own loading would have seen: orientation tags are not applied
(but by Pillow, of TIFF), nor what an AVIF says of turning and cropping; 16-bit, CMYK, palette and
transparent pictures keep their mode until the model's preprocessing converts them with Pillow's
`convert("RGB")` (16-bit values above 255 become white), and of an animation the first frame counts.
"""

import io
import math
import struct
import warnings
from dataclasses import dataclass

from PIL import AvifImagePlugin, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import PREFIXES, TILELENGTH, TILEWIDTH, TiffImageFile

from api_client.wire.errors import ImageTooLarge, ImageUnreadable, ItemError

from ..extent import set_extent
from . import jpeg

# What Pillow may try. Formats that run other programs or carry scripts (EPS, PDF, WMF) stay out.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

_ISO_MEDIA = b"ftyp"
_AVIF = (b"ftypavif", b"ftypavis")

# Pillow reads the variants of PPM that are written in plain text one comment at a time, in time
# that grows with the square of their number: minutes for 3 MB.
_PLAIN_PPM = (b"P1", b"P2", b"P3")

# It unpacks runs of a BMP in Python, down to single pixels: of the limit's 250 million in a minute,
# whatever few bytes say so, and nothing else of this process runs as it should meanwhile.
_BMP, _IN_RUNS = b"BM", (1, 2)

# It takes what a TIFF says of its strips for Python's numbers and tuples before anybody sees its
# size: 250 MB and 9 s for a million of them, in 4 MB. Most have a few hundred.
_TIFF, _ORDERS = tuple(PREFIXES), {b"II*\0": "<", b"MM\0*": ">"}
_OF_BYTES = {1, 2, 7}  # kinds of a tag that stay bytes
_OFFSETS, _DIRECTORIES = {273, 324}, {34665, 34853}  # tags of strips and tiles; of EXIF and GPS
TIFF_NUMBERS = 4096

# It reads most kinds of a PPM in Python where a sample is neither of 255 nor of 65535: 0.75 s for a
# megabyte.
_PPM = (b"P0", b"P4", b"P5", b"P6", b"Pf", b"Py")

# It joins the pieces of a JPEG's EXIF one by one, in time that grows with the square of their
# number as well: 15 s for 4 MB; and makes Python's numbers of what they hold, 0.4 s for a megabyte.
# Most files have one, and none is larger than 64 kB.
EXIF_PIECES = 16
_JPEG = b"\xff\xd8"

# The JPEG decoder may shrink down to this many times the model's input, so that the resize after
# it still decides how the picture looks: see docs/why.md, "What fast decoding may change".
SPARE = 1.5

# A progressive JPEG is coded in passes over the whole picture, usually ten, at about 3 ns a pixel
# each. Sixty bytes make another pass, so a file within the limits could ask for days.
PASSES = 20

# A model's preprocessing enlarges the short edge to the model's input first and crops then: of a
# thin strip that could ask for gigabytes, whatever family the model is of.
RESIZED_PIXELS = 32_000_000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Of one picture. `scales`: a JPEG may come out smaller than it is."""

    pixels: int
    scales: bool


def set_up() -> None:
    """For the whole process: our limit of pixels replaces Pillow's, half warning, half error."""
    Image.MAX_IMAGE_PIXELS = None
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # all cores decode already, a picture each
    warnings.filterwarnings("ignore", module=r"PIL\.")


def needs_process(data: bytes) -> bool:
    """Whether only the limits of a process bound what decoding takes: see docs/why.md.

    True of AVIF, and of what else comes in such files, as HEIC, which is refused there; of PPM; of
    the few BMP that are packed, and of TIFF that say much before their pixels.
    """
    is_packed = data.startswith(_BMP) and int.from_bytes(data[30:34], "little") in _IN_RUNS
    is_kept_apart = data[4:8] == _ISO_MEDIA or data.startswith(_PPM)
    return is_kept_apart or is_packed or (data.startswith(_TIFF) and _says_much(data))


def _says_much(tiff: bytes) -> bool:
    """Whether it may hold more numbers than a picture does, in its first directory, or in those of
    EXIF and GPS, which are not read here: each entry is a tag, its kind, how many, and where."""
    if (order := _ORDERS.get(tiff[:4])) is None:
        return True
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (entries,) = struct.unpack_from(f"{order}H", tiff, start)
        rows = struct.iter_unpack(f"{order}HHI4x", tiff[start + 2 : start + 2 + 12 * entries])
        told: list[tuple[int, int, int]] = list(rows)
    except struct.error:
        return True
    numbers = sum(many for tag, kind, many in told if tag in _OFFSETS or kind not in _OF_BYTES)
    has_more = any(tag in _DIRECTORIES for tag, _, _ in told)
    return has_more or numbers > TIFF_NUMBERS or sum(many for _, _, many in told) > len(tiff)


def decode(data: bytes, *, name: str, near: int | None, limits: Limits) -> Image.Image:
    """The picture, and its `extent`.

    Args:
        name: for sentences.
        near: pixels along one edge of the model's input; None always decodes in full.

    Raises:
        ImageTooLarge: its header, its decoding or its resizing asks for more than the limits allow.
        ImageUnreadable: it is none, or broken.
    """
    try:
        if data.startswith(_PLAIN_PPM):
            raise ImageUnreadable(f"{name} is a PPM in plain text; write it in binary")
        if data.startswith(_JPEG) and jpeg.exif_pieces(data) > EXIF_PIECES:
            raise ImageTooLarge(f"{name} has its EXIF in more than {EXIF_PIECES} pieces")
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        _refuse_large(image, data, name, limits)
        _refuse_thin(image, name, near or 0)
        least = math.ceil(SPARE * near) if limits.scales and near else None
        return _loaded(image, data, least)
    except ItemError:
        raise
    except UnidentifiedImageError:
        raise ImageUnreadable(f"{name} {_unidentified(data)}") from None
    except MemoryError:
        raise ImageTooLarge(f"{name} does not fit into memory") from None
    except Exception as error:  # a decoder given hostile bytes may raise anything
        raise ImageUnreadable(f"{name} cannot be decoded: {error}") from None


def _unidentified(data: bytes) -> str:
    if data.startswith(_JPEG):
        return "is a JPEG that Pillow cannot read: cut short, damaged, or of a kind such as 12 bits"
    if data[4:12] not in _AVIF:
        return f"is none of {', '.join(FORMATS)}"
    if AvifImagePlugin.SUPPORTED:
        return "is an AVIF that libavif cannot read; it may be cut short"
    return "is an AVIF, which this worker's Pillow cannot open; install a wheel of Pillow there"


def _refuse_large(image: Image.Image, data: bytes, name: str, limits: Limits) -> None:
    pixels = image.width * image.height
    if pixels > limits.pixels:
        raise ImageTooLarge(
            f"{name} is {image.width}x{image.height}, more than {limits.pixels} pixels"
        )
    if isinstance(image, TiffImageFile):  # libtiff unpacks a tile whole, however little is picture
        wide, high = (image.tag_v2.get(edge, 0) for edge in (TILEWIDTH, TILELENGTH))
        if wide * high > limits.pixels:
            raise ImageTooLarge(
                f"{name} is in tiles of {wide}x{high}, more than {limits.pixels} pixels"
            )
    if isinstance(image, JpegImageFile) and jpeg.passes(data) * pixels > PASSES * limits.pixels:
        raise ImageTooLarge(f"{name} is coded in too many passes for its size")


def _refuse_thin(image: Image.Image, name: str, near: int) -> None:
    short, long = sorted(image.size)
    if near * near * long > RESIZED_PIXELS * short:
        raise ImageTooLarge(f"{name} is {image.width}x{image.height}, too thin to embed")


def _loaded(image: Image.Image, data: bytes, least: int | None) -> Image.Image:
    """The picture, of which a JPEG may be a half, a quarter or an eighth, no edge below `least`.

    Other fractions take longer than the whole picture: libjpeg-turbo has no vector code for them.
    """
    extent: tuple[float, float] = image.size
    if least and isinstance(image, JpegImageFile):
        if min(image.size) >= jpeg.BLOCK * least and (small := jpeg.eighth(image, data)):
            set_extent(small, (image.width / jpeg.BLOCK, image.height / jpeg.BLOCK))
            return small
        if drafted := image.draft(None, (least, least)):
            _, (_, _, width, height) = drafted
            extent = width, height
    image.load()
    set_extent(image, extent)
    return image
