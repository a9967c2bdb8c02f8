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

from . import ledgerscripts as scripts
from .manifest import Manifest
from .papers import Marker
from .sources.refs import FolderEmpty

PLAN, CHECK = "plan", "check"
AT_WORK = frozenset(state.encode() for state in JobState if not state.is_at_rest)
PAUSE_MIN_S, PAUSE_MAX_S = 2.0, 60.0  # before something that failed is tried again


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


@dataclass(frozen=True)
class Pinned:
    """What stays as it is while a round of a job's chunks runs.

    Attributes:
        index: the digest of the manifest's index.
        round: of retries that people asked for.
        repairs: times that a check had chunks done again.
    """

    index: str
    fingerprint: str
    dimension: int
    round: int
    repairs: int


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
        sent_s: float,
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

    def pinned(self) -> Pinned:
        """What planning found out, and how often the job was tried again since."""
        names = ("index", "fingerprint", "dimension", "round", "repairs")
        found: Any = self._store.hmget(self._hash, names)
        index, fingerprint, *numbers = (value.decode() if value else "" for value in found)
        return Pinned(index, fingerprint, *(int(number or 0) for number in numbers))

    def claim(self, claim: Claim, *, state: JobState, sent_at: float) -> Claimed:
        """Take something on; the answer says whether it is ours to do.

        Args:
            state: of the job, in which it makes sense.
            sent_at: when the message was sent, by `now`.
        """
        now = self.now()
        waited_s = max(0.0, now - sent_at)
        said = self._run(
            scripts.CLAIM, claim.what, state, now, claim.lease_s, claim.token, waited_s
        )
        return Claimed(said.decode())

    def renew(self, claim: Claim) -> bool:
        """Go on working on it, if it still is ours: nothing is of a job that is over."""
        return bool(self._run(scripts.RENEW, claim.what, claim.token, self.now() + claim.lease_s))

    def give_back(self, claim: Claim) -> None:
        """Leave it to whoever comes next."""
        self._run(scripts.GIVE_BACK, claim.what, claim.token, self.now())

    def walked(self, items: int) -> None:
        """So many were found up to now: a large store is listed for hours."""
        self._run(scripts.WALKED, items)

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
        return _texts(self._run(scripts.PLANNED, self.now(), self._sent_s, *_pairs(fields)))

    def is_outage(self, chunk: int, why: ClipyardError) -> bool:
        """Whether nothing of a slice can be reached because nothing can be: it is tried again.

        Not so if a chunk that was begun later came through, or the job was resumed, since this one
        met with that for the first time. Nor if its folder is empty, and nothing came through since
        the job was resumed: one that was emptied would pause it window by window.
        """
        return bool(
            self._run(scripts.OUTAGE, chunk, "empty" if isinstance(why, FolderEmpty) else "")
        )

    def finished(self, marker: Marker) -> list[str]:
        """Count a chunk, once however often it is said; gives what to start next."""
        counts = (marker.chunk, marker.done, len(marker.losses), marker.worker, marker.held)
        stages = _pairs(marker.stages)
        return _texts(self._run(scripts.FINISHED, self.now(), self._sent_s, *counts, *stages))

    def trouble(self, claim: Claim, sentence: str) -> None:
        """It did not work, and may later: try again after a pause that grows.

        When nothing has succeeded for the job's `patience_s`, it pauses with this reason.
        """
        pauses = (PAUSE_MIN_S, PAUSE_MAX_S)
        self._run(scripts.TROUBLE, claim.what, claim.token, self.now(), sentence, *pauses)

    def fallen(self) -> list[str]:
        """What to start again, and what to start to fill the window."""
        return _texts(self._run(scripts.FALLEN, self.now(), self._sent_s))

    def pause(self, reason: str) -> bool:
        """Start nothing more until somebody resumes it."""
        return bool(self._run(PAUSE, reason))

    def reopen(self, chunks: Sequence[int], *, done: int, failed: int) -> list[str]:
        """Do these chunks again; the counts are those of all the others. Gives what to start."""
        now = self.now()
        return _texts(self._run(scripts.REOPEN, now, self._sent_s, done, failed, *chunks))

    def end(self, state: JobState, reason: str, *, at: JobState, **counts: int) -> bool:
        """The job is over, unless it was cancelled before or has gone on without us.

        Args:
            at: of the job, in which that makes sense; it may have paused there.
            counts: `done`, `failed` and `cut`, as the check found them.
        """
        now = self.now()
        return bool(self._run(scripts.END, at, state, reason, now, OVER_KEPT_S, *_pairs(counts)))

    def unfit(self, worker: str) -> None:
        """This worker answers in another vector space."""
        self._run(scripts.UNFIT, worker)

    def unfit_workers(self) -> frozenset[str]:
        found: Any = self._store.smembers(self._unfit)
        return frozenset(name.decode() for name in found)

    def _run(self, script: str, *arguments: str | float) -> Any:
        # EVAL each time: a Redis that was restarted does not know a script by its digest.
        return self._store.eval(scripts.HEAD + script, len(self._keys), *self._keys, *arguments)


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
        store.eval(scripts.STRIKE_OFF, len(places), *places, *gone)
    return [job for job, state in states.items() if state in AT_WORK]


def _time_of(store: redis.Redis) -> float:
    seconds, micros = store.time()
    return float(seconds) + float(micros) / 1e6


def _pairs(fields: Mapping[str, str | float]) -> list[str | float]:
    return [part for pair in fields.items() for part in pair]


def _texts(found: Any) -> list[str]:
    return [what.decode() for what in found]
