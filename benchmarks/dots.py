"""Ratios beside their goals: a row for each, a dot for each processor."""

import math
from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

WIDTH, ROW, LEFT, RIGHT, TOP, BOTTOM = 1000, 20, 300, 40, 96, 16
INK, FAINT, GRID = "#222222", "#888888", "#e6e6e6"
COLOURS = ("#1f4e9e", "#e08e1b", "#3a8a4d", "#7b4fa3", "#c8384a", "#17a2b8")
LEAST, MOST = 1 / 4, 16.0  # what is beyond stands at the edge
RADIUS, ASIDE = 4, 4  # of a dot, and how far it stands above or below the next processor's

Rows = Mapping[str, Mapping[str, float]]


def drawn(groups: Mapping[str, Rows]) -> Image.Image:
    """The picture of `groups`: by title, by row, by processor, a ratio over its goal."""
    processors = list(
        dict.fromkeys(name for rows in groups.values() for row in rows.values() for name in row)
    )
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(processors)}
    height = TOP + ROW * sum(len(rows) + 1 for rows in groups.values()) + BOTTOM
    picture = Image.new("RGB", (WIDTH, height), "white")
    pen = ImageDraw.Draw(picture)
    _frame(pen, height, colours)
    small, bold = ImageFont.load_default(12), ImageFont.load_default(14)
    y = TOP
    for title, rows in groups.items():
        pen.text((16, y + ROW / 2), title, INK, bold, anchor="lm")
        y += ROW
        for name, row in rows.items():
            pen.text((32, y + ROW / 2), name, INK, small, anchor="lm")
            for processor, share in row.items():
                aside = ASIDE * (processors.index(processor) - (len(processors) - 1) / 2)
                _dot(pen, share, y + ROW / 2 + aside, colours[processor])
            y += ROW
    return picture


def _frame(pen: ImageDraw.ImageDraw, height: int, colours: Mapping[str, str]) -> None:
    title, small = ImageFont.load_default(16), ImageFont.load_default(12)
    told = "Ratio over its goal: hollow where missed, at the edge where beyond"
    pen.text((16, 12), told, INK, title)
    x = 16.0
    for processor, colour in colours.items():
        _dot(pen, 1.0, 46, colour, x=x + RADIUS)
        pen.text((x + 18, 46), processor, INK, small, anchor="lm")
        x += 42 + small.getlength(processor)
    for power in range(round(math.log2(LEAST)), round(math.log2(MOST)) + 1):
        across, told = _across(2.0**power), f"{2.0**power:g}x"
        goal = power == 0
        pen.line((across, TOP - 4, across, height - BOTTOM), INK if goal else GRID, 1 + goal)
        pen.text((across, TOP - 14), "goal" if goal else told, INK if goal else FAINT, small, "mm")


def _across(share: float) -> float:
    """On a logarithmic axis."""
    inside = min(MOST, max(LEAST, share))
    return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(inside / LEAST) / math.log2(MOST / LEAST)


def _dot(
    pen: ImageDraw.ImageDraw, share: float, y: float, colour: str, *, x: float | None = None
) -> None:
    x = _across(share) if x is None else x
    box = (x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS)
    pen.ellipse(box, fill=colour if share >= 1 else "white", outline=colour, width=2)
