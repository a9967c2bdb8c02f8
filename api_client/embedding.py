"""One embedding call: its messages, a bounded number of them on the way, its items in order."""

import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import accumulate
from math import inf
from typing import Any
from uuid import uuid4

from .requests import EmbedOptions, MakeCall, seconds
from .results import Item, items_of, same_space
from .steps import Blocking, Talk
from .talks import Answer, Call, Line
from .wire.errors import BadRequest, Cancelled, ClipyardError, NoAnswer, NoBroker, NoWorker
from .wire.messages import AUTO

_ID = re.compile(r"(?P<trunk>[0-9a-f-]{36})\.(?P<size>[1-9]\d{0,5})")

MakeCalls = Callable[[EmbedOptions], Iterator[MakeCall]]


class Embedding:
    """Sends what is next while it waits for what is first.

    Args:
        make_calls: of the options with the model named.
    """

    def __init__(self, line: Line, make_calls: MakeCalls, options: EmbedOptions) -> None:
        self._line = line
        self._make_calls = make_calls
        self._options = options
        self._makes: Iterator[MakeCall] | None = None
        self._pending: deque[Call] = deque()
        self._given_at = inf  # when items were given last, or the first were asked for
        gaps = max(0, line.settings.in_flight - 2)
        self._away_s = deque([0.0] * gaps, maxlen=gaps)  # until the next were waited for
        self._space: str | None = None
        self._first: Item | None = None  # of all that have come
        self._is_slow = False  # the source: what it gives is sent, and waited for, one by one
        self._is_spent = False  # likewise: it has no more
        self._is_over = False
        self._process: int | None = None  # that began it

    def more(self) -> Talk[list[Item]]:
        """The items of the next message; none when all have come.

        Raises:
            Cancelled: it was ended, with messages on the way.
        """
        try:
            return (yield from self._more())
        except NoBroker:  # who can be told no more; the deadlines stop what was sent
            self._pending.clear()
            raise

    def _more(self) -> Talk[list[Item]]:
        self._require_open()
        self._given_at = min(self._given_at, time.time())
        unsent: Call | None = None
        while self._has_room() and (make := (yield from self._next())):
            self._require_open()
            if unsent:
                yield from self._line.send(unsent)
            unsent = yield from self._made(make, behind=len(self._pending))
            self._pending.append(unsent)
            if self._is_slow:
                break
        pending = self._pending
        self._require_open()
        if not pending:
            return []
        if pending[0] is not unsent:
            yield from self._revive(pending)
        self._away_s.append(max(0.0, time.time() - self._given_at))
        try:
            answer = yield from self._line.wait(pending[0], unsent=unsent)
        except (NoAnswer, NoWorker, NoBroker):
            self._require_open()
            raise
        except ClipyardError:  # an answer as well: nothing to withdraw
            self._require_open()
            pending.popleft()
            raise
        self._require_open()
        items, self._space = _opened(answer, pending.popleft(), self._space)
        first = self._first = self._first or items[0]
        if first.chosen:
            items = [replace(item, chosen=first.chosen) for item in items]
        self._given_at = time.time()
        if progress := self._options.get("progress"):
            progress(len(items))
        return items

    def _safe(self) -> int:
        """How many may be on the way, if their answers are to be there at their turns: should who
        takes the items, or gives what is to be embedded, be away as long as in the last turns."""
        gaps_s = accumulate((time.time() - self._given_at, *reversed(self._away_s)))
        return 1 + sum(gap_s < self._line.settings.answer_ttl_s / 2 for gap_s in gaps_s)

    def _revive(self, pending: deque[Call]) -> Talk[None]:
        """If the next answer has come and gone meanwhile, or can come no more, its message is sent
        once more, as another: this one counts as answered."""
        gone, now, settings = pending[0], time.time(), self._line.settings
        may_be_gone = (
            now >= gone.made_at + settings.answer_ttl_s and self._safe() < settings.in_flight
        )
        if now < gone.until and not may_be_gone:
            return
        if (yield from self._line.has_answer(gone)):
            return
        changes = {"deadline": max(gone.until, now + self._patience_s())}
        request = gone.request.model_copy(update=changes)
        pending[0] = replace(gone, id=str(uuid4()), request=request, made_at=now)
        yield from self._line.withdraw([gone.id])  # should it be late only
        self._require_open()
        yield from self._line.send(pending[0])

    def _require_open(self) -> None:
        """At each turn: its client may be closed while it waits."""
        if self._is_over:
            raise Cancelled("no more items of this call: its client was closed meanwhile")

    def all(self) -> Talk[list[Item]]:
        """All items, in order."""
        items: list[Item] = []
        try:
            while more := (yield from self.more()):
                items += more
            return items
        finally:
            yield from self.end()

    def stop(self) -> list[Call]:
        """Ends it, whoever waits for its next items in another thread or task; gives what is on
        the way and nobody wants any more."""
        self._is_over = True
        pending, self._pending = self._pending, deque()
        # In a fork it is another process's, and who began it waits on.
        return list(pending) if os.getpid() == self._process else []

    def end(self) -> Talk[None]:
        """Withdraw what nobody waits for any more."""
        yield from self._line.let_go(self.stop())

    def submit(self) -> Talk["Submitted"]:
        """Send everything and wait for nothing.

        Raises:
            BadRequest: the model is to be chosen by whoever answers first: nobody waits for it.
        """
        if self._options.get("model") == AUTO:
            raise BadRequest("model is 'auto'; name one to submit, as `clipyard models` lists it")
        trunk = str(uuid4())
        try:
            while make := (yield from self._next()):
                call = replace((yield from self._made(make)), id=f"{trunk}.{len(self._pending)}")
                self._pending.append(call)
                yield from self._line.submit(call)
        except NoBroker:
            raise
        except BaseException:
            yield from self.end()
            raise
        if not self._pending:
            raise BadRequest("there is nothing to submit; pass at least one item")
        return Submitted(self._line, f"{trunk}.{len(self._pending)}", self._pending)

    def _next(self) -> Talk[MakeCall | None]:
        """The next message, yet to be made."""
        if self._makes is None:
            self._process = os.getpid()
            self._makes = self._make_calls((yield from self._named()))
        begun = time.monotonic()
        make = next(self._makes, None)
        self._is_spent = make is None
        self._is_slow = time.monotonic() - begun > self._share_s()
        return make

    def _made(self, make: MakeCall, *, behind: int = 0) -> Talk[Call]:
        """The message, which has the time of those before it as well: they take their turns first.

        Args:
            behind: how many of this call are on the way.
        """
        call: Call = (yield make) if isinstance(make, Blocking) else make()
        changes: dict[str, Any] = {}
        if behind:
            changes["deadline"] = call.until + behind * self._patience_s()
        if self._options.get("model") == AUTO and self._first:
            changes |= {"model": self._first.model, "also": None}
        return replace(call, request=call.request.model_copy(update=changes)) if changes else call

    def _has_room(self) -> bool:
        """Whether one more may be on the way. Of a model to be chosen, the first goes alone: the
        others follow its choice, so that one call never mixes spaces."""
        if self._is_spent:
            return False
        if not self._pending:
            return True
        is_open = self._options.get("model") == AUTO and not self._first
        at_once = 1 if is_open else min(self._safe(), self._line.settings.in_flight)
        return len(self._pending) < at_once

    def _share_s(self) -> float:
        """How long the source may take for one message. With more, the first ones would be past
        their deadlines, or their answers gone, before all that may be on the way are."""
        settings = self._line.settings
        return min(self._patience_s(), settings.answer_ttl_s) / (2 * settings.in_flight)

    def _patience_s(self) -> float:
        return seconds(self._options.get("timeout"), self._line.settings)

    def _named(self) -> Talk[EmbedOptions]:
        """The options with the model named: all messages of one call ask for the same one."""
        if self._options.get("model") is not None:
            return self._options
        name = yield lambda r: r.get(self._line.keys.current)
        return {**self._options, "model": name.decode() if name else None}


