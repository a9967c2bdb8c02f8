"""The clock of the fleet: what runs how often.

celery -A beat_schedule beat

It keeps nothing on disk: what it sends depends on no earlier sending. Two of it do no harm.
"""

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import redis
from celery import beat
from celery.signals import beat_init

from api_client.wire import names
from api_client.wire.broker import celery_app, check_server, redis_client
from api_client.wire.errors import ClipyardError
from api_client.wire.names import Keys
from api_client.wire.settings import Settings, cannot_start

log = logging.getLogger(__name__)

MOST_WAITING = 100  # messages, of eight minutes


def schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """What is sent when. What nobody took before the next one is due is worth nothing."""
    clock = {"tend the bulk jobs": _every(settings.tend_interval_s, names.JOBS_TEND)}
    if settings.sweeps_enabled:
        clock["sweep the fleet"] = _every(settings.sweep_interval_s, names.SWEEP_FLEET)
    return clock


def _every(seconds: float, task: str) -> dict[str, Any]:
    return {
        "task": task,
        "schedule": seconds,
        "options": {"queue": names.CONTROL, "priority": names.INTERACTIVE, "expires": seconds},
    }


class Scheduler(beat.Scheduler):  # type: ignore[misc]  # celery has no types
    """Goes by a clock that nobody sets. Celery's waits an hour when the time of day is set back by
    an hour, and nothing is swept or tended meanwhile.

    Takes a producer of the app's for each message. Celery's keeps one for good, and once that has
    given a message up, over a Redis that was away for half a minute, it never sends another one.
    """

    def __init__(
        self, *args: Any, clock: Callable[[], float] = time.monotonic, **options: Any
    ) -> None:
        self._ticks = clock
        self._due: dict[str, float] = {}
        super().__init__(*args, **options)

    def tick(self, *_: Any, **__: Any) -> float:
        """Sends what is due; gives the seconds until something will be."""
        for name, entry in self.schedule.items():
            if self._ticks() >= self._due.get(name, 0.0):
                self._due[name] = self._ticks() + entry.schedule.seconds
                self.apply_entry(entry)
        return max(0.0, min(self._due.values()) - self._ticks())

    def apply_entry(self, entry: Any, **_: Any) -> None:
        """Sends it, or says in a line why not: Redis is away, full, or refuses this login. Or no
        worker takes what waits: it would be 18 MB a day, and the first one to come would have to
        look at all of it before it does what is due."""
        if (waiting := _waiting()) >= MOST_WAITING:
            log.info("%s is not sent: %d messages wait for a worker", entry.task, waiting)
            return
        log.info("sending %s (%s)", entry.task, entry.name)
        try:
            self.apply_async(entry, advance=False)
        except beat.SchedulingError as error:
            log.error("%s", error)


def _waiting() -> int:
    """Messages in the queue of the clock; none where Redis is away, which the sending tells."""
    with suppress(redis.RedisError):
        return _store.llen(Keys(_settings.key_prefix).queue(names.CONTROL, names.INTERACTIVE))
    return 0


try:
    _settings = Settings.read()
    _store = redis_client(_settings, patience_s=0)
    app = celery_app(
        _settings, beat_schedule=schedule(_settings), beat_scheduler=f"{__name__}:Scheduler"
    )
except ClipyardError as error:
    cannot_start(error)


@beat_init.connect  # type: ignore[untyped-decorator]
def _start(**_: Any) -> None:
    try:
        check_server(_settings)
    except ClipyardError as error:
        cannot_start(error)
