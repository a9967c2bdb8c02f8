"""A process of ours that cannot outlive us.

Beside every child stands a warden, a shell that waits for the end of a pipe only we hold open.
However we end, also by SIGKILL, the kernel closes the pipe and the warden kills its process group:
the child, whatever the child started, and itself. PR_SET_PDEATHSIG would be Linux only, would miss
grandchildren, and fires when the thread that started the child ends, not the process.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from .home import private_directory

_WARDEN = ("/bin/sh", "-c", "read -r _; kill -KILL 0")
_POLL_S = 0.02
_TAIL_LINES = 20


@dataclass(frozen=True, kw_only=True)
class Child:
    """What to run and how to end it.

    Attributes:
        name: names its log file and its lines in reports.
        env: on top of our own environment.
        grace_s: how long it may take to end after SIGTERM, before SIGKILL.
        ready: tells from what it has written since it started whether it is ready.
        pass_fds: descriptors it shares with us, such as a lock that must live as long as it does.
    """

    name: str
    argv: tuple[str, ...]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    grace_s: float = 5.0
    ready: Callable[[str], bool] | None = None
    pass_fds: tuple[int, ...] = ()


class Running:
    """One run of a child, from its start to its end.

    The child leads no terminal: Ctrl-C reaches us alone, and we decide who ends when.
    """

    def __init__(self, child: Child, *, log: Path) -> None:
        self.child = child
        self.log = log
        self._grace_ends_at = inf  # until it is asked to end
        read_end, self._lifeline = os.pipe()
        try:
            self._warden = subprocess.Popen(
                _WARDEN,
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                process_group=0,
            )
        except BaseException:
            os.close(self._lifeline)
            raise
        finally:
            os.close(read_end)
        try:
            private_directory(log.parent)  # somebody may have removed it since the last run
            with log.open("ab") as output:
                self._starts_at = output.tell()
                self._process = subprocess.Popen(
                    child.argv,
                    cwd=child.cwd,
                    env={**os.environ, **child.env},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=child.pass_fds,
                    process_group=self._warden.pid,
                )
        except BaseException:
            self._dismiss_warden()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs; negative when a signal ended it."""
        return self._process.poll()

    def said(self) -> str:
        """What it has written since it started; nothing if its log was removed."""
        try:
            with self.log.open("rb") as log:
                log.seek(self._starts_at)
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def tail(self) -> str:
        """The last lines of that."""
        return "\n".join(self.said().splitlines()[-_TAIL_LINES:])

    def ask_to_end(self) -> None:
        """Send the stop signal, once: a second one means "at once" to many programs."""
        if self._grace_ends_at == inf:
            self._grace_ends_at = time.monotonic() + self.child.grace_s
            self._process.terminate()

    def end(self, *, hurry: threading.Event | None = None) -> None:
        """Ask, wait for the end within the grace, then kill what is left of its group.

        A second call does nothing.

        Args:
            hurry: once set, grace is over.
        """
        hurry = hurry or threading.Event()
        self.ask_to_end()
        try:
            while self.exit_code() is None and time.monotonic() < self._grace_ends_at:
                if hurry.wait(_POLL_S):
                    break
        finally:  # also when Ctrl-C cuts the waiting short
            self._dismiss_warden()
            self._process.wait()

    def _dismiss_warden(self) -> None:
        if self._warden.returncode is not None:
            return
        os.killpg(self._warden.pid, signal.SIGKILL)
        self._warden.wait()
        os.close(self._lifeline)
