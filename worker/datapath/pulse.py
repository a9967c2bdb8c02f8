"""How a batcher is doing: what waits, what runs, and what came of the forward passes before."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from api_client.wire.errors import ClipyardError
from api_client.wire.messages import Priority

from .calls import Call
from .outcomes import Outcome

__all__ = ["Pass", "Passes", "Pulse"]


@dataclass(frozen=True)
class Pulse:
    """How the runners are doing.

    Attributes:
        queued: items that wait to be prepared or to run.
        active_s: age of the oldest forward pass that is running; 0 when none is.
        last_forward_ok: whether the last forward pass worked; None before the first, and once all
            models that failed have gone.
        active: id of the model in that pass.
        failing: ids of the models whose own last pass gave no vector.
        calls: unanswered ones by model id. ages_s: of the oldest of them for which somebody waits;
            a job's take their turns for as long as that takes.
    """

    queued: int
    active_s: float
    last_forward_ok: bool | None
    calls: Mapping[str, int]
    ages_s: Mapping[str, float]
    active: str = ""
    failing: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Pass:
    """A forward pass that is running, since `start` on the batcher's clock."""

    start: float
    model_id: str


class Passes:
    """The forward passes of one batcher, which calls this under its lock.

    Attributes:
        last_ok: as `Pulse.last_forward_ok`.
    """

    def __init__(self) -> None:
        self.last_ok: bool | None = None
        self._active: set[Pass] = set()
        self._failing: set[str] = set()

    def begun(self, this: Pass) -> None:
        self._active.add(this)

    def ended(self, this: Pass, outcomes: Sequence[Outcome], *, ok: bool) -> None:
        """
        Args:
            outcomes: of its rows; none where they are to run again.
            ok: whether the model answered.
        """
        self._active.discard(this)
        self.last_ok = ok
        if all(isinstance(outcome, ClipyardError) for outcome in outcomes):
            self._failing.add(this.model_id)
        else:
            self._failing.discard(this.model_id)

    def forget(self, model_id: str) -> None:
        """It has gone: whether it would work now nobody knows, nor, if it was the last that failed,
        whether the device works."""
        self._failing.discard(model_id)
        if not self._failing:
            self.last_ok = self.last_ok or None

    def pulse(self, calls: Collection[Call], *, queued: int, now: float) -> Pulse:
        ages_s: dict[str, float] = {}
        for call in calls:
            if call.priority is Priority.INTERACTIVE:
                ages_s[call.model_id] = max(ages_s.get(call.model_id, 0.0), now - call.since)
        oldest = min(self._active, key=lambda one: one.start, default=None)
        return Pulse(
            queued=queued,
            active_s=now - oldest.start if oldest else 0.0,
            last_forward_ok=self.last_ok,
            calls=Counter(call.model_id for call in calls),
            ages_s=ages_s,
            active=oldest.model_id if oldest else "",
            failing=tuple(sorted(self._failing)),
        )
