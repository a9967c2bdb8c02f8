"""Finds a source or a sink by its name: built in, or an entry point of an installed package. And
reads the options that a job gives it."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from api_client.wire.errors import JobRefused
from api_client.wire.jobs import Place


def find(group: str, built_in: Mapping[str, str], name: str) -> Callable[..., Any]:
    """The class of that name.

    Raises:
        JobRefused: there is none, or its package is not installed on this worker.
    """
    points = {point.name: point for point in entry_points(group=group)}
    try:
        if name in built_in:
            module, _, attribute = built_in[name].partition(":")
            made: Callable[..., Any] = getattr(import_module(module), attribute)
            return made
        if name in points:
            plugin: Callable[..., Any] = points[name].load()
            return plugin
    except ImportError as error:
        raise JobRefused(
            f"{name!r} needs the package {error.name} on the worker: "
            "pip install -e '.[worker,sinks]' in the checkout"
        ) from error
    known = ", ".join(sorted({*built_in, *points}))
    raise JobRefused(f"no {group.partition('.')[2]} of kind {name!r}; there are {known}")


def options_of(place: Place, **defaults: str) -> Mapping[str, str]:
    """What a place says of these options, and their defaults where it says nothing.

    Raises:
        JobRefused: it has others, which would be a job of hours that nobody asked for.
    """
    if unknown := sorted(place.options.keys() - defaults.keys()):
        known = f"there are {', '.join(defaults)}" if defaults else "it has none"
        raise JobRefused(f"no option {unknown[0]!r} of {place.kind} ({place.where}); {known}")
    return {**defaults, **place.options}
