"""How a request is met: checked, worked on once, and answered or refused in every case.

    @answering(names.LOAD, Load)
    def load(call: Call[Load]) -> Managed: ...

registers a Celery task whose id is the request's id. Whoever asked waits for the first frame of the
list `Keys.answer`. What can happen to a request:

    it is not signed as this installation wants      Refused, NotSigned; nothing else is read
    it is malformed, or of a newer wire version      Refused, BadRequest
    its deadline has passed                          Refused, Expired; no work is done
    the body returns                                 its answer
    the body raises ModelBusy                        tried again a little later, then Refused
    the body raises another ClipyardError            Refused, with that error
    the body raises anything else                    logged with traceback; Refused, BackendFailed
    Redis is away for longer than our patience       back to its queue
    it is revoked, or over its time limit            Refused, Cancelled
    the worker's shutdown interrupts it              back to its queue
    it was answered before, or is at work here       nothing
    the device is lost under it                      back to its queue, and this worker ends
    its worker dies                                  begun again, see `suspects`
    its worker died twice                            set aside in quarantine; Refused, Quarantined
"""

import logging
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any, Generic, TypeVar

from celery import Task, shared_task
from celery.app.task import Context
from celery.exceptions import Ignore, Reject, SoftTimeLimitExceeded
from pydantic import ValidationError

from api_client.wire import codec, correlation, names, spans
from api_client.wire.errors import (
    BackendFailed,
    BadRequest,
    Cancelled,
    ClipyardError,
    DeviceLost,
    Expired,
    ModelBusy,
    Quarantined,
    first_line,
)
from api_client.wire.messages import (
    WIRE_VERSION,
    EmbedBatch,
    Embedded,
    Failure,
    Managed,
    Refused,
    Request,
)
from api_client.wire.patience import LOST
from api_client.wire.signing import accepted, opened

from .. import runtime
from ..backends.lost import is_beyond_repair
from . import quarantine
from .pool import Reason, cancelled
from .suspects import Start

__all__ = ["Answer", "Call", "answering", "checked"]

log = logging.getLogger(__name__)

BUSY_TRIES = 6  # the first one included
BUSY_PAUSE_S = 0.5  # before the second try; doubled for each one after it
BUSY_PAUSE_MAX_S = 8.0
MISTAKES_TOLD = 5
ANSWER_S = 1.0  # of the time until the deadline, kept for the work and the answer

R = TypeVar("R", bound=Request)
Answer = Managed | tuple[Embedded, codec.Vectors]


@dataclass(frozen=True)
class Call(Generic[R]):
    """A request that is worth working on.

    Attributes:
        id: what it is answered under.
        waited_s: since the client sent it, as far as both clocks agree.
        begun_at: on the monotonic clock.
    """

    id: str
    request: R
    waited_s: float
    begun_at: float = field(default_factory=time.monotonic)

    @property
    def left_s(self) -> float:
        """How long its caller can be kept waiting, some of the time being for the answer."""
        if self.request.deadline is None:
            return math.inf
        left_s = max(0.0, self.request.deadline - time.time())
        return left_s - min(ANSWER_S, left_s / 2)


def answering(name: str, kind: type[R]) -> Callable[[Callable[[Call[R]], Answer]], Task]:
    """Registers the body under it as the Celery task `name`, taking the fields of `kind`.

    ClipyardErrors show as failures, without a traceback in the log.
    """

    def register(body: Callable[[Call[R]], Answer]) -> Task:
        # typing=False: the fields are checked here, where a mistake can be answered.
        @shared_task(name=name, bind=True, throws=(ClipyardError,), typing=False)  # type: ignore[untyped-decorator]
        @wraps(body)
        def task(self: Task, /, *nameless: Any, **payload: Any) -> str:
            message = self.request  # looked for in the thread's own memory each time
            given = correlation.accepted(getattr(message, names.CORRELATION, None))
            with correlation.about(given or message.id):
                return _meet(
                    self,
                    message,
                    body,
                    lambda: checked(kind, _opened(name, message.id, payload), nameless=nameless),
                    is_first=kind is EmbedBatch and _is_first(message),
                )

        return task

    return register


def checked(kind: type[R], payload: Mapping[str, Any], *, nameless: tuple[Any, ...] = ()) -> R:
    """The request, or BadRequest with one sentence per mistake; the payload is never quoted."""
    wire = payload.get("wire", WIRE_VERSION)
    if isinstance(wire, int) and wire > WIRE_VERSION:
        raise BadRequest(
            f"the request speaks wire version {wire}, this worker {WIRE_VERSION}: "
            "update the workers before the clients"
        )
    if nameless:
        raise BadRequest(f"{kind.__name__} takes its fields by name, not as positional arguments")
    try:
        return kind.model_validate(payload)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_context=False, include_input=False)
    places = [".".join(map(str, mistake["loc"])) or kind.__name__ for mistake in mistakes]
    sentences = [f"{place}: {one['msg']}" for place, one in zip(places, mistakes, strict=True)]
    if (untold := len(sentences) - MISTAKES_TOLD) > 0:
        sentences[MISTAKES_TOLD:] = [f"and {untold} more"]
    raise BadRequest("; ".join(sentences))


def _opened(task: str, request_id: str, payload: Mapping[str, Any]) -> dict[str, Any]:
    return opened(payload, task=task, request=request_id, settings=runtime.here().settings)


