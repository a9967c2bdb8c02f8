"""Where embeddings come from. A family is found by name: built in, or an entry point."""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from threading import Lock

from api_client.wire.errors import BackendFailed

from ..catalogue import Entry
from .base import Backend, Model, Placement

GROUP = "clipyard.backends"

BUILT_IN = {
    "open_clip": "worker.backends.openclip:OpenClip",
    "fake": "worker.backends.fake:Fake",
}


def find(name: str) -> Callable[[Placement], Backend]:
    """The family's class. Importing it may cost seconds (torch)."""
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        built_in: Callable[[Placement], Backend] = getattr(import_module(module), attribute)
        return built_in
    for point in entry_points(group=GROUP, name=name):
        plugin: Callable[[Placement], Backend] = point.load()
        return plugin
    known = sorted([*BUILT_IN, *(point.name for point in entry_points(group=GROUP))])
    raise BackendFailed(f"no model family {name!r}; installed are {', '.join(known)}")


class Families:
    """The families of one process, each made when its first model is asked for.

    Args:
        placement: where and how they run their models.
    """

    def __init__(self, placement: Placement) -> None:
        self._placement = placement
        self._made: dict[str, Backend] = {}
        self._lock = Lock()

    def __getitem__(self, name: str) -> Backend:
        with self._lock:
            if name not in self._made:
                self._made[name] = find(name)(self._placement)
            return self._made[name]

    def check(self, entry: Entry) -> int:
        """See `Backend.check`."""
        return self[entry.backend].check(entry)

    def load(self, entry: Entry) -> Model:
        """See `Backend.load`."""
        return self[entry.backend].load(entry)

    def describe(self, model_id: str) -> Entry | None:
        """What open_clip makes of an id that no catalogue lists: it knows them by the hundred."""
        return self["open_clip"].describe(model_id)
