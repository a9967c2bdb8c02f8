"""How far every job has come, in Redis: a hash, two bitmaps and the window of each.

What is started is in `flight`, with the time at which it is to be started again: soon after the
worker's claim on it has ended, if it has one. A chunk is counted when its bit is set for the first
time. Every change is one script, so whoever dies between two of them leaves nothing half done; a
Redis that comes back a second younger has forgotten whole changes, and they are made again.

`flight` holds chunk numbers, and PLAN or CHECK while the job is at that.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any

import redis

from api_client.wire.errors import ClipyardError
from api_client.wire.jobs import JobSpec, JobState, JobStatus, unsealed
from api_client.wire.jobscripts import OVER_KEPT_S, PAUSE, job_keys
from api_client.wire.names import Keys
from api_client.wire.settings import Settings
from api_client.wire.signing import FIELD

from .manifest import Manifest
from .papers import Marker
from .sources.refs import FolderEmpty

PLAN, CHECK = "plan", "check"
AT_WORK = frozenset(state.encode() for state in JobState if not state.is_at_rest)
PAUSE_MIN_S, PAUSE_MAX_S = 2.0, 60.0  # before something that failed is tried again
SENT_S = 60.0

# Shared by the scripts: KEYS are the job's hash, done, failed, flight, held.
_HEAD = """
local H, DONE, FAILED, FLIGHT, HELD = unpack(KEYS)
local function field(name) return redis.call('HGET', H, name) end
local function number(name) return tonumber(field(name) or '0') end
local function to(state, reason)
  redis.call('HSET', H, 'state', state, 'reason', reason)
end
-- A message may be on its way three times as long as the last one was seen to be; but one that
-- waited for more than an hour (3600 s) waited for a worker, which is there now.
local function patience(given)
  return math.max(tonumber(given), math.min(number('waited_s'), 3600) * 3)
