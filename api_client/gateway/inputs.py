"""What callers send: texts, and pictures as data URIs or web addresses; never a path."""

import asyncio
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from ..aio import AsyncClient
from ..inputs import is_bare_base64, is_data_uri, of_data_uri
from ..results import Item, comparable
from ..wire.errors import BadRequest, ClipyardError
from ..wire.messages import Kind

Modality = Literal["text", "image"]

# 32 MB of base64 take a tenth of a second and more: neither the event loop waits for it, nor who
# takes asyncio's own threads, for names to be looked up and messages to be made.
_DECODERS = ThreadPoolExecutor(2, "decode")
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{0,30}://", re.IGNORECASE)


async def embed(
    client: AsyncClient, inputs: Sequence[str], *, model: str | None, modality: Modality | None
) -> list[Item]:
    """One item per input, in order, all of one vector space: texts follow the pictures' model.

    Args:
        modality: what all inputs are; None takes data URIs and web addresses for pictures.

    Raises:
        ItemsFailed: an input has no vector. BadRequest: an input is no picture at all.
    """
    kinds = [modality or guess(one) for one in inputs]
    texts = [one for one, kind in zip(inputs, kinds, strict=True) if kind == "text"]
    if any(map(is_data_uri, inputs)):
        here = asyncio.get_running_loop()
        images = await here.run_in_executor(_DECODERS, pictures, inputs, kinds)
    else:
        images = pictures(inputs, kinds)
    also = Kind.TEXT if texts else None
    seen = await client.embed_images_detailed(images, model=model, also=also) if images else []
    model = seen[0].model if seen else model
    read = await client.embed_texts_detailed(texts, model=model) if texts else []
    in_order = {"text": iter(read), "image": iter(seen)}
    items = [next(in_order[kind]) for kind in kinds]
    comparable(items)
    return items


def guess(item: str) -> Modality:
    """What a string is meant as. A sentence that mentions an address is a text.

    One of a kind that nobody here can fetch (file:, s3:) is a picture too, to be refused as such;
    so is one in base64 that does not say so.
    """
    item = item.strip()
    if is_bare_base64(item):
        return "image"
    if not (is_data_uri(item) or _ADDRESS.match(item)):
        return "text"
    name = re.split(";base64,", item, maxsplit=1, flags=re.IGNORECASE)[0]  # then come lines
    return "text" if any(map(str.isspace, name)) else "image"


def pictures(inputs: Sequence[str], kinds: Sequence[Modality]) -> list[str | bytes]:
    """Those that are meant as such; an error says of several inputs which one it is about."""
    found = []
    for position, (item, kind) in enumerate(zip(inputs, kinds, strict=True)):
        if kind == "image":
            try:
                found.append(picture(item))
            except ClipyardError as error:
                place = f"input {position}: " if len(inputs) > 1 else ""
                raise type(error)(f"{place}{error}") from None
    return found


def picture(item: str) -> str | bytes:
    """The address, or the bytes of a data URI.

    Raises:
        BadRequest: it is neither. ImageUnreadable: the URI holds no base64.
    """
    item = item.strip()
    match item.partition(":")[0].lower():
        case "http" | "https":
            return item
        case "data":
            return of_data_uri(item)
    raise BadRequest(
        "a picture is sent as data:image/...;base64,... or as an http(s) address; a text that "
        "looks like base64 or another address, with modality=text"
    )
