"""docs/performance.md and its pictures, drawn from the kept results; no figure is typed by hand."""

import ast
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from . import dots, kept, plot

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "performance.md"

INTRO = """# Performance

Every figure below is a ratio from one run on one machine, printed by the command in its heading
and kept under `benchmarks/results/`; of each processor the latest run is shown, with the code of
its day: columns without a name of instructions are of November 20 and 21, and were not measured
again since. This page is drawn from those files by `python -m benchmarks report`. More is always
better; 1 is as good as what stands beside it. Goals that depend on what a processor can compute
differ from column to column.

![The ratios beside their goals](images/performance.png)
"""

Result = Mapping[str, Any]


def write() -> list[Path]:
    """Draw the page and its pictures from the newest results; gives the files."""
    results = kept.newest()
    picture = DOCS / "images" / "performance.png"
    PAGE.write_text(drawn(results))
    dots.drawn({name: _rows(runs) for name, runs in _by_name(results).items()}).save(picture)
    curves = {DOCS / "images" / f"{r['name']}.png": r for r in results if "curves" in r}
    for file, result in curves.items():
        plot.drawn([_panels(name, result) for name in result["curves"]]).save(file)
    return [PAGE, picture, *curves]


def drawn(results: Sequence[Result]) -> str:
    """The page's text."""
    sections = (_section(name, runs) for name, runs in _by_name(results).items())
    return "\n".join([INTRO, *sections])


def _by_name(results: Sequence[Result]) -> dict[str, list[Result]]:
    return {name: list(runs) for name, runs in groupby(results, key=itemgetter("name"))}


def _section(name: str, runs: Sequence[Result]) -> str:
    parts = [
        f"## `python -m benchmarks {name}`\n\n{_about(name)}\n",
        _table(runs, "ratio of goal", "ratios", _reached),
    ]
    if drawn := [_processor(run) for run in runs if "curves" in run]:  # the last one's is kept
        parts += [f"\n{drawn[-1]}:\n\n![Goodput and latency](images/{name}.png)"]
    parts += [
        "\n<details><summary>What they were made of</summary>\n",
        _table(runs, "figure", "figures", _figure),
        *(f"\n{_processor(run)}: {_when(run)}" for run in runs),
        "\n</details>",
    ]
    return "\n".join(parts) + "\n"


def _about(name: str) -> str | None:
    """What is compared with what, as the benchmark says it; read, as importing it brings torch."""
    file = Path(__file__).with_name(f"{name.replace('-', '_')}.py")
    return ast.get_docstring(ast.parse(file.read_text()))


def _table(
    runs: Sequence[Result], title: str, part: str, cell: Callable[[Result, str], str]
) -> str:
    """A row for each name that any run has, a column for each run."""
    names = dict.fromkeys(name for run in runs for name in run[part])
    lines = [[title, *map(_processor, runs)], ["---"] * (len(runs) + 1)]
    for name in names:
        lines.append([name, *(cell(run, name) if name in run[part] else "" for run in runs)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _reached(run: Result, name: str) -> str:
    ratio, goal = run["ratios"][name], run["goals"].get(name)
    if goal is None:
        return f"{ratio:g}"
    told = f"{ratio:g} of {goal:.3g}"
    return told if ratio >= goal else f"**{told}, missed**"


def _figure(run: Result, name: str) -> str:
    return f"{run['figures'][name]:g}"


def _processor(run: Result) -> str:
    return str(run["machine"]["cpu"]).replace("(R)", "")


def _when(run: Result) -> str:
    machine = run["machine"]
    return (
        f"{run['date'][:10]}, commit {run['commit']}, {machine['cores']} cores, load "
        f"{machine['load']} at the end, torch {run['versions']['torch']}; {run['seconds']:g} s."
        f"{' ' + run['note'] + '.' if run['note'] else ''}"
    )


def _rows(runs: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Of each ratio with a goal, how often that was reached on each processor."""
    names = dict.fromkeys(name for run in runs for name in run["goals"])
    return {
        name: {
            _processor(run): run["ratios"][name] / run["goals"][name]
            for run in runs
            if name in run["goals"]
        }
        for name in names
    }


def _panels(load: str, result: Result) -> list[plot.Panel]:
    rows, figures = result["curves"][load], result["figures"]
    return [
        plot.Panel(
            f"{load}: answers in time (64 clients offer three times the line)",
            rows,
            x="clients",
            ys=["goodput items/s"],
            level=figures["saturation items/s"],
            level_name="one caller who always has more",
        ),
        plot.Panel(
            f"{load}: latency of the answers",
            rows,
            x="clients",
            ys=["p50 ms", "p99 ms"],
            level=1000 * figures["timeout s"],
            level_name="deadline",
        ),
    ]
