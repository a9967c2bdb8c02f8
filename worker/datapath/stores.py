"""Pictures from object stores, through fsspec, below configured prefixes and nowhere else.

Keys, endpoints and regions are fsspec's own configuration (`FSSPEC_S3_ENDPOINT_URL`, ...), or the
machine's role; none of them passes through here.
"""

import errno
from collections.abc import Collection
from typing import Any
from urllib.parse import unquote

import fsspec

from api_client.wire.errors import ImageForbidden, ImageMissing, ImageTooLarge, ImageUnreachable

NO_SUCH_BYTES = {errno.EINVAL, 416}  # of an empty object: S3's driver, and Google's


class Stores:
    """Reads objects. Safe to call from many threads.

    Args:
        prefixes: `protocol://bucket/folder/`, each ending with a slash.
        max_bytes: of one object.
    """

    def __init__(self, prefixes: Collection[str], *, max_bytes: int) -> None:
        self._prefixes = tuple(prefixes)
        self._max_bytes = max_bytes

    def read(self, url: str) -> bytes:
        """The object's bytes.

        Raises:
            ImageForbidden: it is not below a prefix, or the store refuses.
            ImageMissing, ImageTooLarge, ImageUnreachable: as their names say.
        """
        name = shown(url)
        if not url.startswith(self._prefixes):
            allowed = ", ".join(self._prefixes) or "none; set CLIPYARD_IMAGE_STORES"
            hint = "; pass the path of a file alone" if url.lower().startswith("file:") else ""
            raise ImageForbidden(f"{name} is outside the image stores ({allowed}){hint}")
        if climbs(url):
            raise ImageForbidden(
                f"{name} has a step '.' or '..', '::' or a zero byte in it, by which a store could "
                "lead elsewhere: give the object a plain name, or send its bytes"
            )
        protocol, _, path = url.partition("://")
        try:
            data = _first(self._max_bytes + 1, path, file_system(protocol))
        except FileNotFoundError:
            raise ImageMissing(f"there is no object {name}") from None
        except PermissionError:
            raise ImageForbidden(f"the worker may not read {name}") from None
        except ImportError as error:  # fsspec's own words: what to install
            raise ImageUnreachable(f"{name} cannot be read on this worker: {error}") from None
        except Exception as error:  # every store has a client of its own
            raise ImageUnreachable(
                f"{name} cannot be read from its store ({type(error).__name__})"
            ) from None
        if len(data) > self._max_bytes:
            raise ImageTooLarge(f"{name} has more than {self._max_bytes} bytes")
        return data


def _first(most: int, path: str, store: Any) -> bytes:
    """The first bytes of an object by one request: to open it would be one more, for its size."""
    try:
        data: bytes = store.cat_file(path, start=0, end=most)
    except Exception as error:
        told = {getattr(error, "errno", None), getattr(error, "code", None)}
        if not told & NO_SUCH_BYTES or store.size(path) != 0:
            raise
        return b""
    return data


def file_system(protocol: str) -> Any:
    """As things are now: drivers keep listings for good, and what came later would be missed.

    Raises:
        ValueError, ImportError: there is no driver for it here.
    """
    return fsspec.filesystem(protocol, use_listings_cache=False)


def shown(place: str) -> str:
    """A path or URL for sentences: printable, and not longer than a line."""
    return repr(place if len(place) <= 200 else f"{place[:100]}...{place[-97:]}")


def climbs(url: str) -> bool:
    """Whether some store could read the rest as a way out, or as another file system (`::`)."""
    return "::" in unquote(url) or "\0" in unquote(url) or leads_up(url)


def leads_up(url: str) -> bool:
    """Whether it has a step to where it is, or up from there."""
    return not {".", ".."}.isdisjoint(unquote(url).replace("\\", "/").split("/"))
