"""The worker's own app with the fake family and without torch, so that it starts in a second.

celery -A tests.light_app worker -P threads
"""

import sys
from types import ModuleType

from worker.backends import registry
from worker.backends.base import Placement

_placement = ModuleType("worker.backends.placement")
vars(_placement)["resolve"] = lambda settings: Placement("cpu")
sys.modules[_placement.__name__] = _placement
registry.BUILT_IN["open_clip"] = registry.BUILT_IN["fake"]

from worker.app import app  # noqa: E402

__all__ = ["app"]
