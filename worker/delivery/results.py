"""Celery's results, which nobody of ours asks for: answers have a way of their own.

Checked with celery 5.7.0, whose every worker looks for the result of each request that is
withdrawn, and notes that it was, in the event loop: six commands an id.
"""

from celery import states
from celery.backends.redis import RedisBackend

__all__ = ["Backend"]


class Backend(RedisBackend):  # type: ignore[misc]  # celery has no types
    """Redis, for tasks of strangers that keep results; of what is withdrawn nothing is noted."""

    def get_state(self, task_id: str) -> str:
        """As if it had one already."""
        return str(states.SUCCESS)
