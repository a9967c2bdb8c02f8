"""How one request travels: what is said to Redis and the workers, free of waiting."""

import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import methodcaller
from typing import Any
from uuid import uuid4

import redis

from .steps import Part, Parting, Step, Talk, each, together
from .vigil import Roll, Vigil, alive
from .wire import correlation, names
from .wire.address import masked, parsed
from .wire.broker import (
    VISIBILITY_TIMEOUT_S,
    celery_app,
    is_unusable,
    login_refused,
    said,
    takes_no_writes,
    unusable,
)
from .wire.codec import Vectors, none_of_ours, pack_answer, text, unpack_answer
from .wire.envelope import Envelopes
from .wire.errors import Cancelled, ClipyardError, NoAnswer, NoBroker, first_line
from .wire.messages import Embedded, Failure, Managed, Message, Priority, Refused, Request
from .wire.settings import Settings
from .wire.signing import signed

SLICE_S = 1.0  # how long one look at an answer blocks
_IN_SCRIPT = "ACL failure in script"  # for which redis-py has no class
LARGE_BYTES = 2**16  # of vectors, from which a round trip more is worth Redis's memory

# Fields of a request that Flower does not show, and those whose items are only counted.
UNTOLD = {"wire", "deadline"}
COUNTED = {"images", "texts"}


@dataclass(frozen=True)
class Call:
    """A request on its way: what, where to, and the bytes that travel beside it."""

    task: str
    request: Request
    queue: str = names.EMBED
    priority: Priority = Priority.INTERACTIVE
    blobs: Mapping[int, bytes] = field(default_factory=dict)
    failures: Mapping[int, Failure] = field(default_factory=dict)  # of items, before it is sent
    id: str = field(default_factory=lambda: str(uuid4()))
    is_first: bool = True  # it has not been sent before
    made_at: float = field(default_factory=time.time)

    @property
    def until(self) -> float:
        """When nobody waits any more, in unix seconds. Every request of a client has an end."""
        assert self.request.deadline is not None
        return self.request.deadline


@dataclass(frozen=True)
class Answer:
    """What came back; `vectors` only for `Embedded`."""

    message: Message
    vectors: Vectors | None

    def embedded(self) -> tuple[Embedded, Vectors]:
        """What there is to tell of the vectors, and they.

        Raises:
            ClipyardError: it is the answer to something else.
        """
        if not isinstance(self.message, Embedded) or self.vectors is None:
            raise none_of_ours("the answer", "it has no vectors")
        return self.message, self.vectors

    def managed(self) -> Managed:
        """What one worker did.

        Raises:
            ClipyardError: it is the answer to something else.
        """
        if not isinstance(self.message, Managed):
            raise none_of_ours("the answer", "it says of no worker what was done")
        return self.message


