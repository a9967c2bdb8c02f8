"""Which of Celery's lines tell of nothing but the clock.

Beat sends something every few seconds, and Celery has two lines for each. With them in it, nobody
finds in a log what was loaded and what went.
"""

import logging

from api_client.wire import names

__all__ = ["LOGGERS", "is_worth_a_line"]

LOGGERS = ("celery.worker.strategy", "celery.worker.request", "celery.app.trace")
"""Those that say a message was received, that it came too late, and that its task succeeded."""

# Each with what it gives where there was nothing to do, as Celery shows it; None tells of nothing
# in any case: what it sends has lines of its own.
_CLOCKWORK = {names.JOBS_TEND: "0", names.SWEEP: "{}", names.SWEEP_FLEET: None}


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """A filter for `LOGGERS`: False for a periodic task that came, early or late, or found nothing
    to do.

    What went wrong is always told, and at DEBUG everything.
    """
    told = getattr(record, "data", {})  # a line on what came late has a name and an id alone
    if record.levelno > logging.INFO or "exc" in told:
        return True
    task = told.get("name") or next(iter(record.args or ()), None)
    if task not in _CLOCKWORK:
        return True
    if logging.getLogger(record.name).isEnabledFor(logging.DEBUG):
        return True
    came_of_it, nothing = told.get("return_value"), _CLOCKWORK[task]
    return nothing is not None and came_of_it not in (None, nothing)
