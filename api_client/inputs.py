"""What a caller may pass as pictures and texts, checked and made into messages.

Everything impossible is refused here, before it is sent. A picture that cannot be had here
costs one item, as one that the worker cannot open.
"""

import base64
import binascii
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO, IOBase
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from .wire.endings import PICTURES
from .wire.errors import (
    BadRequest,
    ImageMissing,
    ImageTooLarge,
    ImageUnreadable,
    ItemError,
    first_mistake,
)
from .wire.messages import MAX_TEXT_CHARS, BlobRef, Failure, ImageRef, PathRef, UrlRef

_Ref = TypeVar("_Ref", PathRef, UrlRef)
Picture = Any  # str | Path | bytes | PIL.Image.Image | NDArray[np.uint8]; Pillow loads only if used

# In base64 of any type, for a program may not know which; without, if it calls itself a picture.
_DATA_URI = re.compile(r"\s*data:(image/|[^,\s]*;base64,)", re.IGNORECASE)
# What a JPEG, PNG, GIF, WebP or AVIF begins with in base64: other services take pictures so.
_BARE = re.compile(r"\s*(/9j/|iVBORw0KGgo|R0lGOD|UklGR|AAAA.GZ0eXBhdml)[A-Za-z0-9+/]{60}")

MOST_BYTES = 512 * 1024**2  # of one value: over more Redis cuts the whole connection

# Pillow's modes: those that PNG holds, where TIFF holds the rest, and what neither does.
_IN_PNG = {"1", "L", "LA", "P", "RGB", "RGBA", "I;16"}
_LOSSLESS = {"tiff_lzw", "tiff_adobe_deflate", "packbits"}
_PACKED = {"CMYK", "LAB", "I", "F", "PA"}  # that come out of a compressed TIFF as they went in
_IN_NO_FILE = {"HSV": "RGB", "RGBa": "RGBA", "La": "LA"}


@dataclass(frozen=True)
class Pictures:
    """One message's pictures.

    Attributes:
        blobs: the bytes of those sent by value.
        failures: why some cannot be had here. In their place no bytes are sent, which fail there.
    """

    refs: tuple[ImageRef, ...]
    blobs: dict[int, bytes]
    failures: dict[int, Failure]

    def sealed(self) -> tuple[ImageRef, ...]:
        """The references, those of bytes with their SHA-256: what is sent beside a signature."""
        return tuple(
            BlobRef(blob=ref.blob, sha256=hashlib.sha256(self.blobs[ref.blob]).hexdigest())
            if isinstance(ref, BlobRef)
            else ref
            for ref in self.refs
        )


def pictures(items: Sequence[Picture], *, first: int = 0) -> Pictures:
    """References for one message.

    A string is a data URI, a URL if it has a scheme, whatever space is around either, else a path
    on the worker's machine; relative paths are taken from here. A file whose name is not UTF-8
    cannot be named in a message: it is read here. Bytes are an image file's content. Pillow images
    and uint8 arrays (height, width[, channels]) travel losslessly as PNG, or as TIFF where PNG has
    no such mode.

    Args:
        first: position of items[0] in the caller's list, for the error's sentence.

    Raises:
        BadRequest: an item is of another type, or an array of another dtype or shape.
    """
    refs: list[ImageRef] = []
    blobs: dict[int, bytes] = {}
    failures: dict[int, Failure] = {}
    for position, item in enumerate(items):
        ref: ImageRef = BlobRef(blob=position)
        try:
            match item:
                case str() if is_data_uri(item):
                    blobs[position] = of_data_uri(item)
                case str() if is_bare_base64(item):
                    raise ImageUnreadable(
                        "a picture in base64 is sent as data:image/...;base64,..."
                    )
                case str() if "://" in item:
                    ref = _named(UrlRef, url=item.strip())
                case str() | Path() if str(item) and _is_utf8(file := _from_here(item)):
                    ref = _named(PathRef, path=str(file))
                case _:
                    blobs[position] = _file_bytes(item, first + position)
            if (size := len(blobs.get(position, b""))) > MOST_BYTES:
                raise ImageTooLarge(
                    f"a picture of {size} bytes cannot be sent by value, {MOST_BYTES} at most can; "
                    "pass its path or its URL to workers with as large a CLIPYARD_MAX_IMAGE_BYTES"
                )
        except ItemError as error:
            blobs[position], failures[position] = b"", Failure.of(error)
        refs.append(ref)
    return Pictures(tuple(refs), blobs, failures)


def is_data_uri(item: str) -> bool:
    """Whether a string holds a picture, or is meant to."""
    return _DATA_URI.match(item) is not None


def is_bare_base64(item: str) -> bool:
    """Whether a string is a picture in base64 that does not say so."""
    return _BARE.match(item) is not None


def of_data_uri(uri: str) -> bytes:
    """What a picture's data URI holds.

    Raises:
        ImageUnreadable: nothing in base64.
    """
    head, comma, body = uri.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ImageUnreadable("a picture's data URI is data:image/...;base64,...")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageUnreadable("a picture's data URI holds no base64") from None