class Line:
    """One installation's keys, its Celery app and its patience."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.keys = names.Keys(settings.key_prefix)
        self._roll = Roll(self.keys)
        self._app = celery_app(settings)
        self._envelopes = Envelopes(self._app)
        self._control = self.keys.control(parsed(settings.url()).get("db", 0))

    def close(self) -> None:
        """Let Celery forget this one; it holds no connection."""
        self._app.close()

    def unreached(self, error: redis.RedisError) -> Exception:
        """The NoBroker that a talk hears of in its place; the error itself, if it is none of the
        server's making."""
        url = self.settings.url()
        if takes_no_writes(error):
            return NoBroker(
                f"Redis at {masked(url)} takes no writes; "
                "is its disk or its memory full, or is it a replica?"
            )
        why = said(error)
        if isinstance(error, redis.exceptions.NoPermissionError) or why.startswith(_IN_SCRIPT):
            return NoBroker(
                f"Redis at {masked(url)} does not let this login do so ({why});"
                " is it that of the right role, CLIPYARD_KEY_PREFIX that of its ACL file, and "
                "that file printed by this version?"
            )
        if isinstance(error, redis.AuthenticationError):
            return NoBroker(login_refused(url, error))
        if isinstance(error, redis.ResponseError):
            # What is left is a stranger's key, or a mistake of ours.
            return NoBroker(unusable(url, why)) if is_unusable(error) else error
        # Python 3.13 keeps with this frame the one that threw it in: a circle, as in `Tries`.
        error.__traceback__ = None
        return NoBroker(
            f"cannot reach Redis at {masked(url)} ({error}); "
            "is it running, and is CLIPYARD_REDIS_URL right?"
        )

    def send(self, call: Call) -> Talk[None]:
        """Lay down the bytes that the message refers to, then the message.

        Sending a call again does no harm: a worker ignores a request that has its answer.
        """
        yield together(self.letter(call))

    def submit(self, call: Call) -> Talk[None]:
        """`send` for whoever will wait, in this process or another.

        A copy of the message is kept, which whoever waits can send again. It would not be the
        first then, so neither is this one: a worker looks for an answer before it.
        """
        message = self._message(replace(call, is_first=False))
        key, ttl_s = self.keys.sent(call.id), self._stay_s(call)
        fields = {"queue": self._queue(call), "message": message, "until": call.until}

        def keep(pipe: Any) -> None:
            pipe.hset(key, mapping=fields)
            pipe.expire(key, ttl_s)

        yield together(keep, self._letter(call, message))

    def letter(self, call: Call) -> Part:
        """What `send` sends."""
        return self._letter(call, self._message(call))

    def _letter(self, call: Call, message: str) -> Part:
        key, queue, ttl_s = self.keys.blobs(call.id), self._queue(call), self._stay_s(call)

        def put(pipe: Any) -> None:
            # One by one: Redis reads large values twice as fast that way. The expiry is right
            # behind the first: a client may be killed before the next, or lose its connection.
            for number, (position, blob) in enumerate(call.blobs.items()):
                pipe.hset(key, position, blob)
                if number == 0:
                    pipe.expire(key, ttl_s)
            pipe.lpush(queue, message)

        return put

    def _message(self, call: Call) -> str:
        fields = call.request.model_dump(mode="json", exclude_defaults=True)
        return self._envelopes.write(
            call.task,
            signed(fields, task=call.task, request=call.id, settings=self.settings),
            id=call.id,
            tag=call.id if call.is_first else _another_tag(call.id),
            queue=call.queue,
            step=call.priority.step,
            expires_at=call.until,
            shown=_shown(fields),
            headers={
                names.SENT_AT: time.time(),
                names.CORRELATION: correlation.current() or call.id,
                names.FIRST: call.is_first,
            },
        )

    def _stay_s(self, call: Call) -> int:
        """How long what a call needs stays in Redis: past its end as long as an answer does, for
        a Redis whose clock jumps ahead."""
        return int(_seconds_left(call.until) + self.settings.answer_ttl_s)

    def _queue(self, call: Call) -> str:
        """The list that its message is pushed to."""
        return self.keys.queue(call.queue, call.priority.step)

    def ask(self, call: Call) -> Talk[Answer]:
        """`send` and `wait`, together one round trip."""
        return self.wait(call, unsent=call)

    def wait(self, call: Call, *, unsent: Call | None = None) -> Talk[Answer]:
        """The answer to a call that was sent; a message that was lost on the way is sent again.

        Args:
            unsent: a call, this one or another, that is sent with the first look.

        Raises:
            NoAnswer: the call's deadline passed. NoWorker: nobody is alive to answer.
            ClipyardError: whatever the worker raised.
        """
        try:
            answer = yield from self.fetch(
                call.id, until=call.until, since=call.made_at, call=call, unsent=unsent
            )
        except NoBroker:  # with whom the bytes are, until they expire
            raise
        except ClipyardError:
            yield from self._pick_up(call)
            raise
        yield from self._pick_up(call, answer)
        return answer

    def _pick_up(self, call: Call, answer: Answer | None = None) -> Talk[None]:
        """The bytes that were laid down, and what is large of an answer that its caller has.

        It stays as long as the message could still be with a worker that died just after it:
        until the deadline, or until it would have been delivered once more; later ones meet the
        worker's mark. Where Redis is away by now, its expiry does the same later.
        """
        parts: list[Part] = []
        if call.blobs:
            parts.append(lambda pipe: pipe.delete(self.keys.blobs(call.id)))
        if answer and answer.vectors is not None and answer.vectors.nbytes >= LARGE_BYTES:
            kept_s = max(1, min(math.ceil(_seconds_left(call.until)) + 1, VISIBILITY_TIMEOUT_S))
            parts.append(lambda pipe: pipe.expire(self.keys.answer(call.id), kept_s, lt=True))
        if parts:
            with suppress(NoBroker):
                yield together(*parts)

    def fetch(
        self,
        request_id: str,
        *,
        until: float,
        since: float,
        call: Call | None = None,
        unsent: Call | None = None,
    ) -> Talk[Answer]:
        """As `wait`, for an id; without the call it is sent again as it was submitted.

        Args:
            since: when it was sent at the latest, in unix seconds.
        """
        vigil, key = Vigil(self._roll, since=since), self.keys.answer(request_id)
        while True:
            left_s = _seconds_left(until)
            # Redis takes a timeout of zero as for ever.
            block_s = max(0.01, min(SLICE_S, left_s))
            look = _look(key, block_s)
            if unsent:
                *_, frame = yield together(self.letter(unsent), look)
                unsent = None
            else:
                frame = yield look
            if frame is not None:
                return _open(frame)
            if left_s <= block_s:
                raise NoAnswer(
                    f"no answer to {request_id} in time; look at `clipyard status`, at what "
                    "`clipyard doctor` says of the clocks, or allow it more: by "
                    "CLIPYARD_ANSWER_TIMEOUT_S, or the call's own timeout"
                )
            yield from self._tend(request_id, vigil, call)

    def has_answer(self, call: Call) -> Talk[bool]:
        """Whether it is there now."""
        return (yield _look(self.keys.answer(call.id), 0.01)) is not None

    def _tend(self, request_id: str, vigil: Vigil, call: Call | None) -> Talk[None]:
        """After a slice without an answer: send it again if it may be lost, and is not too late."""
        if call:
            is_lost = yield from vigil.look(request_id, queue=self._queue(call))
            if is_lost and _seconds_left(call.until) > 0:
                yield from self.send(replace(call, is_first=False))
            return
        kept = self.keys.sent(request_id)
        queue, copy, until = yield lambda r: r.hmget(kept, "queue", "message", "until")
        is_lost = yield from vigil.look(request_id, queue=queue)
        # Clients of before 2026-12-01 kept no copy beyond its end, and did not tell when that is.
        if is_lost and copy and _seconds_left(float(until or math.inf)) > 0:
            again = self._envelopes.again(copy, tag=_another_tag(request_id))
            yield lambda r: r.lpush(queue, again)

    def withdraw(self, ids: Sequence[str]) -> Talk[None]:
        """Nobody wants these any more: unstarted ones are dropped, started ones stop.

        Whoever waits for one hears Cancelled. A worker that was away meanwhile may work on one all
        the same; nobody reads its answer.
        """
        frame = pack_answer(Refused(failure=Failure.of(Cancelled("withdrawn by its caller"))))
        notice = self.notice(ids)

        def refuse(client: Any) -> Any:
            pipe = client.pipeline()
            for request_id in ids:
                pipe.rpush(self.keys.answer(request_id), frame)
                pipe.expire(self.keys.answer(request_id), self.settings.answer_ttl_s)
                pipe.delete(self.keys.blobs(request_id))
            notice(pipe)
            return pipe.execute()

        yield Parting(refuse)

    def notice(self, ids: Sequence[str]) -> Part:
        """What tells the workers that are there to let these go."""
        message = self._envelopes.withdrawal(ids)
        return lambda pipe: pipe.publish(self._control, message)

    def let_go(self, calls: Iterable[Call]) -> Talk[None]:
        """Withdraw what was sent and has no answer yet, as its caller goes away.

        What is past its deadline the workers drop unasked: past saturation that is most of it, and
        withdrawing costs them more than it saves.
        """
        if sys.is_finalizing():  # of the modules that would write it some are gone
            return
        now = time.time()
        if ids := [call.id for call in calls if call.until > now]:
            # Where Redis is away, the deadline stops them.
            with suppress(redis.RedisError, NoBroker):
                yield from self.withdraw(ids)

    def live_workers(self) -> Talk[list[str]]:
        """Node names of the workers whose status hash has not expired, sorted."""
        crew = yield from alive(self.keys)
        return sorted(text(name) for name, _ in crew)

    def unknown_workers(self, workers: Iterable[str]) -> Talk[list[str]]:
        """Those that no worker is, and none that is away.

        A worker is known by its status hash, and before and after that by its direct queue, which
        keeps what is sent there until it is back: from its first start on, over restarts, until a
        sweep finds that it is gone without a farewell, or for a day after one.
        """
        bindings, _ = self.keys.bindings(names.DIRECT_EXCHANGE)
        found = yield from each(
            methodcaller("smembers", self.keys.workers), methodcaller("smembers", bindings)
        )
        ours = (members for members in found if not isinstance(members, redis.ResponseError))
        known = {text(member) for member in chain.from_iterable(ours)}
        return [
            one for one in workers if not known & {one, names.binding(one, names.direct_queue(one))}
        ]


def _shown(fields: Mapping[str, Any]) -> str:
    """What Flower and Celery's events show of a request: of texts and pictures, how many."""
    told = {name: value for name, value in fields.items() if name not in UNTOLD}
    return str({name: len(value) if name in COUNTED else value for name, value in told.items()})


def _seconds_left(deadline: float) -> float:
    return deadline - time.time()


def _another_tag(request_id: str) -> str:
    """By which `vigil` finds it."""
    return f"{request_id} {uuid4()}"


def _look(answer: str, block_s: float) -> Step:
    """For the first frame of the list, which stays there: moved from its head to its head."""
    return methodcaller("blmove", answer, answer, block_s, "LEFT", "LEFT")


def _open(frame: bytes) -> Answer:
    try:
        message, vectors = unpack_answer(frame)
    except ValueError as error:
        raise none_of_ours("the answer", first_line(error)) from None
    if isinstance(message, Refused):
        raise message.failure.error()
    return Answer(message, vectors)
