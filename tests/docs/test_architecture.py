"""The page about the layout lists every room, and what a worker can be asked."""

import re
from pathlib import Path

from api_client.wire import names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PREFIX = "clipyard."
ROOMS = ("api_client", "worker", "tasks", "beat_schedule", "tests", "benchmarks", "tools")


def test_every_task_is_documented_and_no_other():
    told = re.findall(rf"^\| `({re.escape(PREFIX)}\w+)` \|", PAGE, re.MULTILINE)
    known = [it for it in vars(names).values() if isinstance(it, str) and it.startswith(PREFIX)]
    assert sorted(told) == sorted(known)


def test_the_tree_names_every_room_and_none_that_is_gone():
    rooms = [ROOT / room for room in ("api_client", "worker", "api_client/wire")]
    rooms += [ROOT / "worker" / room for room in ("residency", "datapath", "delivery")]
    inside = [it for room in rooms for it in room.iterdir() if not it.name.startswith("_")]
    modules = {it.name for it in inside if it.suffix == ".py"}
    folders = {f"{it.name}/" for it in inside if (it / "__init__.py").exists()}
    told = set(re.findall(r"[\w-]+(?:\.py|/)(?=\s)", PAGE.split("```")[1]))
    assert modules | folders <= told
    files = [it for room in ROOMS for it in (ROOT / room).rglob("*") if it.suffix != ".pyc"]
    known = {it.name for it in files} | {f"{it.parent.name}/" for it in files if it.is_file()}
    assert told <= known