class Submitted:
    """An embedding call that was sent, under an id that any process can ask with.

    Args:
        submitted_id: `<trunk>.<number of messages>`; message i travels as `<trunk>.<i>`.
        calls: where they are known, a message that was lost is made anew, with its pictures' bytes.

    Raises:
        BadRequest: the id is none of `submit`.
    """

    def __init__(self, line: Line, submitted_id: str, calls: Iterable[Call] = ()) -> None:
        if not (isinstance(submitted_id, str) and (match := _ID.fullmatch(submitted_id))):
            raise BadRequest(f"{submitted_id!r} is no id of a submitted call")
        self.id = submitted_id
        self._line = line
        self._parts = [f"{match['trunk']}.{part}" for part in range(int(match["size"]))]
        self._calls = {call.id: call for call in calls}

    def wait(self, until: float) -> Talk[list[Item]]:
        """All items, in order, any number of times, as long as the answers are kept.

        Raises:
            NoAnswer: `until`, in unix seconds, has passed, or the answers have expired.
        """
        items: list[Item] = []
        space: str | None = None
        since = time.time()
        for part in self._parts:
            call = self._calls.get(part)
            answer = yield from self._line.fetch(part, until=until, since=since, call=call)
            more, space = _opened(answer, call, space)
            items += more
        return items

    def cancel(self) -> Talk[None]:
        """Whoever waits hears Cancelled, unless the answer was there before."""
        yield from self._line.withdraw(self._parts)


def _opened(answer: Answer, call: Call | None, space: str | None) -> tuple[list[Item], str]:
    embedded, vectors = answer.embedded()
    if call and call.failures:  # which tell more than what the worker said of no bytes
        failures = {**embedded.failures, **call.failures}
        embedded = embedded.model_copy(update={"failures": failures})
    return items_of(embedded, vectors), same_space(space, embedded.fingerprint)
