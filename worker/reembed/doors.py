"""Where jobs may read and write: what a message asks for is checked against the worker's settings.

A worker serves whoever can reach its Redis, so a job is no reason to open or write just any file.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from api_client.wire.errors import JobRefused

from ..datapath.stores import climbs, leads_up
from ..settings import WorkerSettings

ANY = "*"


class Doors:
    """What one worker lets jobs open.

    Args:
        settings: `image_roots`, `image_stores`, `sink_roots` and `sink_addresses` count, and
            `max_image_bytes`.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._read = _real(settings.image_roots)
        self._written = _real(settings.sink_roots)
        self._stores = settings.image_stores
        self._addresses = settings.sink_addresses
        self.max_image_bytes = settings.max_image_bytes

    def reading(self, path: str) -> Path:
        """A file or folder to read, links resolved.

        Raises:
            JobRefused: it is not below an image root.
        """
        return _below(path, self._read, "CLIPYARD_IMAGE_ROOTS")

    def writing(self, path: str) -> Path:
        """A folder to write into, links resolved.

        Raises:
            JobRefused: it is not below a sink root.
        """
        return _below(path, self._written, "CLIPYARD_SINK_ROOTS")

    def walking(self, url: str) -> str:
        """A folder of an object store, to be listed; what it holds is opened by the image reader.

        Raises:
            JobRefused: it is not below an image store.
        """
        if climbs(url):
            raise JobRefused(f"{url!r} leads out of its folder; name the one that is meant")
        return _reached(url, self._stores, "CLIPYARD_IMAGE_STORES")

    def reaching(self, address: str) -> str:
        """The address of a database.

        Raises:
            JobRefused: no prefix of the settings allows it.
        """
        if leads_up(address):  # LanceDB goes there, and takes what is no URL for a folder's path
            raise JobRefused(f"{address!r} leads out of its folder; name the one that is meant")
        return _reached(address, self._addresses, "CLIPYARD_SINK_ADDRESSES")


def _reached(address: str, prefixes: Sequence[str], setting: str) -> str:
    if ANY in prefixes or any(_leads_below(address, prefix) for prefix in prefixes):
        return address
    allowed = ", ".join(prefixes) or "none"
    raise JobRefused(f"jobs may not reach {address!r} from this worker ({setting}: {allowed})")


def _leads_below(address: str, prefix: str) -> bool:
    """`http://db` is not `http://db.evil`, and libpq takes another host from behind a `?`."""
    base = prefix if prefix.endswith("/") else f"{prefix}/"
    return f"{address}/".startswith(base) and "?" not in f"{address}/".removeprefix(base)


def _real(roots: Sequence[Path]) -> tuple[Path, ...]:
    return tuple(Path(os.path.realpath(root)) for root in roots)


def _below(path: str, roots: Sequence[Path], setting: str) -> Path:
    try:
        real = Path(os.path.realpath(path))
    except ValueError:  # a null byte
        raise JobRefused(f"no path can be {path!r}") from None
    if "://" in path:
        raise JobRefused(
            f"{path!r} is in no folder of the workers; mount the store there, and name the folder"
        )
    if not os.path.isabs(path):
        raise JobRefused(f"{path!r} is relative, and a worker does not know to what")
    if not any(real.is_relative_to(root) for root in roots):
        allowed = ", ".join(map(str, roots)) or "none"
        raise JobRefused(f"{path!r} is not below an allowed folder ({setting}: {allowed})")
    return real
