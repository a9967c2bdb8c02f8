"""The clock of the fleet: what runs how often.

celery -A beat_schedule beat

It keeps nothing on disk: what it sends depends on no earlier sending. Two of it do no harm.
"""

import sys
from typing import Any

from api_client.wire import names
from api_client.wire.broker import celery_app
from api_client.wire.errors import ClipyardError
from api_client.wire.settings import Settings


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
        "options": {
            "queue": names.CONTROL,
            "priority": names.INTERACTIVE,
            "expires": seconds,
        },
    }


try:
    _settings = Settings.read()
    app = celery_app(
        _settings, beat_schedule=schedule(_settings), beat_scheduler="celery.beat:Scheduler"
    )
except ClipyardError as error:
    sys.exit(str(error))
