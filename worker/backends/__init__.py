"""Where embeddings come from. A family is found by name: built in, or an entry point."""

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points

from api_client.wire.errors import BackendFailed

from .base import Backend, Placement

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
