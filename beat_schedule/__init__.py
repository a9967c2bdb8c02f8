"""The clock of the fleet: which sweep runs how often.

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
    """What is sent when. A sweep that nobody took before the next one is due is worth nothing."""
    if not settings.sweeps_enabled:
        return {}
    return {
        "sweep the fleet": {
            "task": names.SWEEP_FLEET,
            "schedule": settings.sweep_interval_s,
            "options": {
                "queue": names.CONTROL,
                "priority": names.INTERACTIVE,
                "expires": settings.sweep_interval_s,
            },
        }
    }


try:
    _settings = Settings.read()
    app = celery_app(
        _settings, beat_schedule=schedule(_settings), beat_scheduler="celery.beat:Scheduler"
    )
except ClipyardError as error:
    sys.exit(str(error))
