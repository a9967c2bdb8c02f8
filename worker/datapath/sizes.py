"""How many rows of a forward pass fit, as learned here or by an earlier process."""

import logging
import time
from collections.abc import Callable
from threading import Lock

log = logging.getLogger(__name__)

# So long a size has to hold before a larger one is tried: at first, and after many tries in vain.
FIRST_AFTER_S, GROWS_AFTER_S = 10.0, 600.0


class Sizes:
    """Remembers the safe batch size of each space, see `Call.space`.

    What did not fit may have been a neighbour's fault, so a size that has held for a while is
    doubled. If that is too much, halving leads back to it, one failed pass is all it cost, and the
    next try is twice as far away. So who found no room for a single row, for a moment, is back at
    full batches soon.

    The memory that outlives the process may be slow or away: it is asked and told by `recall` and
    `save` only, which the threads of the callers call, never those that run models.

    Args:
        get: the size that an earlier process learned, or None.
        put: keeps one.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        *,
        get: Callable[[str], int | None] = lambda _: None,
        put: Callable[[str, int], None] = lambda _space, _rows: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._get, self._put, self._clock = get, put, clock
        self._known: dict[str, int] = {}
        self._since: dict[str, float] = {}
        self._holds_s: dict[str, float] = {}
        self._tried: set[str] = set()  # those whose size was doubled, and has not fitted yet
        self._recalled: set[str] = set()
        self._unsaved: dict[str, int] = {}
        self._lock = Lock()

    def at_most(self, space: str, rows: int) -> int:
        return min(rows, self._known.get(space, rows))

    def learn(self, space: str, rows: int) -> None:
        """More than this has just not fitted."""
        with self._lock:
            if space in self._tried:
                self._tried.remove(space)
                self._holds_s[space] = min(GROWS_AFTER_S, 2 * self._hold_s(space))
            self._unsaved[space] = rows
            self._know(space, rows)

    def fitted(self, space: str, rows: int) -> bool:
        """So many have just fitted; gives whether more may be tried from now on."""
        with self._lock:
            known = self._known.get(space)
            if known is None:
                return False
            if space in self._tried and 2 * rows > known:
                self._tried.remove(space)
                self._holds_s.pop(space, None)
            if rows < known or self._clock() - self._since[space] < self._hold_s(space):
                return False
            self._tried.add(space)
            self._unsaved[space] = 2 * known
            self._know(space, 2 * known)
            return True

    def recall(self, space: str) -> None:
        """Ask the memory, once per space."""
        with self._lock:
            if space in self._recalled:
                return
            self._recalled.add(space)
        try:
            rows = self._get(space)
        except Exception:
            log.warning("safe batch size of %s not read", space, exc_info=True)
            return
        if rows is not None:
            with self._lock:
                self._know(space, max(1, self.at_most(space, rows)))

    def save(self) -> None:
        """Tell the memory what was learned since."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
        for space, rows in unsaved.items():
            try:
                self._put(space, rows)
            except Exception:
                log.warning("safe batch size of %s not kept", space, exc_info=True)

    def _hold_s(self, space: str) -> float:
        return self._holds_s.get(space, FIRST_AFTER_S)

    def _know(self, space: str, rows: int) -> None:
        self._known[space], self._since[space] = rows, self._clock()
