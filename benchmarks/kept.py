"""Results that are kept: a file a run, with its machine, date, versions and commit."""

import json
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
FOLDER = HERE / "results"


def keep(line: str) -> Path:
    """Write a benchmark's line of JSON down; gives the file."""
    result = json.loads(line)
    now = datetime.now(UTC)
    result |= {"date": now.isoformat(timespec="seconds"), "commit": commit()}
    FOLDER.mkdir(exist_ok=True)
    file = FOLDER / f"{result['name']}-{now:%Y%m%d-%H%M%S}.json"
    file.write_text(json.dumps(result, indent=2) + "\n")
    return file


def newest() -> list[Mapping[str, Any]]:
    """The latest kept result of each benchmark on each processor, in that order."""
    latest: dict[tuple[str, str], Mapping[str, Any]] = {}
    for file in sorted(FOLDER.glob("*.json"), key=lambda file: file.name):
        result = json.loads(file.read_text())
        latest[result["name"], result["machine"]["cpu"]] = result
    return [latest[key] for key in sorted(latest)]


def commit() -> str:
    """Of this checkout, or "unknown" where it has no history or Git is not installed."""
    argv = ("git", "rev-parse", "--short", "HEAD")
    try:
        said = subprocess.run(argv, cwd=HERE, capture_output=True, text=True, check=False)
    except OSError:
        return "unknown"
    return said.stdout.strip() or "unknown"
