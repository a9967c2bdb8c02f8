"""How long forward passes take lately, and so which calls cannot be done in time."""

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from statistics import median

from .calls import Call

LATELY = 32  # forward passes whose median says how long one takes
ENOUGH = 4  # before that it says nothing: the first one finds everything cold


class Pace:
    """Told of every pass that worked; asked under the batcher's lock, like `Turns`.

    Args:
        limit: the most rows of a forward pass for this call's model and kind, as known now.
        wall: unix seconds.
    """

    def __init__(self, *, limit: Callable[[Call], int], wall: Callable[[], float]) -> None:
        self._limit, self._wall = limit, wall
        self._seconds: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=LATELY))

    def note(self, call: Call, seconds: float) -> None:
        """So long took a pass of this call's model and kind."""
        self._seconds[call.space].append(seconds)

    def is_late(self, call: Call, *, ahead: int) -> bool:
        """Whether its deadline comes before it is done behind so many rows.

        One pass more is for the one that runs now, and for what goes between. A call of which some
        is done goes on without: given up, that would have been for nobody.
        """
        seconds = self._seconds[call.space]
        if call.deadline is None or len(seconds) < ENOUGH:
            return False
        at_once = self._limit(call) * call.traits.parallel
        spare = call.left == len(call.items)
        rounds = spare - (-(ahead + call.left) // at_once)
        return self._wall() + rounds * median(seconds) >= call.deadline

    def too_late(self, rivals: Sequence[Call]) -> list[Call]:
        """Those of a group that cannot be done in time even alone, and only keep others from it.

        None is too late if all are: then a pass shows whether passes still take so long.
        """
        if len(rivals) < 2:
            return []
        late = [call for call in rivals if self.is_late(call, ahead=0)]
        return late if len(late) < len(rivals) else []
