"""sweep_fleet and sweep: what the clock asks for, first of anyone, then of every worker."""

import redis
from celery import Task, shared_task
from kombu.exceptions import OperationalError

from api_client.wire import names
from api_client.wire.errors import first_line
from api_client.wire.messages import Cause
from worker import housekeeping, runtime
from worker.backends.lost import is_beyond_repair
from worker.delivery import watchdog
from worker.residency import sweeping

# Redis is away, or refuses this login: nothing to answer, nothing to repeat. The clock's next one
# makes up for this one.
AWAY = (redis.RedisError, OperationalError)


@shared_task(name=names.SWEEP_FLEET, bind=True, throws=AWAY)  # type: ignore[untyped-decorator]
def sweep_fleet(task: Task) -> int:
    """Passes the sweep on to every live worker; gives their number.

    A broadcast would not reach workers that are away for a moment, nor start before this process
    has seen the exchange (celery #2638); direct queues keep it, until it expires.
    """
    here = runtime.here()
    interval_s = here.settings.sweep_interval_s
    if not housekeeping.first_in_period(here.redis, here.keys, period_s=interval_s):
        return 0  # another beat's
    alive = housekeeping.live_workers(here.redis, here.keys)
    for worker in alive:
        task.app.send_task(
            names.SWEEP,
            queue=names.direct_queue(worker),
            priority=names.INTERACTIVE,
            expires=interval_s,
        )
    housekeeping.keep_reachable(here.redis, here.keys, alive)
    housekeeping.forget_absent(here.redis, here.keys, alive)
    housekeeping.expire_replies(here.redis, here.keys)
    return len(alive)


@shared_task(name=names.SWEEP, throws=AWAY)  # type: ignore[untyped-decorator]
def sweep() -> dict[str, str]:
    """Lets go of what is idle here, or brings what will be wanted; gives what became of whom."""
    here = runtime.here()
    try:
        moved = {move.model_id: move.reason for move in sweeping.sweep(here, asked_by=Cause.SWEEP)}
    except RuntimeError as error:  # asked for its free memory
        if is_beyond_repair(error):
            here.watchdog.end(f"the device is lost: {first_line(error)}")
        raise
    here.meter.swept(after_s=here.tracker.swept(), interval_s=here.settings.sweep_interval_s)
    if not moved and (brought := sweeping.foresee(here)):
        moved[brought] = "likely to be wanted next"
    if reason := sweeping.reason_to_recycle(here):
        watchdog.retire(reason)
    here.look_around()  # last: it hangs where a file system hangs
    return moved
