"""What the command line prints: tables for people, JSON for scripts."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from .doctor import Report
from .inputs import printable
from .results import Item
from .wire.logs import ESCAPES

SHOWN_NUMBERS = 4  # of a vector in a table


class _Console(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(text.translate(ESCAPES), **options)


def console(*, stderr: bool = False) -> Console:
    """Where what people wrote, as texts, names and errors, is printed as they wrote it.

    But for control characters: the events and jobs of others are shown, on this terminal.
    """
    return _Console(stderr=stderr, markup=False, emoji=False)


def line(text: str, *, stderr: bool = False) -> None:
    """Print it as it is, for pipes too, but for control characters."""
    print(text.translate(ESCAPES), file=sys.stderr if stderr else sys.stdout)


def coloured(text: str, style: str) -> Text:
    """As `console` prints a string, in a colour."""
    return Text(text.translate(ESCAPES), style=style)


def grid(*headers: str, unbroken: str = "", **options: Any) -> Table:
    """An empty table, which folds what does not fit: an id that is cut could not be used.

    Args:
        unbroken: the column that is never folded.
    """
    columns = (Column(one, overflow="fold", no_wrap=one == unbroken) for one in headers)
    return Table(*columns, **options)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, as long as that is a terminal; yields what advances it."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    err = Console(stderr=True)
    with Progress(*columns, console=err, disable=not err.is_terminal) as bar:
        task = bar.add_task(title, total=total, rate="")

        def advance(count: int) -> None:
            bar.update(task, advance=count)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.0f}/s" if speed else "")

        yield advance


def table(
    columns: Sequence[str], rows: Sequence[Mapping[str, Any]], *, as_json: bool, unbroken: str = ""
) -> None:
    """The rows' columns as a table, or the whole rows as a JSON list.

    Args:
        columns: a field's name each, or several that stand one below the other, as in `id/state`:
            80 characters have room for what is long then.
        unbroken: as of `grid`.
    """
    if as_json:
        print(json.dumps(list(rows)))
        return
    headers = {column: re.sub("[_/]", "\n", column) for column in columns}
    named = any(map(str.strip, columns))
    drawn = grid(*headers.values(), unbroken=headers.get(unbroken, ""), show_header=named)
    for row in rows:
        shared = (map(row.get, column.split("/")) for column in columns)
        drawn.add_row(*("\n".join(map(_cell, values)) for values in shared))
    console().print(drawn)


def items(names: Sequence[str], items: Sequence[Item], *, out: Path | None, as_json: bool) -> None:
    """One line per picture or text; a table shows the first numbers, JSON all of them.

    What is in the file `out` is counted in the place of the table, and what failed is named.
    """
    if as_json:
        print(json.dumps([_plain(name, item) for name, item in zip(names, items, strict=True)]))
        return
    if out:
        failures(names, items)
        count = sum(item.error is None for item in items)
        print(f"{count} vector{'' if count == 1 else 's'} in {printable(out)}")
    else:
        rows = [
            {
                "item": name,
                "vector": "" if item.vector is None else _first_numbers(item.vector),
                "error": f"{item.error.code}: {item.error}" if item.error else "",
            }
            for name, item in zip(names, items, strict=True)
        ]
        table(["item", "vector", "error"], rows, as_json=False)
    if cut := sum(item.truncated for item in items):
        line(f"longer than the model reads, and cut: {cut} of {len(items)}", stderr=True)


def failures(names: Sequence[str], items: Sequence[Item]) -> None:
    """A line on standard error for every item that failed."""
    for name, item in zip(names, items, strict=True):
        if item.error:
            line(f"{name}: {item.error.code}: {item.error}", stderr=True)


def doctor(report: Report, *, as_json: bool) -> None:
    """Every setting and finding."""
    findings = [asdict(finding) for finding in report.findings]
    if as_json:
        print(json.dumps({"settings": report.settings, "findings": findings}))
        return
    columns = ["setting", "value", "origin"]
    table(columns, report.settings, as_json=False, unbroken="setting")
    table(["check", "health", "found", "mend"], findings, as_json=False, unbroken="check")


def _plain(name: str, item: Item) -> dict[str, Any]:
    return {
        "item": name,
        "model": item.model,
        "fingerprint": item.fingerprint,
        "truncated": item.truncated,
        "vector": None if item.vector is None else item.vector.tolist(),
        "error": {"code": item.error.code, "message": str(item.error)} if item.error else None,
    }


def _first_numbers(vector: Any) -> str:
    shown = ", ".join(f"{number:+.3f}" for number in vector[:SHOWN_NUMBERS])
    return f"[{shown}, ...] ({len(vector)})"


def _cell(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.4g}"
        case _:
            return str(value)
