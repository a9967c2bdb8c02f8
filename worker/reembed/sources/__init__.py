"""Where a job's items come from. A source is found by name: built in, or an entry point.

Read this, then `folder.py`, then write your own: a class with two methods, made from the `Place`
that the job names and the `Doors` of the worker. It refuses options that it does not know, see
`options_of`.
"""

from collections.abc import Iterator
from typing import Protocol

from api_client.wire.jobs import Place
from api_client.wire.messages import ImageRef

from ..doors import Doors
from ..items import Item
from ..plugins import made

GROUP = "clipyard.sources"

BUILT_IN = {
    "folder": "worker.reembed.sources.folder:Folder",
    "list": "worker.reembed.sources.listing:Listing",
    "texts": "worker.reembed.sources.listing:Texts",
    "webdataset": "worker.reembed.sources.tars:Tars",
    "fsspec": "worker.reembed.sources.remote:Remote",
    "collection": "worker.reembed.sources.collection:Collection",
}

Content = ImageRef | bytes | str  # a picture that the worker opens, a file's bytes, or a text


class Source(Protocol):
    """A walk over items, and what each of them holds."""

    def walk(self) -> Iterator[Item]:
        """Every item, in the same order each time, a little of it in memory at once.

        What no sink could keep of ids and metadata is escaped afterwards, see `Item.kept`.

        Raises:
            JobRefused: the source is not there, or is not what its kind expects.
            StoreDown: it does not answer at the moment.
        """
        ...

    def fetch(self, item: Item) -> Content:
        """What is to be embedded. Called from many threads at once.

        Raises:
            ItemError: this item has no content; its neighbours go on.
            StoreDown: the source does not answer at the moment.
        """
        ...


def open_source(place: Place, doors: Doors) -> Source:
    """The source that a job names.

    Raises:
        JobRefused: there is no such kind, none can be there, or the worker may not read there.
    """
    source: Source = made(GROUP, BUILT_IN, place, doors)
    return source
