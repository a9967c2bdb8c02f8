"""What may be asked: options and arguments checked, inputs cut into messages."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from numbers import Integral, Real
from typing import Any, Literal, TypedDict, TypeVar

from pydantic import ValidationError

from . import inputs
from .inputs import Picture
from .steps import Blocking
from .talks import Call
from .wire import names
from .wire.errors import BadRequest, first_mistake, nearest
from .wire.messages import AUTO, MAX_ITEMS, EmbedBatch, Kind, Knobs, Priority, Request
from .wire.settings import LONGEST_S, Settings

_T = TypeVar("_T")
MakeCall = Blocking | Callable[[], Call]  # what encodes pictures is not for the event loop

_KINDS, _PRIORITIES = tuple(Kind), tuple(Priority)  # an enum looks its members up each time

AskedPriority = Priority | Literal["interactive", "bulk"]
AskedKind = Kind | Literal["image", "text"]


class EmbedOptions(TypedDict, total=False):
    """What every embedding call takes beside its items.

    Attributes:
        model: an id of the catalogue, or `auto`: the worker of the first message chooses, and
            says why; the current model unless given.
        also: of `auto`: `image` or `text`, what the model that is chosen must embed as well, for a
            call that follows and names it.
        batch_size: items per message; the setting `chunk_size` unless given.
        priority: interactive for one message, bulk for several, unless given.
        progress: called after each message with the number of items it held; not by `submit_*`.
        timeout: seconds that each message may take once it is the first of its call that has no
            answer; the setting `answer_timeout_s` unless given. `submit_*` has its own.
        keep_alive_s: how long the model stays afterwards: 0 goes when idle, negative stays.
    """

    model: str | None
    also: AskedKind | None
    batch_size: int
    priority: AskedPriority
    progress: Callable[[int], Any]
    timeout: float | None
    keep_alive_s: float | None


def unknown_options(options: Mapping[str, Any], offered: type) -> str:
    """A sentence on options that are none of a TypedDict's; empty where all are."""
    known = offered.__annotations__
    unknown = sorted(options.keys() - known.keys())
    return f"no option {', '.join(unknown)}; there are {', '.join(known)}" if unknown else ""


def checked(options: EmbedOptions) -> EmbedOptions:
    """The options, if they can be served.

    Raises:
        BadRequest: one has a value that cannot be used. TypeError: there is no such option.
    """
    if trouble := unknown_options(options, EmbedOptions):
        raise TypeError(trouble)
    size = options.get("batch_size", 1)
    if not isinstance(size, Integral) or not 1 <= size <= MAX_ITEMS:
        raise BadRequest(f"batch_size is {size!r}; use 1 to {MAX_ITEMS}")
    if (model := options.get("model")) is not None:
        model_id(model)
    if (also := options.get("also")) not in (None, *_KINDS):
        raise BadRequest(f"also is {also!r:.50}; use {' or '.join(_KINDS)}")
    if (timeout := options.get("timeout")) is not None:
        patience_s(timeout)
    keep_alive(options.get("keep_alive_s"))
    if options.get("priority", "bulk") not in _PRIORITIES:
        raise BadRequest(f"priority is {options['priority']!r}; use {' or '.join(_PRIORITIES)}")
    if not callable(options.get("progress", print)):
        raise BadRequest(f"progress is {options['progress']!r}; use a function of a number")
    return options


def managing(kind: type[Request], /, **fields: Any) -> Request:
    """A request, checked as the worker will check it.

    Raises:
        BadRequest: a field has a value that cannot be used.
    """
    try:
        return kind(**fields)
    except ValidationError as error:
        raise BadRequest(first_mistake(error, whole=kind.__name__.lower())) from None


