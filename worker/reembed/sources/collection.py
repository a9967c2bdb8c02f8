"""A collection of vectors that exists already: its references are embedded anew."""

from collections.abc import Iterator

from api_client.wire.errors import ImageUnreadable, JobRefused
from api_client.wire.jobs import Place

from ..doors import Doors
from ..items import Item
from ..sinks import Walkable, open_sink
from . import Content
from .refs import content, file_of_text

TOLD_BY = 2**16  # rows: who has nothing but texts so far is told so, and not hours later


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
        lacking, has_others = "", False
        for number, (item_id, fields) in enumerate(held.rows(), start=1):
            rest = dict(fields)
            if wanted not in rest:
                names = ", ".join(sorted(rest))
                raise JobRefused(
                    f"{item_id!r} has no field {wanted!r}; it has {names}: name another by an "
                    f"option of the source, as in `--from {'text' if self._text else 'ref'}=NAME`"
                )
            found = rest.pop(wanted)
            value = "" if found is None else str(found)
            text = value if self._text else None
            ref = str(rest.pop("ref", item_id)) if self._text else value
            item = Item(id=item_id, ref=ref, text=text, meta=rest)
            this = _lacking(item)
            lacking, has_others = lacking or this, has_others or not this
            if number == TOLD_BY and not has_others:
                break
            yield item  # a text beside others is one item's failure
        if lacking and not has_others:
            raise JobRefused(lacking)

    def fetch(self, item: Item) -> Content:
        if item.text is not None:
            return item.text
        if lacking := _lacking(item):
            raise ImageUnreadable(lacking)
        return content(item.ref, self._doors)


def _lacking(item: Item) -> str:
    """What to do about a text, which no sink keeps itself; empty for anything else."""
    if item.text is not None or (file := file_of_text(item.ref)) is None:
        return ""
    return (
        f"{item.id!r} is a text of {file!r}, and the collection does not hold it: name that file "
        "as the source (`--source` of a migration), or a field with the text by an option of the "
        "source, as in `--from text=NAME`"
    )
