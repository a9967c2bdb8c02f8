"""The page about the layout lists what a worker can be asked."""

import re
from pathlib import Path

from api_client.wire import names

PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text()
PREFIX = "clipyard."


def test_every_task_is_documented_and_no_other():
    told = re.findall(rf"^\| `({re.escape(PREFIX)}\w+)` \|", PAGE, re.MULTILINE)
    known = [it for it in vars(names).values() if isinstance(it, str) and it.startswith(PREFIX)]
    assert sorted(told) == sorted(known)
