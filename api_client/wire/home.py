"""Where a running stack leaves its address for clients on the same machine."""

import json
import os
from pathlib import Path

STACK_FILE = "stack.json"


def running_stack_url(home: Path) -> str | None:
    """The Redis URL of the stack that runs in `home`, or None if none does."""
    file = home / STACK_FILE
    try:
        if file.stat().st_uid != os.getuid():
            return None
        stack = json.loads(file.read_text())
        os.kill(int(stack["pid"]), 0)  # signal 0 only asks whether the process is there
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(stack["url"])
