"""The `clipyard` command as a process: what ends it, also while it imports its parts."""

import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED, TERMINATED = 130, 143  # as a shell has it: 128, and the signal's number


def main() -> NoReturn:
    """Run the command line. Ctrl-C and SIGTERM end it so that it withdraws what it asked for."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:  # one that is ignored stays so
        signal.signal(signal.SIGTERM, _terminated)
    try:
        from .cli import main

        main()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _terminated(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(TERMINATED)


if __name__ == "__main__":
    main()
