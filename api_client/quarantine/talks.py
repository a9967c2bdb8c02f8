"""Messages in quarantine: looked at, forgotten, or sent again."""

import time

from ..requests import managing
from ..steps import Talk
from ..talks import Call, Line
from ..wire import names
from ..wire.codec import unpack_row
from ..wire.errors import BadRequest, NotSigned
from ..wire.jobs import SwitchAlias
from ..wire.messages import (
    EmbedBatch,
    Load,
    Message,
    Priority,
    Reload,
    Request,
    Set,
    Switch,
    Unload,
)
from ..wire.quarantine import Evidence
from ..wire.signing import FIELD, opened

KINDS: dict[str, type[Request]] = {
    names.EMBED_BATCH: EmbedBatch,
    names.LOAD: Load,
    names.RELOAD: Reload,
    names.SWITCH: Switch,
    names.UNLOAD: Unload,
    names.SET: Set,
    names.JOB_SWITCH: SwitchAlias,
}


def held(line: Line) -> Talk[list[Evidence]]:
    """Everything in quarantine, the newest first."""
    found = yield lambda r: r.hgetall(line.keys.quarantine)
    told = [unpack_row(Evidence, row) for row in found.values()]
    return sorted(told, key=lambda it: it.at, reverse=True)


def one(line: Line, id: str) -> Talk[Evidence]:
    """What is known of one.

    Raises:
        BadRequest: there is none of that id.
    """
    text = yield lambda r: r.hget(line.keys.quarantine, id)
    if text is None:
        raise BadRequest(f"{id!r} is not in quarantine; see `clipyard quarantine list`")
    return unpack_row(Evidence, text)


def again(line: Line, id: str) -> Talk[Message]:
    """The answer to one that is sent again under its id. Without one it stays where it is.

    Raises:
        BadRequest: there is none of that id, or it cannot be sent from here.
        NotSigned: a key is set, and it was not signed with that: who put it there had none.
        ClipyardError: whatever comes of it.
    """
    evidence = yield from one(line, id)
    if evidence.task == names.JOB_CHUNK:
        job = id.partition("/")[0]
        raise BadRequest(f"{id} is an item of a job: `clipyard reembed retry-failed {job}`")
    if evidence.task not in KINDS:
        raise BadRequest(
            f"{id} asks for {evidence.task!r:.100}, which this version does not send again: "
            "ask anew where it came from"
        )
    if evidence.payload is None:
        raise BadRequest(f"{id} was too large to be kept: send it again from where it came")
    sent = evidence.payload | {FIELD: evidence.signature}
    try:
        fields = opened(sent, task=evidence.task, request=id, settings=line.settings)
    except NotSigned:
        raise NotSigned(
            f"{id} is not as it was signed, or with a key that is gone: ask anew where it came from"
        ) from None
    deadline = time.time() + line.settings.answer_timeout_s
    call = Call(
        evidence.task,
        managing(KINDS[evidence.task], **fields | {"deadline": deadline}),
        queue=evidence.queue,
        priority=Priority.BULK if evidence.priority else Priority.INTERACTIVE,
        id=id,
        is_first=False,
    )
    yield lambda r: r.delete(line.keys.answer(id), line.keys.started(id))
    answer = yield from line.ask(call)
    yield lambda r: r.hdel(line.keys.quarantine, id)
    return answer.message


def forgotten(line: Line, id: str) -> Talk[None]:
    """Take one away.

    Raises:
        BadRequest: there is none of that id.
    """
    yield from one(line, id)
    yield lambda r: r.hdel(line.keys.quarantine, id)
