"""Whether this worker really works: ready only while its last forward pass did.

After a failure a tiny request tries the device again; a forward pass that never ends is seen by
its age. Work goes on being taken meanwhile: a request that succeeds is the best of all probes.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from .datapath.pulse import Pulse

__all__ = ["Health", "Verdict", "verdict"]

log = logging.getLogger(__name__)

LOOK_S = 2.0
WEDGED_S = 120.0  # no forward pass of a batch that fits takes as long, on any device we know


@dataclass(frozen=True)
class Verdict:
    """How the worker is; `trouble` is a sentence for people, empty when all is well."""

    state: Literal["ready", "broken"]
    trouble: str = ""


def verdict(pulse: Pulse, *, wedged_after_s: float = WEDGED_S) -> Verdict:
    """What the pulse says. One bad model among good ones does not break a worker."""
    bound_s = min(WEDGED_S, wedged_after_s)
    if pulse.active_s > bound_s:  # not by how much: each look would be news
        lasting = f"has been running for more than {bound_s:.0f} s"
        return Verdict("broken", f"a forward pass of {pulse.active} {lasting}")
    failing = ", ".join(pulse.failing)
    trouble = f"the last forward pass of {failing} failed; see this worker's log" if failing else ""
    return Verdict("broken" if pulse.last_forward_ok is False else "ready", trouble)


class Health:
    """Looks every few seconds, from a thread of its own: a probe may hang.

    Args:
        pulse: of the batcher.
        probe: runs a tiny forward pass; may raise what a request may raise.
        trouble: what else is wrong and stops nobody; empty if nothing is.
        say: told of every change.
        wedged_after_s: see the setting; a worker that will end for it is broken by then.
    """

    def __init__(
        self,
        *,
        pulse: Callable[[], Pulse],
        probe: Callable[[], None],
        say: Callable[[Verdict], None],
        trouble: Callable[[], str] = lambda: "",
        wedged_after_s: float = WEDGED_S,
    ) -> None:
        self._wedged_after_s = wedged_after_s
        self._pulse, self._probe, self._say, self._trouble = pulse, probe, say, trouble
        self._last: Verdict | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="health", daemon=True)

    def start(self) -> None:
        """From now on; until then the worker is starting."""
        self._thread.start()

    def close(self) -> None:
        """No more looks; does not wait for a probe that hangs."""
        self._stop.set()

    def look(self) -> Verdict:
        """The verdict now, after a probe if the last forward pass failed."""
        pulse = self._pulse()
        if pulse.last_forward_ok is False and not pulse.active_s:
            try:
                self._probe()
            except Exception as error:  # whatever a back end raises; the pulse has seen it too
                log.debug("the probe failed: %s", error)
            pulse = self._pulse()
        found = verdict(pulse, wedged_after_s=self._wedged_after_s)
        sentences = filter(None, (found.trouble, self._trouble()))
        found = replace(found, trouble="; ".join(sentences))
        if found != self._last and not self._stop.is_set():
            if found.trouble:
                log.warning("this worker is %s, and in trouble: %s", found.state, found.trouble)
            self._say(found)
            self._last = found
        return found

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            self.look()
