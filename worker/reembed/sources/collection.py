"""A collection of vectors that exists already: its references are embedded anew."""

import re
from collections.abc import Iterator

from api_client.wire.errors import JobRefused
from api_client.wire.jobs import Place

from ..doors import Doors
from ..items import Item
from ..sinks import Walkable, open_sink
from . import Content
from .refs import content

A_TEXT = re.compile(r"[^/]+:\d+")  # the reference of one, see `Texts`; no sink keeps it itself


class Collection:
    """The rows of a sink. Ids stay as they are, and so do the other fields, as metadata.

    Options: `store` is the sink's kind, with its own options; `ref` names the field with the path
    or URL (`ref`), or `text` the one with the text.
    """

    def __init__(self, place: Place, doors: Doors) -> None:
        options = dict(place.options)
        self._doors = doors
        self._text = options.pop("text", "")
        self._ref = options.pop("ref", "ref")
        store = options.pop("store", "qdrant")  # may be none that there is; see `open_sink`
        self._store = place.model_copy(update={"kind": store, "options": options})

    def walk(self) -> Iterator[Item]:
        held = open_sink(self._store, None, self._doors)
        if not isinstance(held, Walkable):
            raise JobRefused(f"a sink of kind {self._store.kind!r} cannot be walked")
        wanted = self._text or self._ref
        for item_id, fields in held.rows():
            rest = dict(fields)
            if wanted not in rest:
                names = ", ".join(sorted(rest))
                raise JobRefused(
                    f"{item_id!r} has no field {wanted!r}; it has {names}: name another by an "
                    f"option of the source, as in `--from {'text' if self._text else 'ref'}=NAME`"
                )
            found = rest.pop(wanted)
            value = "" if found is None else str(found)
            if not self._text and A_TEXT.fullmatch(value):
                raise JobRefused(
                    f"{item_id!r} is a text of {value.rpartition(':')[0]!r}, and the collection "
                    "does not hold it: name that file as the source (`--source` of a migration), "
                    "or a field with the text by an option of the source, as in `--from text=NAME`"
                )
            text = value if self._text else None
            ref = str(rest.pop("ref", item_id)) if self._text else value
            yield Item(id=item_id, ref=ref, text=text, meta=rest)

    def fetch(self, item: Item) -> Content:
        return content(item.ref, self._doors) if item.text is None else item.text
