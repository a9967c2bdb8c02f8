"""Keeps children running and ends them in order.

Our own page, because circus only stops the child that flaps and supervisord only marks it FATAL,
while both leave every child behind when they are killed themselves.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from ..wire.settings import USAGE
from .child import Child, Running
from .errors import CannotStart, CrashLoop, NotReady, StackError

_TICK_S = 0.05
_SLICE_S = 0.25


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a child may die before it was ready, until that is a crash loop."""

    deaths: int = 3
    within_s: float = 60.0
    first_delay_s: float = 0.5
    longest_delay_s: float = 10.0

    def recent(self, deaths: Sequence[float], *, now: float) -> list[float]:
        """The deaths that still count."""
        return [death for death in deaths if now - death <= self.within_s]

    def delay_s(self, deaths: int) -> float | None:
        """How long to wait before the next start after so many recent deaths; None: give up."""
        if deaths >= self.deaths:
            return None
        return float(min(self.first_delay_s * 2 ** (deaths - 1), self.longest_delay_s))


@dataclass
class _Post:
    """A child's place: who stands there now, and who died there."""

    child: Child
    log: Path
    running: Running | None = None
    ready: bool = False
    due_at: float = 0.0
    deaths: list[float] = field(default_factory=list)
    stillbirths: list[float] = field(default_factory=list)  # of those, who never was ready


class Supervisor:
    """Runs children from `__enter__` to `__exit__`, in a thread of its own.

    A child that dies is started again after a growing delay. One that dies too often before it is
    ready, or once with the code for wrong usage, ends everything; one that was ready has work to
    come back to. At the end all children get their stop signal at once and their grace each; the
    foundation, on which they stand, ends after the last of them. An exception that arrives while
    the main thread waits for that (a second Ctrl-C) ends every grace.

    Args:
        logs: the directory for `<name>.log` of every child.
        foundation: a child that runs already, such as the server the others connect to.
        tell: gets one line per change of state, in the supervisor's thread.

    Raises:
        StackError: on exit, when it had to give up, whatever else went wrong because of that.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        logs: Path,
        tell: Callable[[str], None],
        foundation: Running | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._dependents = [_Post(child, logs / f"{child.name}.log") for child in children]
        self._foundation = [_Post(it.child, it.log, it) for it in (foundation,) if it]
        self._tell = tell
        self._patience = patience or Patience()
        self._failure: StackError | None = None
        self._stop, self._hurry, self._ended = (threading.Event() for _ in range(3))
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            self._stop.set()
            self._wait_until_ended()
        finally:
            self._hurry.set()
            self._thread.join()
        came_of_it = error is None or isinstance(error, Exception)
        if self._failure and came_of_it and error is not self._failure:
            raise self._failure from error

    def wait(self) -> None:
        """Until everything has ended because a child could not be kept running.

        Raises:
            StackError: always.
        """
        self._wait_until_ended()
        raise self._failure or StackError("the stack has ended")

    def wait_ready(self, *, within_s: float) -> None:
        """Until every child that can tell has been ready.

        Raises:
            NotReady: one is not, with the end of its log.
            StackError: everything has ended meanwhile.
        """
        give_up_at = time.monotonic() + within_s
        while waiting := [post for post in self._dependents if post.child.ready and not post.ready]:
            if self._ended.wait(_TICK_S):
                self.wait()
            if time.monotonic() > give_up_at:
                raise _not_ready(waiting[0], within_s)

    def _wait_until_ended(self) -> None:
        # In slices: a signal that comes just before a wait begins, or that the kernel gives to
        # another thread, does not interrupt it, and its handler would never run.
        while not self._ended.wait(_SLICE_S):
            pass

    def _run(self) -> None:
        posts = [*self._foundation, *self._dependents]
        try:
            while not self._stop.is_set():
                for post in posts:
                    self._tend(post)
                self._stop.wait(_TICK_S)
        except StackError as error:
            self._failure = error
        except Exception as error:  # a full disk, no process left: ours to report, not to survive
            self._failure = StackError(f"the stack cannot be kept running: {error}")
            self._failure.__cause__ = error
        finally:
            try:
                self._end(self._dependents)
                self._end(self._foundation)
            finally:
                self._ended.set()

    def _tend(self, post: _Post) -> None:
        now = time.monotonic()
        if post.running is None:
            if now >= post.due_at:
                post.running = Running(post.child, log=post.log)
        elif post.running.exit_code() is not None:
            self._bury(post, post.running, now)
        elif post.child.ready and not post.ready and post.child.ready(post.running.said()):
            post.ready = True
            self._tell(f"{post.child.name} is ready")

    def _bury(self, post: _Post, died: Running, now: float) -> None:
        died.end()  # what it started may still run
        post.deaths = self._patience.recent([*post.deaths, now], now=now)
        stillborn = [] if post.ready else [now]
        post.stillbirths = self._patience.recent([*post.stillbirths, *stillborn], now=now)
        post.running, post.ready = None, False
        how = _how_it_ended(died.exit_code())
        in_vain = bool(stillborn) and died.exit_code() == USAGE
        if in_vain or self._patience.delay_s(len(post.stillbirths)) is None:
            within = f"{len(post.stillbirths)} times within {self._patience.within_s:g} s"
            sentence = (
                f"{post.child.name} {how}{'' if in_vain else f', {within}'}: everything is "
                f"stopped. {post.log} ends with:\n{died.tail()}"
            )
            raise CannotStart(sentence) if in_vain else CrashLoop(sentence)
        delay_s = self._patience.delay_s(len(post.deaths)) or self._patience.longest_delay_s
        post.due_at = now + delay_s
        self._tell(f"{post.child.name} {how}; it starts again in {delay_s:g} s")

    def _end(self, posts: Sequence[_Post]) -> None:
        running = [post.running for post in posts if post.running]
        for one in running:
            one.ask_to_end()
        for one in running:
            one.end(hurry=self._hurry)


def _not_ready(post: _Post, within_s: float) -> NotReady:
    tail = post.running.tail() if post.running else ""
    return NotReady(
        f"{post.child.name} is not ready after {within_s:g} s; {post.log} ends with:\n{tail}"
    )


def _how_it_ended(code: int | None) -> str:
    return f"was ended by signal {-code}" if code and code < 0 else f"exited with code {code}"
