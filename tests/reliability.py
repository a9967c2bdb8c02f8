"""The long runs that are kept, and their tables in docs/reliability.md, drawn from them.

python -m tests.reliability        draws the tables anew
"""

import argparse
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import kept
from benchmarks.report import machine

DOCS = Path(__file__).parents[1] / "docs"
FOLDER, PAGE = DOCS / "reliability", DOCS / "reliability.md"
PLACE = "<!-- drawn: {name} -->\n"
END = "<!-- end -->"


def keep(name: str, result: Mapping[str, Any]) -> None:
    """Write a run down, with its machine, date and commit, and draw the page's tables anew."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = {**result, "machine": machine(), "date": now, "commit": kept.commit()}
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(known, indent=1) + "\n")
    PAGE.write_text(drawn(PAGE.read_text()))


def drawn(page: str) -> str:
    """The page with its tables as the kept runs have them."""
    for name, table in (("chaos", _chaos), ("soak", _soak)):
        runs = [json.loads(file.read_text()) for file in sorted(FOLDER.glob(f"{name}*.json"))]
        head, place, rest = page.partition(PLACE.format(name=name))
        page = head + place + table(runs) + rest[rest.index(END) :]
    return page


def _chaos(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return ""
    rows = {
        "faults": lambda run: sum(run["faults"].values()),
        "items": lambda run: run["items"],
        "lost, doubled, stuck": lambda run: f"{run['lost']}, {run['doubled']}, {run['stuck']}",
        "other violations": lambda run: len(run["violations"]),
        "calls and job items set aside after two kills": lambda run: run["figures"]["set_aside"],
        "slowest recovery, s": lambda run: run["slowest_recovery_s"],
        "median recovery, s": lambda run: run["figures"]["recovery_median_s"],
        "all workers ready after the last fault, s": lambda run: run["figures"]["workers_back_s"],
        "calls; median, slowest s": lambda run: "{calls}; {call_median_s}, {call_slowest_s}".format(
            **run["figures"]
        ),
        "jobs; items in them": lambda run: "{jobs}; {in_jobs}".format(**run["figures"]),
        "worker processes started": lambda run: run["figures"]["workers_started"],
        "minutes": lambda run: round(run["figures"]["seconds"] / 60, 1),
        "seed": lambda run: run["seed"],
    }
    kinds = sorted({kind for run in runs for kind in run["faults"]})
    rows |= {f"of them: {k}": lambda run, k=k: run["faults"].get(k, 0) for k in kinds}
    return _table([run["figures"]["model"] for run in runs], runs, rows)


def _soak(runs: list[dict[str, Any]]) -> str:
    if not runs:
        return ""
    [run] = runs
    row = "| {} | {per_hour:+g} | {low:+g} to {high:+g} | {bound:g} |"
    lines = ["| | an hour adds | 95 % interval | at most |", "|---|---|---|---|"]
    lines += [row.format(name, **one) for name, one in run["slopes"].items()]
    found = f"{run['minutes']:g} minutes, {run['items']} items, {run['lost']} lost"
    return f"{found}; {_when(run)}\n\n" + "\n".join(lines) + "\n"


def _table(heads: list[str], runs: list[dict[str, Any]], rows: Mapping[str, Any]) -> str:
    lines = [f"| | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    lines += [
        f"| {name} | {' | '.join(str(of(run)) for run in runs)} |" for name, of in rows.items()
    ]
    return "\n".join([*lines, "", *map(_when, runs)]) + "\n"


def _when(run: Mapping[str, Any]) -> str:
    where = run["machine"]
    return f"{run['date'][:10]}, commit {run['commit']}, {where['cpu']}, {where['cores']} cores."


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(drawn(PAGE.read_text()))


if __name__ == "__main__":
    main()
