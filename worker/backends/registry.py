"""Families, found by name, each made when it is first asked for.

A family is built in, or a plug-in that the setting `backends` allows: the name of an entry point
of the group `clipyard.backends`, or `name=package.module:Class`. Nothing else is ever imported.
Whatever a plug-in does, while it is imported and later, costs its own requests and nobody else's.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeVar

from api_client.wire.errors import (
    BackendFailed,
    BadSettings,
    ClipyardError,
    LoadFailed,
    OutOfMemory,
)

from ..catalogue import BUILT_IN as SHIPPED
from ..catalogue import Catalogue, Entry, sound
from .base import About, Backend, Model, Placement, unloaded_if_mute
from .guard import Guard, GuardedModel
from .lost import is_beyond_repair
from .simple import SimpleBackend, SimpleModel
from .uncompiled import uncompiled

__all__ = ["BUILT_IN", "GROUP", "Families", "Family", "Maker"]

GROUP = "clipyard.backends"
IMPORT_WITHIN_S = 60.0  # a plug-in that hangs at import holds up nobody for longer

BUILT_IN = {
    "open_clip": "worker.backends.openclip:OpenClip",
    "timm": "worker.backends.timm:Timm",
    "ollama": "worker.backends.ollama:Ollama",
    "sentence_transformers": "worker.backends.sentence_transformers:SentenceTransformers",
    "fake": "worker.backends.fake:Fake",
}

T = TypeVar("T")
Maker = Callable[[Placement], Backend]
State = Literal["not imported", "ready", "failed"]


@dataclass(frozen=True)
class Family:
    """One line of `Families.status`.

    Attributes:
        origin: `built in`, the distribution of an entry point, the setting, or `registered`.
        state: `failed` families refuse their requests; `trouble` says why.
    """

    name: str
    origin: str
    state: State
    about: About
    trouble: str


@dataclass(frozen=True)
class _Source:
    origin: str
    get: Callable[[], object]


class Families:
    """The families of one process.

    Args:
        placement: where and how they run their models.
        allowed: plug-ins, as the setting `backends` names them.
        import_within_s: how long the import of a plug-in may take.
    """

    def __init__(
        self,
        placement: Placement,
        allowed: Iterable[str] = (),
        *,
        import_within_s: float = IMPORT_WITHIN_S,
    ) -> None:
        self._placement = placement
        self._import_within_s = import_within_s
        self._sources = _known(allowed)
        self._made: dict[str, Backend] = {}
        self._failed: dict[str, str] = {}
        self._guards: dict[str, Guard] = {}  # of plug-ins
        self._alone = {name: Lock() for name in self._sources}

    def register(self, name: str, family: Maker | type[SimpleModel]) -> None:
        """One more, from code.

        Raises:
            BadSettings: there is a family of that name.
        """
        if name in self._sources:
            raise BadSettings(f"there is a model family {name!r} already; unregister it first")
        self._alone[name] = Lock()
        self._sources[name] = _Source("registered", lambda: family)

    def unregister(self, name: str) -> None:
        """Forget a family. Its models that are in memory stay until they are unloaded.

        Raises:
            BackendFailed: there is none of that name.
        """
        if self._sources.pop(name, None) is None:
            raise BackendFailed(f"no model family {name!r}; there are {', '.join(self)}")
        for known in (self._made, self._failed, self._guards):
            known.pop(name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._sources))  # a copy: another thread may register one

    def __getitem__(self, name: str) -> Backend:
        """The family, imported and made if need be.

        Raises:
            BackendFailed: there is none of that name, or it cannot be made.
        """
        source = self._sources.get(name)
        if source is None:
            raise BackendFailed(f"no model family {name!r}; there are {', '.join(self)}")
        with self._alone[name]:
            if name in self._failed:
                raise BackendFailed(self._failed[name])
            if name not in self._made:
                try:
                    self._made[name] = self._make(name, source)
                except BackendFailed as error:
                    self._failed[name] = str(error)
                    raise
            return self._made[name]

    def discover(self) -> tuple[Entry, ...]:
        """The entries that plug-ins bring along. One of a family that fails, or of an id that
        another has taken, is left out and told of in `trouble`."""
        found: dict[str, Entry] = {}
        for name in self:
            if name in BUILT_IN:
                continue
            try:
                backend = self[name]
            except BackendFailed:
                continue
            for entry in getattr(backend, "models", ()):
                if entry.id in found:
                    other = found[entry.id].backend
                    self._failed[name] = f"{name}: the family {other} has a model {entry.id} too"
                    break
                found[entry.id] = _completed(entry, name, backend)
        return tuple(entry for entry in found.values() if entry.backend not in self._failed)

    def catalogue(self, own: Path | None = None, *more: Entry) -> Catalogue:
        """What plug-ins bring along, what ships, a person's own file, and `more`: the later wins.

        Raises:
            BadSettings: the file cannot be used.
        """
        files = [SHIPPED, own] if own else [SHIPPED]
        listed = [*self.discover(), *Catalogue.read(*files), *more]
        return Catalogue(listed, describe=self.describe)

    def auto_started(self) -> tuple[str, ...]:
        """Ids of the models to be brought onto the device at the start, in the order to do so."""
        ready = sorted(self._made.items(), key=lambda item: (_about(item[1]).priority, item[0]))
        return tuple(
            entry.id
            for name, backend in ready
            if _about(backend).auto_start and name not in self._failed
            for entry in getattr(backend, "models", ())
        )

    def status(self) -> tuple[Family, ...]:
        """Every family as it is now; imports nothing."""
        return tuple(self._status(name) for name in self)

    def trouble(self) -> str:
        """One sentence for people about the families that failed or hang; empty if none does."""
        hanging = [guard.trouble for guard in list(self._guards.values())]
        return "; ".join(filter(None, [*self._failed.values(), *hanging]))

    def check(self, entry: Entry) -> int:
        """See `Backend.check`.

        Raises:
            BackendFailed: the family raises what it should not; so do `load` and `describe`.
            OutOfMemory: a check, unlike a load, is not tried again with less in memory.
        """
        backend = self._able(entry)
        step = f"check of {entry.id}"
        try:
            return self._call(entry.backend, step, lambda: int(backend.check(entry)))
        except ClipyardError:
            raise
        except MemoryError as error:
            raise OutOfMemory(f"{entry.id} does not fit: {error}") from error

    def load(self, entry: Entry) -> Model:
        """See `Backend.load`.

        Raises:
            LoadFailed: its vectors have another length than the entry says, which callers are told.
        """
        load = partial(self._able(entry).load, entry)
        model = self._call(entry.backend, f"load of {entry.id}", load)
        guard = self._guards.get(entry.backend)
        model = GuardedModel(model, guard) if guard else model
        with unloaded_if_mute(model):
            found = model.traits.dimension
            if entry.dimension not in (0, found):
                raise LoadFailed(
                    f"{entry.id} has {found} dimensions, its entry says {entry.dimension}: mend "
                    "that, or leave it out"
                )
        return model

    def describe(self, model_id: str) -> Entry | None:
        """What the family `x` makes of `x/...`, and open_clip of any other id that no file lists.

        Raises:
            BackendFailed: that family cannot be made.
        """
        name = model_id.partition("/")[0]
        name = name if name in self._sources else "open_clip"
        found: object = self._call(name, "describe", partial(self[name].describe, model_id))
        if found is None:
            return None
        if isinstance(found, Entry):
            return _sound(found, name)
        raise BackendFailed(
            f"the model family {name}: describe answered {found!r:.100}; make it an Entry or None"
        )

    def _make(self, name: str, source: _Source) -> Backend:
        make = partial(_made, name, source, self._placement)
        if source.origin == "built in":
            return make()
        made = Guard(name, self._import_within_s).call("its import", make)
        self._guards[name] = Guard(name, _about(made).patience_s)
        return made

    def _call(self, name: str, step: str, what: Callable[[], T]) -> T:
        """
        Raises:
            BackendFailed: in the place of what a plug-in should not raise, so that callers who go
                on without this family need to know of nothing else.
        """
        guard = self._guards.get(name)
        try:
            return guard.call(step, what) if guard else what()
        except (ClipyardError, MemoryError):
            raise
        except Exception as error:
            if is_beyond_repair(error):
                raise
            raise BackendFailed(f"the model family {name}: {step} raised {error!r}") from error

    def _able(self, entry: Entry) -> Backend:
        """The entry's family.

        Raises:
            BackendFailed: it cannot do what the entry asks of any family.
        """
        backend = self[entry.backend]
        forms, known = _about(backend).at_rest, _about(backend).options
        if entry.at_rest and entry.at_rest not in forms:
            raise BackendFailed(
                f"the model family {entry.backend} cannot hold {entry.id} at rest as "
                f"{entry.at_rest}; it can as: {', '.join(forms) or 'nothing else than it is'}"
            )
        if known is not None and (unknown := entry.options.keys() - set(known)):
            raise BackendFailed(
                f"the model family {entry.backend} has no option {', '.join(sorted(unknown))} for "
                f"{entry.id}; it has: {', '.join(known) or 'none'}"
            )
        return backend

    def _status(self, name: str) -> Family:
        backend = self._made.get(name)
        trouble = self._failed.get(name, "")
        state: State = "failed" if trouble else "ready" if backend else "not imported"
        return Family(name, self._sources[name].origin, state, _about(backend), trouble)


def _known(allowed: Iterable[str]) -> dict[str, _Source]:
    """By name.

    Raises:
        BadSettings: a name is taken, or nothing of that name is installed.
    """
    known = {name: _Source("built in", partial(_ours, at)) for name, at in BUILT_IN.items()}
    for one in allowed:
        name, sep, address = one.partition("=")
        if name in known:
            raise BadSettings(f"CLIPYARD_BACKENDS: there is a model family {name!r} already")
        if sep and not all(address.partition(":")):
            raise BadSettings(f"CLIPYARD_BACKENDS: {one!r} is not written as name=module:Class")
        known[name] = _Source(one, partial(_named, address)) if sep else _installed(name)
    return known


def _installed(name: str) -> _Source:
    points = tuple(entry_points(group=GROUP, name=name))
    if len(points) == 1:
        return _Source(_distribution(points[0]), points[0].load)
    if points:
        several = " and ".join(_distribution(point) for point in points)
        raise BadSettings(f"CLIPYARD_BACKENDS: {several} both bring a model family {name!r}")
    names = ", ".join(sorted(point.name for point in entry_points(group=GROUP))) or "none"
    raise BadSettings(f"CLIPYARD_BACKENDS: no plug-in {name!r} is installed; there are: {names}")


def _distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def _ours(address: str) -> object:
    with uncompiled():
        return _named(address)


def _named(address: str) -> object:
    module, _, attribute = address.partition(":")
    return getattr(import_module(module), attribute)


def _maker(name: str, source: _Source) -> Maker:
    try:
        found: Any = source.get()
    except ClipyardError as error:
        raise BackendFailed(f"the model family {name}: {error}") from error
    except ModuleNotFoundError as error:
        raise BackendFailed(
            f"the model family {name} ({source.origin}) needs {error.name}, which is not installed "
            "and in no folder of PYTHONPATH"
        ) from error
    except Exception as error:
        raise BackendFailed(
            f"the model family {name} ({source.origin}) cannot be imported: {error!r}"
        ) from error
    if isinstance(found, type) and issubclass(found, SimpleModel):
        return partial(SimpleBackend, found)
    if not callable(found):
        raise BackendFailed(f"the model family {name} ({source.origin}) is no class: {found!r}")
    maker: Maker = found
    return maker


def _made(name: str, source: _Source, placement: Placement) -> Backend:
    try:
        return _declared(_maker(name, source)(placement), name)
    except BackendFailed as error:
        sentence = str(error)
        named = sentence if name in sentence else f"the model family {name}: {sentence}"
        raise BackendFailed(named) from error
    except Exception as error:
        raise BackendFailed(f"the model family {name} cannot be made: {error!r}") from error


def _declared(backend: Backend, name: str) -> Backend:
    """
    Raises:
        BackendFailed: what it says of itself has another form than is due.
    """
    if not isinstance(_about(backend), About):
        raise BackendFailed(f"about is {_about(backend)!r:.100}; make it an About")
    models: Any = getattr(backend, "models", ())
    if not isinstance(models, tuple | list) or not all(isinstance(one, Entry) for one in models):
        raise BackendFailed(
            f"models is {models!r:.100}; make it a tuple of Entry, as (Entry(...),)"
        )
    for entry in models:
        _completed(entry, name, backend)
    return backend


def _about(backend: Backend | None) -> About:
    return getattr(backend, "about", About())


def _completed(entry: Entry, name: str, backend: Backend) -> Entry:
    kinds = backend.kinds if isinstance(backend, SimpleBackend) else entry.kinds
    return _sound(replace(entry, backend=name, kinds=kinds), name)


def _sound(entry: Entry, name: str) -> Entry:
    """
    Raises:
        BackendFailed: clients could not be told of it.
    """
    try:
        return sound(entry)
    except ValueError as error:
        raise BackendFailed(f"the model family {name}: its model {entry.id}: {error}") from None
