"""Makes a source or a sink, found by its kind: built in, or an entry point of an installed package.
And reads the options that a job gives it."""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from api_client.wire.errors import ClipyardError, JobRefused, first_line
from api_client.wire.jobs import Place


def made(group: str, built_in: Mapping[str, str], place: Place, *parts: Any) -> Any:
    """What is at a place, by its kind: of the class that is found for it, made with these parts.

    Raises:
        JobRefused: there is no such kind, none can have such a name or address, or its package is
            not installed on this worker.
        ClipyardError: what else the class says.
    """
    kind = _found(group, built_in, place.kind)
    try:
        return kind(place, *parts)
    except ClipyardError:
        raise
    except ValueError as error:  # of its client, about a name or an address
        told = " ".join([place.where, *place.options.values()])
        raise JobRefused(f"{place.kind} cannot be at {told!r}: {first_line(error)}") from error


def _found(group: str, built_in: Mapping[str, str], name: str) -> Callable[..., Any]:
    points = {point.name: point for point in entry_points(group=group)}
    try:
        if name in built_in:
            module, _, attribute = built_in[name].partition(":")
            own: Callable[..., Any] = getattr(import_module(module), attribute)
            return own
        if name in points:
            plugin: Callable[..., Any] = points[name].load()
            return plugin
    except ImportError as error:
        if name not in built_in:
            raise JobRefused(
                f"the plug-in {points[name].value} for {name!r} cannot be imported on the worker: "
                f"{first_line(error)}"
            ) from error
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
