"""docs/performance.md and its picture, drawn from the kept results; no figure is typed by hand."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from . import kept
from .plot import Panel, drawn

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, ROW, LEFT, TOP = 1000, 26, 430, 46
INK, FAINT, REACHED, MISSED, GOAL = "#222222", "#888888", "#3a8a4d", "#c0504d", "#1f4e9e"
MOST = 4.0  # times the goal that a bar can show

INTRO = """# Performance

Every figure below is a ratio from one run on one machine, printed by the command in its heading
and kept under `benchmarks/results/`; of each processor the latest run is shown. This page is drawn
from those files by `python -m benchmarks report`. More is always better; 1 is as good as what
stands beside it.

![The ratios beside their goals](images/performance.png)
"""


def write() -> list[Path]:
    """Draw the page and its pictures from the newest results; gives the files."""
    results = kept.newest()
    page, picture = DOCS / "performance.md", DOCS / "images" / "performance.png"
    by_name = groupby(results, key=itemgetter("name"))
    page.write_text("\n".join([INTRO, *(_section(name, runs) for name, runs in by_name)]))
    _draw(results).save(picture)
    curves = {DOCS / "images" / f"{r['name']}.png": r for r in results if "curves" in r}
    for file, result in curves.items():
        drawn([_panels(name, result) for name in result["curves"]]).save(file)
    return [page, picture, *curves]


def _section(name: str, runs: Iterable[Mapping[str, Any]]) -> str:
    return "\n".join([f"## `python -m benchmarks {name}`\n", *map(_run, runs)])


def _run(result: Mapping[str, Any]) -> str:
    machine = result["machine"]
    goals = result["goals"]
    rows = [
        f"| {name} | {ratio:g} | {goals[name]:g} | {'yes' if ratio >= goals[name] else 'no'} |"
        if name in goals
        else f"| {name} | {ratio:g} | | |"
        for name, ratio in result["ratios"].items()
    ]
    figures = [f"| {name} | {value:g} |" for name, value in result["figures"].items()]
    when = (
        f"{result['date'][:10]}, commit {result['commit']}, {machine['cpu']}, "
        f"{machine['cores']} cores, load {machine['load']} at the end, "
        f"torch {result['versions']['torch']}; {result['seconds']:g} s."
    )
    parts = [
        f"{when}{' ' + result['note'] + '.' if result['note'] else ''}\n",
        "| ratio | | goal | reached |\n|---|---|---|---|",
        *rows,
    ]
    if "curves" in result:
        parts += [f"\n![Goodput and latency](images/{result['name']}.png)"]
    if figures:
        parts += ["\n<details><summary>What they were made of</summary>\n"]
        parts += ["| figure | |\n|---|---|", *figures, "\n</details>"]
    return "\n".join(parts) + "\n"


def _maker(result: Mapping[str, Any]) -> str:
    """Of the processor, and what it computes with where that is known."""
    name, _, unit = result["machine"]["cpu"].partition(" with ")
    return f"{name.partition(' ')[0].partition('(')[0]} {unit}".rstrip()


def _panels(load: str, result: Mapping[str, Any]) -> list[Panel]:
    rows, figures = result["curves"][load], result["figures"]
    return [
        Panel(
            f"{load}: answers in time (64 clients offer three times the line)",
            rows,
            x="clients",
            ys=["goodput items/s"],
            level=figures["saturation items/s"],
            level_name="one caller who always has more",
        ),
        Panel(
            f"{load}: latency of the answers",
            rows,
            x="clients",
            ys=["p50 ms", "p99 ms"],
            level=1000 * figures["timeout s"],
            level_name="deadline",
        ),
    ]


def _draw(results: Sequence[Mapping[str, Any]]) -> Image.Image:
    """Bars of ratio over goal, one for each ratio that has a goal."""
    bars = [
        (f"{result['name']}, {_maker(result)}: {name}", result["ratios"][name], goal)
        for result in results
        for name, goal in result["goals"].items()
    ]
    picture = Image.new("RGB", (WIDTH, TOP + ROW * len(bars) + 20), "white")
    pen = ImageDraw.Draw(picture)
    title, small = ImageFont.load_default(16), ImageFont.load_default(12)
    pen.text((16, 12), "ratio / goal (line: the goal; bars end at four times it)", INK, title)
    unit = (WIDTH - LEFT - 90) / MOST
    for number, (name, ratio, goal) in enumerate(bars):
        top = TOP + number * ROW
        share = min(MOST, ratio / goal) if math.isfinite(ratio) else MOST
        pen.text((16, top + 4), name[:66], INK, small)
        colour = REACHED if ratio >= goal else MISSED
        pen.rectangle((LEFT, top + 3, LEFT + max(1.0, share * unit), top + ROW - 5), fill=colour)
        pen.text((LEFT + share * unit + 8, top + 4), f"{ratio:.3g} of {goal:g}", FAINT, small)
    edge = LEFT + unit
    pen.line((edge, TOP - 4, edge, TOP + ROW * len(bars)), fill=GOAL, width=2)
    return picture
