import threading
import time

import psutil
import pytest

BOUND_S = 20.0


class Told:
    """What a supervisor told, to be waited for in any order."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._more = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._more:
            self._lines.append(line)
            self._more.notify_all()

    def until(self, words: str) -> str:
        """Wait for the first line with these words; it is not found a second time."""
        with self._more:
            assert self._more.wait_for(lambda: any(words in one for one in self._lines), BOUND_S)
            found = next(one for one in self._lines if words in one)
            self._lines.remove(found)
            return found


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def nothing_is_left_behind():
    before = psutil.Process().children(recursive=True)
    yield
    assert psutil.Process().children(recursive=True) == before


@pytest.fixture
def gone():
    """Whether all of some processes end within a bound, as a function."""
    return _gone


def _gone(processes: list[psutil.Process]) -> bool:
    give_up_at = time.monotonic() + BOUND_S
    while any(map(_lives, processes)) and time.monotonic() < give_up_at:
        time.sleep(0.01)
    return not any(map(_lives, processes))


def _lives(process: psutil.Process) -> bool:
    try:  # a zombie has ended and waits for whoever adopted it
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
