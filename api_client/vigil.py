"""Looking after a request that has no answer yet: is anybody there, and is the message?

A worker that was killed may have taken the message with it, or holds it until the broker delivers
it again, minutes later; a Redis that was restarted may have forgotten it.
"""

import time
from collections.abc import Callable, Collection
from math import inf
from operator import methodcaller
from typing import Any

from .steps import Pause, Talk, each
from .wire.codec import text
from .wire.errors import NoWorker
from .wire.names import Keys

__all__ = ["NOBODY", "Roll", "Vigil", "alive"]

# Or those that live cannot say so: while Redis takes no writes.
NOBODY = "no worker is alive; start one with `clipyard up`, or see what `clipyard doctor` says"

ALONE_SLICES = 2  # so many slices without a live worker, and we say so
SEARCH_EVERY = 5  # slices without an answer between two searches for the message
SEARCHED = 256  # messages at the head of a queue; ours may wait behind more of them
FRESH_S = 0.5  # how long a look at the workers does for all calls of a client
STALE_S = 2.0  # and while the next one is under way
PAUSE_S = 0.1  # for the first look, before another one

# Whether a message is still with the broker: in a queue, or in one that is too long to be searched,
# or held by a worker, by its tag. What workers hold is read last: of a hundred at work it is
# megabytes. Only there are messages that bear another tag: those of clients and workers of before
# 2026-11-29. KEYS: the held ones, the queue. ARGV: its id, how many to search. An id ends with a
# quote or a space: that of a call's second message begins that of its eleventh.
_FIND = """
local quoted = '"' .. ARGV[1] .. '"'
local function has(texts, what)
  for _, text in ipairs(texts) do
    if string.find(text, what, 1, true) then return true end
  end
end
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return 1 end
if redis.call('LLEN', KEYS[2]) > tonumber(ARGV[2]) then return 1 end
if has(redis.call('LRANGE', KEYS[2], 0, -1), quoted) then return 1 end
if has(redis.call('HKEYS', KEYS[1]), ARGV[1] .. ' ') then return 1 end  -- sent, or tried, again
if has(redis.call('HVALS', KEYS[1]), quoted) then return 1 end
return 0
"""

Crew = frozenset[tuple[bytes, bytes]]


class Roll:
    """Who is alive, asked for all calls of a client together: each look tells of every worker.

    Attributes:
        whole_at: when all were there for the last time of whom one has gone since, in unix seconds.
    """

    def __init__(self, keys: Keys, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.keys, self._clock = keys, clock
        self._crew: Crew = frozenset()
        self._asked_at = self._seen_at = -inf
        self.whole_at = self._called_at = -inf  # in unix seconds

    def call(self) -> Talk[Crew]:
        now = self._clock()
        if now - self._asked_at < FRESH_S and now - self._seen_at >= STALE_S:
            yield Pause(PAUSE_S)  # the look under way may do for many that began together
            now = self._clock()
        if now - self._asked_at >= FRESH_S or now - self._seen_at >= STALE_S:
            self._asked_at, called_at = now, time.time()
            crew = yield from alive(self.keys)
            if self._crew - crew:
                self.whole_at = self._called_at
            self._crew, self._seen_at, self._called_at = crew, now, called_at
        return self._crew


class Vigil:
    """What the last looks at one unanswered request showed.

    Args:
        since: when it was sent, in unix seconds. Others of its call may have been waited for first.
    """

    def __init__(self, roll: Roll, *, since: float) -> None:
        self._roll = roll
        self._since = since
        self._slices = 0
        self._alone = 0
        self._missed = False
        self._crew: Crew = frozenset()

    def look(self, request_id: str, *, queue: str | bytes | None) -> Talk[bool]:
        """After a slice without an answer: whether the message may be lost, to be sent again.

        Args:
            queue: the list that it was pushed to; it is not searched for where nobody knows.

        Raises:
            NoWorker: nobody is alive to answer.
        """
        crew = yield from self._roll.call()
        if self._slices:
            is_lost = bool(self._crew - crew)
        else:  # one that has gone or come back by now may have taken the message with it before
            has_gone = self._roll.whole_at >= self._since
            is_lost = has_gone or any(float(started_at) > self._since for _, started_at in crew)
        self._crew = crew
        self._slices += 1
        self._alone = 0 if crew else self._alone + 1
        if self._alone >= ALONE_SLICES:
            raise NoWorker(NOBODY)
        if queue and self._slices % SEARCH_EVERY == 0:
            # Twice in a row: a worker that takes a message holds it nowhere for a moment.
            held = self._roll.keys.held
            is_missed = not (yield lambda r: r.eval(_FIND, 2, held, queue, request_id, SEARCHED))
            is_lost, self._missed = is_lost or (is_missed and self._missed), is_missed
        return is_lost


def alive(keys: Keys) -> Talk[Crew]:
    """The workers, as (node name, when it started): a restarted worker is another one."""
    [seen] = yield from each(methodcaller("smembers", keys.workers))
    members = sorted(seen) if isinstance(seen, Collection) else []  # else a stranger's
    places = (keys.worker(text(name)) for name in members)
    started = yield from each(*(methodcaller("hget", place, "started_at") for place in places))
    return frozenset((name, at) for name, at in zip(members, started, strict=True) if _is_time(at))


def _is_time(found: Any) -> bool:
    try:
        float(found)
    except (TypeError, ValueError):  # none, or a stranger's
        return False
    return True
