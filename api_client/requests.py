"""An embedding call cut into messages: what may be asked, checked, in bounded pieces."""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypedDict, TypeVar

from . import inputs
from .inputs import Picture
from .talks import Call
from .wire import names
from .wire.errors import BadRequest
from .wire.messages import MAX_ITEMS, EmbedBatch, Priority
from .wire.settings import Settings

_T = TypeVar("_T")


class EmbedOptions(TypedDict, total=False):
    """What every embedding call takes beside its items.

    Attributes:
        model: an id of the catalogue; the current model unless given.
        batch_size: items per message; the setting `chunk_size` unless given.
        priority: interactive for one message, bulk for several, unless given.
        progress: called after each message with the number of items it held.
        timeout: seconds that each message may take; the setting `answer_timeout_s` unless given.
        keep_alive_s: how long the model stays afterwards: 0 goes when idle, negative stays.
    """

    model: str | None
    batch_size: int
    priority: Priority
    progress: Callable[[int], Any]
    timeout: float
    keep_alive_s: float


def checked(options: EmbedOptions) -> EmbedOptions:
    """The options, if they can be served.

    Raises:
        BadRequest: one has a value that cannot be used. TypeError: there is no such option.
    """
    if unknown := options.keys() - EmbedOptions.__annotations__.keys():
        raise TypeError(f"there is no option {', '.join(sorted(unknown))}")
    size = options.get("batch_size", 1)
    if not isinstance(size, int) or not 1 <= size <= MAX_ITEMS:
        raise BadRequest(f"batch_size is {size!r}; use 1 to {MAX_ITEMS}")
    if not options.get("timeout", 1.0) > 0:
        raise BadRequest(f"timeout is {options['timeout']!r}; use a number of seconds above 0")
    model = options.get("model")
    if model is not None and (not isinstance(model, str) or not 1 <= len(model) <= 200):
        raise BadRequest(f"model is {model!r}; name one as `clipyard models` lists it")
    return options


def image_calls(
    images: Iterable[Picture], options: EmbedOptions, settings: Settings, asked_by: str
) -> Iterator[Call]:
    """One call per message. Reads `images` as far as the next call needs, and no further."""
    if isinstance(images, str | bytes) or not isinstance(images, Iterable):
        raise BadRequest(f"images is {type(images).__name__}; pass a list of pictures")
    first = 0
    for chunk, priority in _cut(images, options, settings):
        pictures = inputs.pictures(chunk, first=first)
        first += len(chunk)
        request = EmbedBatch(images=pictures.refs, **_common(options, settings, asked_by, priority))
        yield Call(names.EMBED_BATCH, request, priority=priority, blobs=pictures.blobs)


def text_calls(
    texts: str | Iterable[str], options: EmbedOptions, settings: Settings, asked_by: str
) -> Iterator[Call]:
    """One call per message, after all the texts have been checked."""
    for chunk, priority in _cut(inputs.texts(texts), options, settings):
        request = EmbedBatch(texts=tuple(chunk), **_common(options, settings, asked_by, priority))
        yield Call(names.EMBED_BATCH, request, priority=priority)


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
        yield chunk, options.get("priority", usual)
        chunk = following


def _common(
    options: EmbedOptions, settings: Settings, asked_by: str, priority: Priority
) -> dict[str, Any]:
    return {
        "model": options.get("model"),
        "priority": priority,
        "keep_alive_s": options.get("keep_alive_s"),
        "deadline": time.time() + options.get("timeout", settings.answer_timeout_s),
        "asked_by": asked_by,
    }
