"""References to pictures, with limits on where they lie and how large they are."""

import errno
import hashlib
import logging
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from api_client.wire.errors import (
    ImageForbidden,
    ImageGone,
    ImageMissing,
    ImageTooLarge,
    ImageUnreachable,
    ImageUnreadable,
    ItemError,
)
from api_client.wire.messages import BlobRef, ImageRef, PathRef, UrlRef

from ..processors import CLAIMS
from ..settings import WorkerSettings
from . import decoding, native
from .decoders import Decoders
from .stores import Stores, shown
from .web import PORTS, Web

log = logging.getLogger(__name__)

# What says nothing of the file: too many are open here, or its disk or server is in trouble.
PASSING = {
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EIO, errno.ENOTCONN),  # of a FUSE mount: its server is away, or its own process
    *(errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH),
}


class ImageReader:
    """Opens pictures for one worker. Safe to call from many threads.

    Args:
        settings: the `image_...` and `max_image_...` ones and `decode` count.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._roots = tuple(Path(os.path.realpath(root)) for root in settings.image_roots)
        self._max_bytes = settings.max_image_bytes
        self._limits = decoding.Limits(
            pixels=settings.max_image_pixels, scales=settings.decode == "fast"
        )
        self._all_in_processes = settings.decode_processes > 0
        self._decoders = Decoders(
            settings.decode_processes or settings.decode_threads,
            limits=self._limits,
            timeout_s=settings.decode_timeout_s,
        )
        self._stores = Stores(settings.image_stores, max_bytes=settings.max_image_bytes)
        self._web: Web | None = None
        if settings.image_urls:
            self._web = Web(
                hosts=settings.image_url_hosts,
                max_bytes=settings.max_image_bytes,
                timeout_s=settings.image_url_timeout_s,
            )
        decoding.set_up()
        if self._limits.scales and native.library() is None:
            log.warning(
                "large JPEGs take twice as long: where there is a C compiler, "
                "`python -m worker.datapath.native` helps"
            )

    def close(self) -> None:
        """Ends its decoding processes, if it has some."""
        self._decoders.close()

    def open(self, ref: ImageRef, blobs: Mapping[int, bytes], *, near: int | None) -> Image.Image:
        """The picture, decoded. With decode="fast" a JPEG may come smaller than it is.

        Args:
            blobs: file bytes that came with the request, by number.
            near: pixels along one edge of the model's input; None always decodes in full.

        Raises:
            ItemError: the narrow one: missing, forbidden, unreachable, too large, or unreadable.
        """
        return self.decode(self.read(ref, blobs), ref, near=near)

    def read(self, ref: ImageRef, blobs: Mapping[int, bytes]) -> bytes:
        """The first half of `open`: what is in the file."""
        match ref:
            case PathRef(path=path):
                return self._read(path)
            case BlobRef(blob=number):
                if (data := blobs.get(number)) is None:
                    raise ImageGone("the bytes of this image are gone; send them again")
                if ref.sha256 and hashlib.sha256(data).hexdigest() != ref.sha256:
                    raise ImageForbidden("the bytes of this image are not the ones sent")
                return data
            case UrlRef(url=url):
                return self._fetched(url)

    def decode(self, data: bytes, ref: ImageRef, *, near: int | None) -> Image.Image:
        """The second half of `open`."""
        name = _title(ref)
        if not data:
            raise ImageUnreadable(f"{name} is empty")
        if len(data) > self._max_bytes:
            raise ImageTooLarge(f"{name} has more than {self._max_bytes} bytes")
        with CLAIMS:
            if self._all_in_processes or decoding.needs_process(data):
                return self._decoders.decode(data, name=name, near=near)
            return decoding.decode(data, name=name, near=near, limits=self._limits)

    def _fetched(self, url: str) -> bytes:
        if url.partition(":")[0].lower() not in PORTS:
            return self._stores.read(url)
        if self._web is None:
            raise ImageForbidden(
                "URLs are off (CLIPYARD_IMAGE_URLS): send a path under an image root, or bytes"
            )
        return self._web.fetch(url)

    def _read(self, path: str) -> bytes:
        # By an opener: what is no file is closed again, which os.fdopen leaves to its caller.
        with _opening(path), open(path, "rb", opener=lambda *_: self._descriptor(path)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ImageUnreadable(f"{shown(path)} is not a regular file")
            if status.st_size <= self._max_bytes:
                data = file.read(self._max_bytes + 1)  # it may grow while it is read
                if len(data) <= self._max_bytes:
                    return data
        raise ImageTooLarge(f"{shown(path)} has more than {self._max_bytes} bytes")

    def _descriptor(self, path: str) -> int:
        """Opens a file below a root without following a link on the way.

        The name is resolved first and then walked from the root one step at a time, so what was
        checked is what is opened, even if somebody swaps a directory for a link in between.
        """
        real = Path(os.path.realpath(path))
        root = next((root for root in self._roots if real.is_relative_to(root)), None)
        if root is None:
            allowed = ", ".join(map(str, self._roots)) or "none; set CLIPYARD_IMAGE_ROOTS"
            raise ImageForbidden(f"{shown(path)} is outside the image roots ({allowed})")
        # O_NONBLOCK: opening a pipe must not wait for its writer.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        here = os.open(root, flags)
        for part in real.relative_to(root).parts:
            try:
                below = os.open(part, flags, dir_fd=here)
            finally:
                os.close(here)
            here = below
        return here


@contextmanager
def _opening(path: str) -> Iterator[None]:
    """Says what a refusal of the operating system means for the item."""
    name = shown(path)
    try:
        yield
    except ItemError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise ImageMissing(f"there is no file {name} on this worker") from None
    except IsADirectoryError:
        raise ImageUnreadable(f"{name} is not a regular file") from None
    except PermissionError:
        raise ImageForbidden(f"the worker may not read {name}") from None
    except OSError as error:
        kind = ImageUnreachable if error.errno in PASSING else ImageUnreadable
        raise kind(f"{name} cannot be opened: {error.strerror}") from None
    except ValueError:  # a null byte
        raise ImageMissing(f"no file can be named {name}") from None


def _title(ref: ImageRef) -> str:
    match ref:
        case PathRef(path=path):
            return shown(path)
        case BlobRef():  # its number is one within a message, not within the call
            return "the image sent"
        case UrlRef():
            return "the picture behind the URL"