end
local function fill(now, sent_s)
  local started = {}
  if field('state') ~= 'running' then return started end
  local due = now + patience(sent_s)
  local at, chunks, window = number('cursor'), number('chunks'), number('window')
  while at < chunks and redis.call('ZCARD', FLIGHT) < window do
    local is_done = redis.call('GETBIT', DONE, at) == 1
    if is_done and at % 8 == 0 then  -- over bytes, not bits: a million would hold Redis for seconds
      at = redis.call('BITPOS', DONE, 0, at / 8)
    else
      if not is_done and not redis.call('ZSCORE', FLIGHT, at) then
        redis.call('ZADD', FLIGHT, due, at)
        started[#started + 1] = tostring(at)
      end
      at = at + 1
    end
  end
  redis.call('HSET', H, 'cursor', at)
  if at >= chunks and redis.call('ZCARD', FLIGHT) == 0 then
    to('checking', '')
    redis.call('ZADD', FLIGHT, due, 'check')
    started[1] = 'check'
  end
  return started
end
"""

_CLAIM = """
local what, state, now, lease_s, claim, waited = unpack(ARGV)
if field('state') ~= state then return 'stopped' end
if tonumber(what) and redis.call('GETBIT', DONE, what) == 1 then
  redis.call('ZREM', FLIGHT, what)
  redis.call('HDEL', HELD, what)
  return 'done'
end
local due = redis.call('ZSCORE', FLIGHT, what)
local held = redis.call('HGET', HELD, what)
-- Our own, where the answer was lost and redis-py asked again, is no other one.
if held and held ~= claim and due and tonumber(due) > tonumber(now) then return 'elsewhere' end
redis.call('ZADD', FLIGHT, now + lease_s, what)
redis.call('HSET', HELD, what, claim)
redis.call('HSET', H, 'waited_s', waited)
return 'mine'
"""

_RENEW = """
local what, claim, due = unpack(ARGV)
if redis.call('HGET', HELD, what) ~= claim then return 0 end
redis.call('ZADD', FLIGHT, 'XX', due, what)
return 1
"""

_GIVE_BACK = """
local what, claim, due = unpack(ARGV)
if redis.call('HGET', HELD, what) ~= claim then return 0 end
redis.call('HDEL', HELD, what)
redis.call('ZADD', FLIGHT, 'XX', due, what)
return 1
"""

_WALKED = """
if field('state') == 'planning' then redis.call('HSET', H, 'items', ARGV[1]) end
"""

_PLANNED = """
local now, sent_s = tonumber(ARGV[1]), tonumber(ARGV[2])
if field('state') ~= 'planning' then return {} end
redis.call('ZREM', FLIGHT, 'plan')
redis.call('HDEL', HELD, 'plan')
redis.call('HSET', H, 'state', 'running', 'started_at', now, unpack(ARGV, 3))
redis.call('HDEL', H, 'trouble', 'trouble_since')
return fill(now, sent_s)
"""

_OUTAGE = """
if not field('state') then return 1 end  -- it is forgotten, and its id free to be submitted again
local name, reached = 'outage:' .. ARGV[1], number('reached')
-- Who resumed a job was told that a folder is empty: what is so until something comes through is.
if ARGV[2] == 'empty' and field('resumed') == tostring(reached) then return 0 end
-- The others that are held may have been through before it began: one more must come through.
if redis.call('HSETNX', H, name, reached + redis.call('HLEN', HELD) - 1) == 1 then return 1 end
return reached > number(name) and 0 or 1
"""

_FINISHED = """
local now, sent_s, chunk, done, failed, worker, held = unpack(ARGV, 1, 7)
if redis.call('TTL', H) ~= -1 then return {} end  -- it is over, or forgotten
redis.call('ZREM', FLIGHT, chunk)
redis.call('HDEL', HELD, chunk)
redis.call('HDEL', H, 'outage:' .. chunk)
if tonumber(done) > 0 then redis.call('HINCRBY', H, 'reached', 1) end
if redis.call('SETBIT', DONE, chunk, 1) == 0 then
  redis.call('HINCRBY', H, 'done', done)
  redis.call('HINCRBY', H, 'failed', failed)
  redis.call('HINCRBY', H, 'by:' .. worker, done + failed - held)
  if tonumber(failed) > 0 then redis.call('SETBIT', FAILED, chunk, 1) end
  for at = 8, #ARGV, 2 do redis.call('HINCRBYFLOAT', H, ARGV[at], ARGV[at + 1]) end
end
redis.call('HDEL', H, 'trouble', 'trouble_since')
return fill(tonumber(now), sent_s)
"""

_TROUBLE = """
local what, claim, now, sentence, pause_min_s, pause_max_s = unpack(ARGV)
if redis.call('HGET', HELD, what) ~= claim then return 0 end
redis.call('HSETNX', H, 'trouble_since', now)
redis.call('HSET', H, 'trouble', sentence)
redis.call('HDEL', HELD, what)
local lasting = now - number('trouble_since')
local state = field('state')
local at_work = state == 'planning' or state == 'running' or state == 'checking'
if at_work and lasting >= number('patience_s') then
  redis.call('HSET', H, 'paused_from', state)
  to('paused', sentence)
end
local pause = math.min(tonumber(pause_max_s), math.max(tonumber(pause_min_s), lasting))
redis.call('ZADD', FLIGHT, 'XX', now + pause, what)
return 1
"""

_FALLEN = """
local now, sent_s = tonumber(ARGV[1]), ARGV[2]
local state = field('state')
if state ~= 'planning' and state ~= 'running' and state ~= 'checking' then return {} end
local fallen = redis.call('ZRANGEBYSCORE', FLIGHT, '-inf', now)
for _, what in ipairs(fallen) do
  redis.call('HDEL', HELD, what)
  redis.call('ZADD', FLIGHT, now + patience(sent_s), what)
end
for _, what in ipairs(fill(now, sent_s)) do fallen[#fallen + 1] = what end
return fallen
"""

_REOPEN = """
local now, sent_s, done, failed = unpack(ARGV, 1, 4)
if field('state') ~= 'checking' then return {} end
for at = 5, #ARGV do
  redis.call('SETBIT', DONE, ARGV[at], 0)
  redis.call('SETBIT', FAILED, ARGV[at], 0)
end
redis.call('HSET', H, 'done', done, 'failed', failed, 'cursor', ARGV[5])
redis.call('HINCRBY', H, 'repairs', 1)
redis.call('ZREM', FLIGHT, 'check')
redis.call('HDEL', HELD, 'check')
to('running', '')
return fill(tonumber(now), sent_s)
"""

_END = """
local at, state, reason, now, kept_s = unpack(ARGV)
local is = field('state')
if is ~= at and not (is == 'paused' and field('paused_from') == at) then return 0 end
redis.call('DEL', FLIGHT, HELD)
redis.call('HSET', H, 'ended_at', now, unpack(ARGV, 6))
redis.call('HDEL', H, 'trouble', 'trouble_since')
to(state, reason)
for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, kept_s) end
return 1
"""


_UNFIT = """
if redis.call('TTL', H) ~= -1 then return 0 end  -- it is over: nothing of it would ever expire
return redis.call('SADD', KEYS[6], ARGV[1])
"""


# KEYS: the list of jobs, then hashes; ARGV: their ids. One may be submitted again meanwhile.
_STRIKE_OFF = """
for at, job in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[at + 1]) == 0 then redis.call('ZREM', KEYS[1], job) end
end
"""


class Claimed(StrEnum):
    """What a claim met with."""

    MINE = "mine"
    DONE = "done"
    ELSEWHERE = "elsewhere"
    STOPPED = "stopped"  # the job is paused, cancelled, or at something else


@dataclass(frozen=True)
class Claim:
    """The right to work on a chunk, or to plan or check, as long as it is renewed."""

    what: str
    token: str
    lease_s: float


class JobLedger:
    """The books of one job.

    Args:
        sent_s: how long a message may be on its way before it counts as lost; longer where the
                messages of the job were seen to wait longer.
        clock: unix seconds; Redis's own unless given, so that workers need not agree on the time.
    """

    def __init__(
        self,
        store: redis.Redis,
        keys: Keys,
        job: str,
        *,
        sent_s: float = SENT_S,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._store = store
        self.job = job
        self.now = clock or partial(_time_of, store)
        self._sent_s = sent_s
        self._hash = keys.job(job)
        self._unfit = keys.job_unfit(job)
        self._keys = job_keys(keys, job)

    def spec(self, settings: Settings) -> JobSpec | None:
        """What was asked for, or None if nobody knows the job any more.

        Raises:
            BadRequest: it is of another version, or not signed as the settings want.
        """
        found: Any = self._store.hmget(self._hash, ("spec", FIELD))
        text, signature = found
        return unsealed(self.job, text, signature, settings) if text else None

    def state(self) -> JobState | None:
        """Also where the specification cannot be read; None if nobody knows the job any more."""
        found: Any = self._store.hget(self._hash, "state")
        return JobState(found.decode()) if found else None

    def status(self) -> JobStatus:
        """How far the job has come."""
        fields: Any = self._store.hgetall(self._hash)
        return JobStatus.of(self.job, fields, seen_at=self.now())

    def pinned(self) -> dict[str, str]:
        """What planning found out: index, fingerprint, dimension, papers; and `round`."""
        names = ("index", "fingerprint", "dimension", "papers", "round", "repairs")
        values: Any = self._store.hmget(self._hash, names)
        return {n: v.decode() if v else "" for n, v in zip(names, values, strict=True)}

    def claim(self, claim: Claim, *, state: JobState, sent_at: float) -> Claimed:
        """Take something on; the answer says whether it is ours to do.

        Args:
            state: of the job, in which it makes sense.
            sent_at: when the message was sent, by `now`.
        """
        now = self.now()
        waited_s = max(0.0, now - sent_at)
        said = self._run(_CLAIM, claim.what, state, now, claim.lease_s, claim.token, waited_s)
        return Claimed(said.decode())

    def renew(self, claim: Claim) -> bool:
        """Go on working on it, if it still is ours: nothing is of a job that is over."""
        return bool(self._run(_RENEW, claim.what, claim.token, self.now() + claim.lease_s))

    def give_back(self, claim: Claim) -> None:
        """Leave it to whoever comes next."""
        self._run(_GIVE_BACK, claim.what, claim.token, self.now())

    def walked(self, items: int) -> None:
        """So many were found up to now: a large store is listed for hours."""
        self._run(_WALKED, items)

    def planned(
        self, manifest: Manifest, *, fingerprint: str, dimension: int, papers: str
    ) -> list[str]:
        """The job may run; gives what to start."""
        fields: dict[str, str | float] = {
            "items": manifest.items,
            "chunks": manifest.chunks,
            "index": manifest.index,
            "fingerprint": fingerprint,
            "dimension": dimension,
            "papers": papers,
        }
        return _texts(self._run(_PLANNED, self.now(), self._sent_s, *_pairs(fields)))

    def is_outage(self, chunk: int, why: ClipyardError) -> bool:
        """Whether nothing of a slice can be reached because nothing can be: it is tried again.

        Not so if a chunk that was begun later came through, or the job was resumed, since this one
        met with that for the first time. Nor if its folder is empty, and nothing came through since
        the job was resumed: one that was emptied would pause it window by window.
        """
        return bool(self._run(_OUTAGE, chunk, "empty" if isinstance(why, FolderEmpty) else ""))

    def finished(self, marker: Marker) -> list[str]:
        """Count a chunk, once however often it is said; gives what to start next."""
        counts = (marker.chunk, marker.done, len(marker.losses), marker.worker, marker.held)
        stages = _pairs(marker.stages)
        return _texts(self._run(_FINISHED, self.now(), self._sent_s, *counts, *stages))

    def trouble(self, claim: Claim, sentence: str) -> None:
        """It did not work, and may later: try again after a pause that grows.

        When nothing has succeeded for the job's `patience_s`, it pauses with this reason.
        """
        pauses = (PAUSE_MIN_S, PAUSE_MAX_S)
        self._run(_TROUBLE, claim.what, claim.token, self.now(), sentence, *pauses)

    def fallen(self) -> list[str]:
        """What to start again, and what to start to fill the window."""
        return _texts(self._run(_FALLEN, self.now(), self._sent_s))

    def pause(self, reason: str) -> bool:
        """Start nothing more until somebody resumes it."""
        return bool(self._run(PAUSE, reason))

    def reopen(self, chunks: Sequence[int], *, done: int, failed: int) -> list[str]:
        """Do these chunks again; the counts are those of all the others. Gives what to start."""
        now = self.now()
        return _texts(self._run(_REOPEN, now, self._sent_s, done, failed, *chunks))

    def end(self, state: JobState, reason: str, *, at: JobState, **counts: int) -> bool:
        """The job is over, unless it was cancelled before or has gone on without us.

        Args:
            at: of the job, in which that makes sense; it may have paused there.
            counts: `done`, `failed` and `cut`, as the check found them.
        """
        now = self.now()
        return bool(self._run(_END, at, state, reason, now, OVER_KEPT_S, *_pairs(counts)))

    def unfit(self, worker: str) -> None:
        """This worker answers in another vector space."""
        self._run(_UNFIT, worker)

    def unfit_workers(self) -> frozenset[str]:
        found: Any = self._store.smembers(self._unfit)
        return frozenset(name.decode() for name in found)

    def _run(self, script: str, *arguments: str | float) -> Any:
        # EVAL each time: a Redis that was restarted does not know a script by its digest.
        return self._store.eval(_HEAD + script, len(self._keys), *self._keys, *arguments)


def jobs_at_work(store: redis.Redis, keys: Keys) -> list[str]:
    """The ids of those that are at work, the oldest first. Those whose hash has expired are
    struck off the list; until then, for a month, it has them all."""
    found: Any = store.zrange(keys.jobs, 0, -1)
    ids = [job.decode() for job in found]
    with store.pipeline(transaction=False) as pipe:
        for job in ids:
            pipe.hget(keys.job(job), "state")
        states = dict(zip(ids, pipe.execute(), strict=True))
    if gone := [job for job, state in states.items() if not state]:
        places = [keys.jobs, *map(keys.job, gone)]
        store.eval(_STRIKE_OFF, len(places), *places, *gone)
    return [job for job, state in states.items() if state in AT_WORK]


def _time_of(store: redis.Redis) -> float:
    seconds, micros = store.time()
    return float(seconds) + float(micros) / 1e6


def _pairs(fields: Mapping[str, str | float]) -> list[str | float]:
    return [part for pair in fields.items() for part in pair]


def _texts(found: Any) -> list[str]:
    return [what.decode() for what in found]
