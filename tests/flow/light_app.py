"""The worker without the seconds that torch takes: of its families, the fake one only.

celery -A tests.flow.light_app worker -P threads
"""

import sys
from types import ModuleType

from worker import runtime
from worker.backends import Families
from worker.backends.base import Placement


class _Light(Families):
    def __getitem__(self, name):
        return None if name == "open_clip" else super().__getitem__(name)


_placement = ModuleType("worker.backends.placement")
_placement.resolve = lambda settings: Placement()
sys.modules[_placement.__name__] = _placement
runtime.Families = _Light

from worker.app import app  # noqa: E402, F401
