"""How many rows of a forward pass fit, as learned here or by an earlier process."""

import logging
from collections.abc import Callable
from threading import Lock

log = logging.getLogger(__name__)


class Sizes:
    """Remembers the safe batch size of each space, see `Call.space`.

    The memory that outlives the process may be slow or away: it is asked and told by `recall` and
    `save` only, which the threads of the callers call, never those that run models.

    Args:
        get: the size that an earlier process learned, or None.
        put: keeps one.
    """

    def __init__(
        self,
        *,
        get: Callable[[str], int | None] = lambda _: None,
        put: Callable[[str, int], None] = lambda _space, _rows: None,
    ) -> None:
        self._get, self._put = get, put
        self._known: dict[str, int] = {}
        self._recalled: set[str] = set()
        self._unsaved: dict[str, int] = {}
        self._lock = Lock()

    def at_most(self, space: str, rows: int) -> int:
        return min(rows, self._known.get(space, rows))

    def learn(self, space: str, rows: int) -> None:
        """More than this has just not fitted."""
        with self._lock:
            self._known[space] = self._unsaved[space] = rows

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
                self._known[space] = max(1, self.at_most(space, rows))

    def save(self) -> None:
        """Tell the memory what was learned since."""
        with self._lock:
            unsaved, self._unsaved = self._unsaved, {}
        for space, rows in unsaved.items():
            try:
                self._put(space, rows)
            except Exception:
                log.warning("safe batch size of %s not kept", space, exc_info=True)