def _meet(
    task: Task,
    message: Context,
    body: Callable[[Call[R]], Answer],
    check: Callable[[], R],
    *,
    is_first: bool,
) -> str:
    here, begun, waited_s = runtime.here(), time.monotonic(), _waited_s(message)
    request_id: str = message.id
    spans.past(spans.Name.QUEUE, begun - waited_s, begun)
    try:
        with here.suspects.begin(request_id, task.name, is_first=is_first) as start:
            if start.is_needless:
                return "it was answered before, or is at work here"
            outcome = _outcome(task, body, check, start, waited_s)
            worked = time.monotonic()
            frame = _frame(outcome)
            encode_s = time.monotonic() - worked
            count = partial(here.meter.answered, task.name, outcome, encode_s=encode_s)
            start.answer(frame, ttl_s=here.settings.answer_ttl_s, meanwhile=count)
    except DeviceLost as lost:
        here.watchdog.end(str(lost))
        raise Reject(lost, requeue=True) from None
    except LOST as away:
        log.warning("%s %s goes back to its queue: %s", task.name, request_id, away)
        raise Reject(away, requeue=True) from None
    if cancelled() is Reason.REVOKED:
        raise Ignore(Reason.REVOKED)  # Celery has recorded that already
    if isinstance(outcome, ClipyardError):
        raise outcome
    return _receipt(here.node, outcome, seconds=time.monotonic() - begun)


def _waited_s(message: Context) -> float:
    try:
        waited_s = time.time() - float(getattr(message, names.SENT_AT))
    except (AttributeError, TypeError, ValueError, OverflowError):
        return 0.0  # a stranger's
    return waited_s if 0.0 < waited_s < math.inf else 0.0


def _is_first(message: Context) -> bool:
    """Whether its client sent it once only, and no worker has held it before.

    Its client may err, as redis-py pushes again where a connection is lost: good enough for what
    may run twice. Where requests are signed it is nobody's word, as no signature covers a header.
    """
    info = message.delivery_info or {}
    says_first = bool(getattr(message, names.FIRST, False)) and not info.get("redelivered")
    return says_first and not accepted(runtime.here().settings)


def _outcome(
    task: Task,
    body: Callable[[Call[R]], Answer],
    check: Callable[[], R],
    start: Start,
    waited_s: float,
) -> Answer | ClipyardError:
    try:
        request = check()
        start.deadline = request.deadline
        if start.is_condemned:
            raise _set_aside(task, request, start)
        if request.deadline is not None and time.time() >= request.deadline:
            raise Expired("the request's deadline passed before a worker was free")
        return _worked(body, Call(start.id, request, waited_s), start)
    except DeviceLost:
        raise
    except ModelBusy as busy:
        _try_again_later(task, request.deadline, busy)
        return busy
    except ClipyardError as error:
        return error
    except (Reject, *LOST):
        raise
    except Exception as error:
        if is_beyond_repair(error):  # asked for its free memory, a lost device says so as well
            raise DeviceLost(f"the device is lost: {first_line(error)}") from None
        log.exception("%s %s failed", task.name, start.id)
        return BackendFailed(f"internal error on {runtime.here().node}, see its log for {start.id}")


def _set_aside(task: Task, request: Request, start: Start) -> Quarantined:
    here = runtime.here()
    quarantine.put(here.redis, here.keys, quarantine.of_request(task, request, start.crashes))
    log.warning("%s %s took its worker down twice and is set aside", task.name, start.id)
    return Quarantined(
        f"the request took {' and '.join(crash.worker for crash in start.crashes)} down: it is in "
        f"quarantine, see `clipyard quarantine show {start.id}`"
    )


def _worked(body: Callable[[Call[R]], Answer], call: Call[R], start: Start) -> Answer:
    try:
        with start.on_trial():
            return body(call)
    except (Cancelled, Ignore, SoftTimeLimitExceeded) as stopped:
        if cancelled() is Reason.SHUTDOWN:
            raise Reject(stopped, requeue=True) from None
        raise Cancelled(f"the request was stopped: {cancelled() or stopped}") from None


def _try_again_later(task: Task, deadline: float | None, busy: ModelBusy) -> None:
    """Raises Celery's Retry; returns if there is no try, or no time, left."""
    if not isinstance(task.request.retries, int):  # a sender's own header
        return
    pause_s = busy_pause_s(task.request.retries, random.uniform(0.5, 1.0))
    if pause_s is None or (deadline is not None and time.time() + pause_s >= deadline):
        return
    try:
        task.retry(exc=busy, countdown=pause_s, max_retries=BUSY_TRIES)
    except Reject as unsent:  # Celery would drop it; we want it back
        raise Reject(unsent.reason, requeue=True) from None


def busy_pause_s(retries: int, dice: float) -> float | None:
    """How long to wait before the next try, or None when there were enough.

    Args:
        retries: how many there were, beside the first try.
        dice: 0.5 to 1, so that those who failed together do not come back together.
    """
    if retries + 1 >= BUSY_TRIES:
        return None
    return dice * min(BUSY_PAUSE_MAX_S, BUSY_PAUSE_S * 2.0**retries)


def _frame(outcome: Answer | ClipyardError) -> bytes:
    match outcome:
        case ClipyardError():
            return codec.pack_answer(Refused(failure=Failure.of(outcome)))
        case Managed():
            return codec.pack_answer(outcome)
        case embedded, vectors:
            return codec.pack_answer(embedded, vectors)


def _receipt(node: str, answer: Answer, *, seconds: float) -> str:
    """What Flower and Celery's log show of it: a line, as Celery takes long to write more out."""
    match answer:
        case Managed():
            what = f"{answer.model} {'changed' if answer.changed else 'as it was'}"
        case embedded, _:
            failed = len(embedded.failures)
            what = f"{embedded.model}: {embedded.items - failed} embedded, {failed} failed"
    return f"{what}; {seconds:.3f} s on {node}"