def several(images: Iterable[Picture]) -> Iterable[Picture]:
    """The pictures, unread.

    Raises:
        BadRequest: it is one picture, or no pictures at all.
    """
    single = str | bytes | bytearray | memoryview | Path | np.ndarray | IOBase  # a file has lines
    if isinstance(images, single) or not isinstance(images, Iterable):
        raise BadRequest(f"images is {type(images).__name__}; pass a list of pictures")
    return images


def pictures_in(folder: str | Path) -> list[Path]:
    """The files below it that are known as pictures, sorted; no hidden ones, as in a job.

    Raises:
        OSError: not all of it may be read.
    """
    return sorted(file for file in _below(folder) if file.name.lower().endswith(PICTURES))


def _below(folder: str | Path) -> Iterator[Path]:
    def refuse(error: OSError) -> NoReturn:
        raise error

    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(here, name) for name in files if not name.startswith("."))


def texts(items: str | Iterable[str]) -> list[str]:
    """The texts, checked.

    Raises:
        BadRequest: one is no string, empty, blank, no Unicode, or absurdly long.
    """
    if isinstance(items, str):
        items = [items]
    if not isinstance(items, Iterable) or isinstance(items, bytes):
        raise BadRequest(f"texts is {type(items).__name__}; pass a list of strings")
    found = list(items)
    for position, text in enumerate(found):
        if not isinstance(text, str):
            raise BadRequest(f"texts[{position}] is {type(text).__name__}; pass a string")
        if not text.strip():
            raise BadRequest(f"texts[{position}] is empty or blank; pass at least one word")
        if printable(text) != text:
            raise BadRequest(
                f"texts[{position}] has half of a surrogate pair, {printable(text):.100}; "
                "encode it with errors='replace' and decode it again"
            )
        if len(text) > MAX_TEXT_CHARS:
            raise BadRequest(
                f"texts[{position}] has {len(text)} characters; at most {MAX_TEXT_CHARS} are taken"
            )
    return found


def printable(file: Path | str) -> str:
    """A name as it can be shown and written down: what is not UTF-8 in it is escaped."""
    return str(file).encode(errors="backslashreplace").decode()


def _from_here(item: str | Path) -> Path:
    try:
        return Path(item).absolute()
    except FileNotFoundError:
        raise ImageMissing(
            f"{printable(item)} is a relative path, and the folder of this process is gone; "
            "pass an absolute one"
        ) from None


def _is_utf8(file: Path) -> bool:
    return printable(file) == str(file)


def _named(kind: type[_Ref], **name: str) -> _Ref:
    try:
        return kind(**name)
    except ValidationError as error:
        [given] = map(printable, name.values())
        mistake = first_mistake(error)
        raise ImageUnreadable(f"{given:.100} cannot be named in a message: {mistake}") from None


def _file_bytes(item: Picture, position: int) -> bytes:
    if isinstance(item, str | Path) and str(item):
        return _content(Path(item))
    if isinstance(item, bytes | bytearray | memoryview):
        return bytes(item)
    if isinstance(item, np.ndarray):
        item = _from_array(item, position)
    if hasattr(item, "save") and hasattr(item, "mode"):
        try:
            return _lossless(item)
        except Exception as error:  # a file that Pillow opened, and reads only now, may be broken
            raise ImageUnreadable(f"a Pillow image that cannot be sent: {error}") from error
    what = "an empty string" if isinstance(item, str) else type(item).__name__
    raise BadRequest(
        f"images[{position}] is {what}; "
        "pass a path, a URL, a data URI, bytes of an image file, a Pillow image or a uint8 array"
    )


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        raise ImageMissing(f"there is no file {printable(file)}") from None
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "no file can have this name"
        raise ImageUnreadable(
            f"{printable(file)}, a name that is not UTF-8, cannot be read here to be sent by "
            f"value: {why}"
        ) from None


def _from_array(array: NDArray[Any], position: int) -> Any:
    from PIL import Image

    channels = array.shape[2] if array.ndim == 3 else 1
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise BadRequest(
            f"images[{position}] is an array of {array.dtype} {array.shape}; "
            "pass uint8 of (height, width), (height, width, 3) or (height, width, 4)"
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and channels == 1 else array)


def _lossless(image: Any) -> bytes:
    if image.mode in _IN_NO_FILE:
        image = image.convert(_IN_NO_FILE[image.mode])
    # Quick rather than small: the bytes live for one request. Not as whatever file it comes from:
    # a TIFF would be compressed with losses, or not at all where that was for another mode.
    was = image.info.get("compression")
    save = partial(
        image.save,
        format="PNG" if image.mode in _IN_PNG else "TIFF",
        compress_level=1,
        compression=was if was in _LOSSLESS and image.mode in _PACKED else "raw",
    )
    out = BytesIO()
    try:
        save(out)
    except ValueError:  # what is noted of transparency was for another mode
        save(out := BytesIO(), transparency=None)
    return out.getvalue()
