"""Ends this process when it cannot mend itself, so that whoever runs it starts it afresh.

A thread cannot be killed, so a wedged forward pass, or a device context that is beyond repair, go
away with their process only. Whoever ends it gives its messages back first: others take them up at
once, not after the visibility timeout. What was at work is noted as for a crash, see `suspects`.

Against whatever holds the interpreter itself (native code that keeps the GIL) a thread can do
nothing: then the status hash expires, and who watches health from outside ends the process.
"""

import logging
import os
import threading
import time
from collections.abc import Callable

from celery.worker import state

from ..datapath.pulse import Pulse
from . import transport

__all__ = ["EXIT_CODE", "Watch", "Watchdog", "retire"]

log = logging.getLogger(__name__)

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: start me again
LOOK_S = 1.0
LAST_MESSAGE_S = 1.5  # kombu's blocking pop ends after a second; what it brings goes back too
LAST_WORDS_S = 15.0  # for all of it, Redis being as slow as it may be


class Watch:
    """How long one forward pass has been seen to run, look after look.

    Its age would not do: a process that was stopped for a while (SIGSTOP, a machine put to sleep)
    wakes up to a pass that is old and well.
    """

    def __init__(self) -> None:
        self._age_s = self._seen_s = 0.0

    def look(self, active_s: float) -> float:
        """Seconds that the pass of this age was watched; a younger one is another one."""
        older_s = active_s - self._age_s
        self._seen_s = self._seen_s + min(older_s, 2 * LOOK_S) if older_s > 0 else 0.0
        self._age_s = active_s
        return self._seen_s


class Watchdog:
    """Looks every second, from a thread of its own.

    Args:
        pulse: of the batcher.
        wedged_after_s: a forward pass that runs longer will not end.
        say: tells the fleet why this worker ends; may block.
        exit: ends the process without a word to its other threads.
    """

    def __init__(
        self,
        *,
        pulse: Callable[[], Pulse],
        wedged_after_s: float,
        say: Callable[[str], None],
        exit: Callable[[int], object] = os._exit,
    ) -> None:
        self._pulse, self._wedged_after_s = pulse, wedged_after_s
        self._say, self._exit = say, exit
        self._reason = ""
        self._wake = threading.Event()

    def start(self, give_back: Callable[[], int]) -> None:
        """From now on.

        Args:
            give_back: returns this process's messages to their queues; gives their number.
        """
        self._give_back = give_back
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def end(self, reason: str) -> None:
        """This process ends in a moment, for this reason; the first one counts."""
        if not self._reason:
            self._reason = reason
            transport.Channel.listens = False
            self._wake.set()

    def close(self) -> None:
        """No more looks."""
        self._wake.set()

    def _run(self) -> None:
        watch = Watch()
        while not self._wake.wait(LOOK_S):
            seen_s = watch.look(self._pulse().active_s)
            if seen_s > self._wedged_after_s:
                self.end(f"a forward pass has been running for more than {seen_s:.0f} s")
        if self._reason:
            log.critical("this worker ends, to be started again: %s", self._reason)
            last = threading.Thread(target=self._last_words, name="last-words", daemon=True)
            last.start()
            last.join(LAST_WORDS_S)
            self._exit(EXIT_CODE)

    def _last_words(self) -> None:
        try:
            self._say(f"{self._reason}; it is being started again")
        finally:
            time.sleep(LAST_MESSAGE_S)
            log.warning("%d messages go back to their queues", self._give_back())


def retire(reason: str) -> None:
    """End this process once what runs has been finished, to be started again."""
    log.warning("this worker ends, to be started again: %s", reason)
    state.should_stop = EXIT_CODE  # Celery's warm shutdown, with a code of ours