def settable(knobs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings a call changes; their values are looked at with the request.

    Raises:
        BadRequest: one is none that can be changed while a worker runs.
    """
    known = Knobs.model_fields
    for name in map(str, knobs if isinstance(knobs, Mapping) else ()):
        if name not in known:
            hint = nearest(name, known, otherwise=f"there are {', '.join(known)}", most=3)
            raise BadRequest(f"no setting {name!r:.100} can be changed while a worker runs; {hint}")
    return knobs


def model_id(model: Any) -> str:
    """The model a call names, if it can be one.

    Raises:
        BadRequest: it is no string, empty or too long.
    """
    if not isinstance(model, str) or not 1 <= len(model) <= 200:
        raise BadRequest(f"model is {model!r}; name one as `clipyard models` lists it")
    return model


def own_model(model: Any) -> str:
    """As `model_id`, where nothing chooses among models.

    Raises:
        BadRequest: it is `auto`, or can be no model.
    """
    if model == AUTO:
        raise BadRequest("model is 'auto'; name one, as `clipyard models` lists it")
    return model_id(model)


def keep_alive(given: Any) -> float | None:
    """How long a model stays afterwards.

    Raises:
        BadRequest: it is no finite number.
    """
    if given is not None and not _is_number(given):
        raise BadRequest(f"keep_alive_s is {given!r:.50}; use a number of seconds")
    return None if given is None else float(given)


def seconds(timeout: Any, settings: Settings) -> float:
    """How long a call may take; the setting `answer_timeout_s` if None is given.

    Raises:
        BadRequest: it is no finite number above 0.
    """
    return settings.answer_timeout_s if timeout is None else patience_s(timeout)


def patience_s(timeout: Any) -> float:
    """A timeout that was given.

    Raises:
        BadRequest: it is no finite number above 0.
    """
    if not (_is_number(timeout) and 0 < timeout <= LONGEST_S):
        raise BadRequest(
            f"timeout is {timeout!r:.50}; use a number of seconds above 0, a week at most"
        )
    return float(timeout)


def node_names(workers: Sequence[str] | None) -> Sequence[str] | None:
    """The workers a call names, each once.

    Raises:
        BadRequest: they are no list of names.
    """
    if workers is None:
        return None
    named = list(workers) if isinstance(workers, Iterable) and not isinstance(workers, str) else []
    if not named or not all(isinstance(worker, str) and worker for worker in named):
        raise BadRequest(f"workers is {workers!r}; use node names as in `clipyard status`")
    return list(dict.fromkeys(named))


def image_calls(
    images: Iterable[Picture], options: EmbedOptions, settings: Settings, asked_by: str
) -> Iterator[MakeCall]:
    """One call per message, yet to be made. Reads `images` one message ahead, and no further."""
    first = 0
    for chunk, priority in _cut(images, options, settings):
        make = partial(_image_call, chunk, first, options, settings, asked_by, priority)
        yield Blocking(make)
        first += len(chunk)


def text_calls(
    texts: Iterable[str], options: EmbedOptions, settings: Settings, asked_by: str
) -> Iterator[MakeCall]:
    """As `image_calls`, for texts that have been checked."""
    for chunk, priority in _cut(texts, options, settings):
        yield partial(_call, options, settings, asked_by, priority, texts=tuple(chunk))


def _image_call(
    chunk: Sequence[Picture],
    first: int,
    options: EmbedOptions,
    settings: Settings,
    asked_by: str,
    priority: Priority,
) -> Call:
    pictures = inputs.pictures(chunk, first=first)
    refs = pictures.sealed() if settings.signing_key else pictures.refs
    call = _call(options, settings, asked_by, priority, images=refs)
    return replace(call, blobs=pictures.blobs, failures=pictures.failures)


def _call(
    options: EmbedOptions, settings: Settings, asked_by: str, priority: Priority, **items: Any
) -> Call:
    request = managing(
        EmbedBatch,
        model=options.get("model"),
        # Nothing to a model that is named, and older workers do not know it.
        also=options.get("also") if options.get("model") == AUTO else None,
        priority=priority,
        keep_alive_s=keep_alive(options.get("keep_alive_s")),
        deadline=time.time() + seconds(options.get("timeout"), settings),
        asked_by=asked_by,
        **items,
    )
    return Call(names.EMBED_BATCH, request, priority=priority)


def _cut(
    items: Iterable[_T], options: EmbedOptions, settings: Settings
) -> Iterator[tuple[list[_T], Priority]]:
    size = options.get("batch_size", settings.chunk_size)
    source = iter(items)
    chunk = list(islice(source, size))
    several = False
    while chunk:
        following = list(islice(source, size))
        several = several or bool(following)
        usual = Priority.BULK if several else Priority.INTERACTIVE
        yield chunk, Priority(options.get("priority", usual))
        chunk = following


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, Real) and math.isfinite(value)  # numpy's are some, too
    except OverflowError:  # an integer too large for a float
        return False
