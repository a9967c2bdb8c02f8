"""Pictures behind anything that fsspec opens: object stores, memory, other machines."""

from collections.abc import Iterator
from typing import Any

import fsspec

from api_client.wire.errors import ClipyardError, JobRefused, StoreDown, first_line
from api_client.wire.jobs import Place

from ...datapath.stores import file_system
from ..doors import Doors
from ..items import Item
from ..plugins import options_of
from . import Content
from .folder import matching, split
from .refs import content


class Remote:
    """A folder or a glob of a store, e.g. `s3://photos/2024/**/*.jpg`; ids are relative paths.

    Memory: the names of one folder at a time, as far as the store's driver does the same.
    """

    def __init__(self, place: Place, doors: Doors) -> None:
        options_of(place)
        self._doors = doors
        doors.walking(place.where)
        protocol, sep, path = place.where.partition("://")
        if not sep:
            raise JobRefused(f"{place.where!r} is no URL such as s3://bucket/folder")
        base, pattern = split(path)
        self._protocol = protocol
        self._files: Any = _file_system(protocol, f"{protocol}://{base}")
        self._base = str(self._files._strip_protocol(f"{protocol}://{base}")).rstrip("/")
        self._match = matching(pattern)

    def walk(self) -> Iterator[Item]:
        try:
            if self._files.info(self._base)["type"] == "file":
                raise JobRefused(
                    f"{self._protocol}://{self._base} is one object, not a folder of pictures; "
                    "of lists and archives name a copy in a folder of the workers"
                )
            yield from self._below(self._base)
        except ClipyardError:
            raise
        except FileNotFoundError:
            raise JobRefused(f"there is nothing at {self._protocol}://{self._base}") from None
        except Exception as error:  # every store has a client of its own
            place = f"{self._protocol}://{self._base}"
            raise StoreDown(f"{place}: {type(error).__name__}: {error}") from error

    def _below(self, folder: str) -> Iterator[Item]:
        for entry in sorted(self._files.ls(folder, detail=True), key=lambda e: str(e["name"])):
            name = str(entry["name"])
            path = name.rstrip("/")
            if path == folder:
                if entry["type"] == "directory" and name.endswith("/"):
                    yield from self._nameless(folder)
            elif entry["type"] == "directory":
                yield from self._below(path)
            else:
                yield from self._wanted(path)

    def _nameless(self, folder: str) -> Iterator[Item]:
        """Below a folder without a name, as of `a//b.png`, for which s3fs lists `a` once more."""
        for path in sorted(self._files.find(folder)):
            if path.startswith(f"{folder}//") and not path.endswith("/"):
                yield from self._wanted(path)

    def _wanted(self, path: str) -> Iterator[Item]:
        inside = path[len(self._base) :].removeprefix("/")
        if self._match(inside):
            yield Item(id=inside, ref=f"{self._protocol}://{path.lstrip('/')}")

    def fetch(self, item: Item) -> Content:
        return content(item.ref, self._doors)


def _file_system(protocol: str, where: str) -> Any:
    """
    Raises:
        JobRefused: it has no driver here, or one that wants what no address of ours tells it.
        StoreDown: it may be away. Some drivers connect at once, each with errors of its own.
    """
    try:
        driver: Any = fsspec.get_filesystem_class(protocol)
        base = str(driver._strip_protocol(where)).strip("/")
        if not where.startswith(f"{protocol}://{base}"):
            raise JobRefused(
                f"{where!r} names a host, which {protocol}:// leaves out of the addresses of what "
                "it lists; leave it to fsspec's configuration, or mount it and name the folder"
            )
        return file_system(protocol)
    except ClipyardError:
        raise
    except (ValueError, ImportError) as error:
        raise JobRefused(f"{protocol}:// cannot be opened on this worker: {error}") from None
    except TypeError as error:
        raise JobRefused(
            f"{protocol}:// cannot be opened by an address alone ({error}); "
            f"set FSSPEC_{protocol.upper()}_<ARGUMENT> on the workers"
        ) from None
    except Exception as error:
        told = f"{type(error).__name__}: {first_line(error)}"
        raise StoreDown(f"{protocol}:// cannot be opened at the moment: {told}") from error
