"""Who takes workers down: starts that never ended, and how a culprit is told from bystanders.

Every start is noted in Redis and struck out when it ends, in round trips that are made anyway. A
note whose process is gone tells of a crash. All that was at work in a process that died has one,
so one says little: what has one is a suspect, and of suspects a process runs one at a time. Who
dies a second time was the only suspect there, and is not begun again.

A message that is redelivered while its first worker lives (a lost connection, a stall) is no
suspect, and neither is one that was given back.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress

import redis

from api_client.wire.broker import VISIBILITY_TIMEOUT_S
from api_client.wire.codec import text
from api_client.wire.errors import DeviceLost
from api_client.wire.names import Keys
from api_client.wire.patience import LOST
from api_client.wire.quarantine import Crash
from api_client.wire.settings import LONGEST_S

from .consumer import LONGEST_RUN_S
from .line import Lines
from .pool import aside, stop_if_cancelled

__all__ = ["TWICE", "Start", "Suspects"]

TWICE = 2
NOTE_KEPT_S = int(2 * LONGEST_RUN_S)  # a redelivery comes long before
BESIDE_TOLD = 8
LOOK_S = 0.2  # between two looks at whether a suspect that waits should stop

# Nothing of what was answered; else what was begun and not ended. Who is the first to begin is
# noted at once. KEYS: the starts, the answer. ARGV: process, note, seconds.
_BEGIN = """
if redis.call('EXISTS', KEYS[2]) == 1 or redis.call('HGET', KEYS[1], 'answered') then
  return false
end
local before = redis.call('HGETALL', KEYS[1])
if #before == 0 then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
return before
"""

# A mark outlives an answer that goes before the request's deadline: else it could be done again in
# between. KEYS: the answer, the starts. ARGV: frame, its seconds, those that a caller who has it
# leaves it, those until the deadline.
_ANSWER = """
redis.call('RPUSH', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[2])
if tonumber(ARGV[4]) > tonumber(ARGV[3]) then
  redis.call('HSET', KEYS[2], 'answered', '')
  redis.call('EXPIRE', KEYS[2], ARGV[4])
