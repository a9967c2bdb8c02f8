"""Threads for what buttons ask for, which end with the process.

A button waits as long as a load. `ThreadPoolExecutor` would have the process wait as well: Ctrl-C
would do nothing for a minute.
"""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

__all__ = ["Buttons"]

_T = TypeVar("_T")


class Buttons(Executor):
    """
    Args:
        most: calls at once; others take their turns.
    """

    def __init__(self, most: int) -> None:
        self._most, self._threads = most, 0
        self._pressed: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()

    def submit(self, call: Callable[..., _T], /, *args: Any, **options: Any) -> Future[_T]:
        """From one thread, the event loop's."""
        answer: Future[_T] = Future()
        self._pressed.put((answer, partial(call, *args, **options)))
        if self._threads < self._most:
            self._threads += 1
            Thread(target=self._serve, name=f"button-{self._threads}", daemon=True).start()
        return answer

    def _serve(self) -> None:
        while True:
            answer, call = self._pressed.get()
            if not answer.set_running_or_notify_cancel():
                continue
            try:
                said = call()
            except BaseException as error:
                answer.set_exception(error)
            else:
                answer.set_result(said)