end
"""


class Suspects:
    """The starts of one process.

    Args:
        started_at: of this process, as its status hash tells it.
    """

    def __init__(self, store: redis.Redis, keys: Keys, *, node: str, started_at: float) -> None:
        self._store, self._keys, self._node = store, keys, node
        self._lines = Lines(store)
        self._process = f"{node} {started_at!r}"
        self._at_work: dict[str, str] = {}
        self._noting = threading.Lock()
        self._seat = threading.Lock()  # of the one suspect that runs
        self._device_lost = ""  # why; whoever comes after that is no culprit
        self._lost_over: set[str] = set()  # but these, that may come once more before the end

    @contextmanager
    def begin(self, id: str, what: str = "", *, is_first: bool = False) -> Iterator["Start"]:
        """Around the work on a message; one round trip, unless it was begun before.

        This start is struck out at the end of the block, unless Redis is away or this process will
        end over it; what is known of others stays until `Start.end`.

        Args:
            what: it is, for the evidence of others.
            is_first: nobody has begun it before, or that does no harm. Then Redis is told, and not
                waited for.
        """
        with self._noting:
            has_twin = id in self._at_work
            self._at_work.setdefault(id, f"{what} {id}".strip())
        if has_twin:
            yield Start(self, id, is_needless=True)
            return
        try:
            yield from self._begun(id, is_first)
        finally:
            del self._at_work[id]

    def _begun(self, id: str, is_first: bool) -> Iterator["Start"]:
        begin = (
            "EVAL",
            _BEGIN,
            2,
            self._keys.started(id),
            self._keys.answer(id),
            self._process,
            self._note(id).model_dump_json(),
            NOTE_KEPT_S,
        )
        if is_first:
            self._lines.tell(*begin)
            start = Start(self, id, is_needless=False)
        else:
            said = self._lines.ask(*begin)
            crashes = self._crashes(said or [])
            start = Start(self, id, is_needless=said is None, crashes=crashes)
            if said and not crashes:
                start.note()
        came_late = bool(self._device_lost) and id not in self._lost_over
        try:
            yield start
        except DeviceLost as lost:
            self._device_lost = str(lost)
            if came_late:
                start.give_up()
            else:
                self._lost_over.add(id)
            raise
        except LOST:
            raise
        except BaseException:
            start.give_up()
            raise
        else:
            start.give_up()

    @contextmanager
    def _seated(self) -> Iterator[None]:
        with aside():
            while not self._seat.acquire(timeout=LOOK_S):
                stop_if_cancelled()
        try:
            yield
        finally:
            self._seat.release()

    def _note(self, id: str, place: tuple[int, int] | None = None) -> Crash:
        """What would be known of a start, if this process died now."""
        beside = [told for other, told in self._at_work.copy().items() if other != id]
        told = tuple(beside[:BESIDE_TOLD])
        return Crash(worker=self._node, at=time.time(), beside=told, place=place)

    def _crashes(self, notes: list[bytes]) -> tuple[Crash, ...]:
        """Of processes that are gone, the oldest first.

        Those that bore this node's name are: the status hash may not say so yet.
        """
        found = dict(zip(map(text, notes[::2]), notes[1::2], strict=True))
        found.pop(self._process, None)  # it could not be struck out, Redis being away
        if not found:
            return ()
        with self._store.pipeline(transaction=False) as pipe:
            for process in found:
                pipe.hgetall(self._keys.worker(process.partition(" ")[0]))
            seen = dict(zip(found, pipe.execute(), strict=True))
        crashes = [
            Crash.model_validate_json(note, extra="ignore")  # a newer worker's may have more
            for process, note in found.items()
            if process.startswith(f"{self._node} ") or not _is_alive(process, seen[process])
        ]
        return tuple(sorted(crashes, key=lambda crash: crash.at))


class Start:
    """One message that this process has begun.

    Attributes:
        is_needless: it was answered before, or a twin of the message is at work in this process.
        crashes: what is known of the processes that died over it.
        deadline: in unix seconds, once it is known; until then it is answered once.
    """

    deadline: float | None = None

    def __init__(
        self, suspects: Suspects, id: str, *, is_needless: bool, crashes: tuple[Crash, ...] = ()
    ) -> None:
        self.id, self.is_needless, self.crashes = id, is_needless, crashes
        self._suspects = suspects
        self._has_ended = is_needless

    @property
    def is_condemned(self) -> bool:
        return len(self.crashes) >= TWICE

    @contextmanager
    def on_trial(self, place: tuple[int, int] | None = None) -> Iterator[None]:
        """Around what a crash may come of: a suspect has no other one beside it in this process.

        Its note is struck out before the next one has its turn: else it would share the blame for
        what that one does while the answer to this one is still on its way.

        Args:
            place: in a chunk, see `note`.

        Raises:
            Ignore, Reject, SoftTimeLimitExceeded: the task was stopped while it waited.
            DeviceLost: somebody else's fault; this process ends.
        """
        suspects, is_suspect = self._suspects, bool(self.crashes)
        with suspects._seated() if is_suspect else nullcontext():
            try:
                if suspects._device_lost:
                    raise DeviceLost(suspects._device_lost)
                if is_suspect:
                    self.note(place)
                yield
            except DeviceLost as lost:
                suspects._device_lost = str(lost)
                raise
            finally:
                if is_suspect and not suspects._device_lost:
                    self.give_up()

    def note(self, place: tuple[int, int] | None = None) -> None:
        """Say in Redis that it is begun; of a bulk job's chunk, which rows are at work now."""
        suspects = self._suspects
        key, note = suspects._keys.started(self.id), suspects._note(self.id, place)
        with suspects._store.pipeline(transaction=False) as pipe:
            pipe.hset(key, suspects._process, note.model_dump_json())
            pipe.expire(key, NOTE_KEPT_S)
            pipe.execute()

    def answer(
        self, frame: bytes, *, ttl_s: int, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """It has its answer, and all is forgotten. A second answer changes nothing.

        Args:
            meanwhile: done once, while the answer is on its way.
        """
        suspects, keys = self._suspects, self._suspects._keys
        left_s = 0.0 if self.deadline is None else self.deadline - time.time()
        mark_s = math.ceil(max(0.0, min(LONGEST_S, left_s)))
        seconds = ttl_s, min(ttl_s, VISIBILITY_TIMEOUT_S), mark_s
        answer = _ANSWER, 2, keys.answer(self.id), keys.started(self.id), frame, *seconds
        suspects._lines.ask("EVAL", *answer, meanwhile=meanwhile)
        self._has_ended = True

    def end(self) -> None:
        """It has ended, and all is forgotten."""
        self._suspects._lines.ask("DEL", self._suspects._keys.started(self.id))
        self._has_ended = True

    def give_up(self) -> None:
        """Somebody else may begin it."""
        suspects = self._suspects
        if not self._has_ended:
            with suppress(*LOST):
                suspects._lines.ask("HDEL", suspects._keys.started(self.id), suspects._process)


def _is_alive(process: str, seen: Mapping[bytes, bytes]) -> bool:
    """By the status hash of the node that bears the name now; one that stops over some trouble
    drops what it has begun, any other one finishes it."""
    _, _, started_at = process.partition(" ")
    has_dropped = seen.get(b"state") == b'"stopping"' and seen.get(b"trouble", b'""') != b'""'
    return text(seen.get(b"started_at", b"")) == started_at and not has_dropped
