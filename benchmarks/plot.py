"""Lines over a common axis, as the pictures of the load test have them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

WIDTH, HEIGHT = 480, 270  # of one panel; below, its margins
LEFT, RIGHT, TOP, BOTTOM = 60, 20, 44, 40
INK, FAINT, COLOURS = "#222222", "#aaaaaa", ("#1f4e9e", "#c0504d")
TICKS = 4

Row = Mapping[str, float | None]


@dataclass(frozen=True)
class Panel:
    """Some columns of the rows over another one.

    Attributes:
        level: where a horizontal line is drawn, and what it is called.
    """

    title: str
    rows: Sequence[Row]
    x: str
    ys: Sequence[str]
    level: float
    level_name: str


def drawn(panels: Sequence[Sequence[Panel]]) -> Image.Image:
    """Rows of panels."""
    picture = Image.new("RGB", (WIDTH * max(map(len, panels)), HEIGHT * len(panels)), "white")
    pen = ImageDraw.Draw(picture)
    for row, beside in enumerate(panels):
        for column, panel in enumerate(beside):
            _draw(pen, panel, left=column * WIDTH, top=row * HEIGHT)
    return picture


def points(panel: Panel, column: str) -> list[tuple[float, float]]:
    """Shares of the panel's width and height; a row without a value is left out."""
    across, up = _most(panel, [panel.x]), max(panel.level, _most(panel, panel.ys))
    pairs = [(row[panel.x], row[column]) for row in panel.rows]
    return [(x / across, y / up) for x, y in pairs if x is not None and y is not None]


def _most(panel: Panel, columns: Sequence[str]) -> float:
    return max((row[name] or 0.0 for row in panel.rows for name in columns), default=0.0) or 1.0


def _draw(pen: ImageDraw.ImageDraw, panel: Panel, *, left: float, top: float) -> None:
    title, small = ImageFont.load_default(14), ImageFont.load_default(11)
    x0, y0 = left + LEFT, top + HEIGHT - BOTTOM
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    across, up = _most(panel, [panel.x]), max(panel.level, _most(panel, panel.ys))
    pen.text((left + 16, top + 6), panel.title, INK, title)
    for tick in range(TICKS + 1):
        x, y = x0 + width * tick / TICKS, y0 - height * tick / TICKS
        pen.line((x0, y, x0 + width, y), "#eeeeee")
        pen.text((x0 - 8, y), f"{up * tick / TICKS:.4g}", INK, small, anchor="rm")
        pen.text((x, y0 + 10), f"{across * tick / TICKS:.4g}", INK, small, anchor="mm")
    pen.text((x0 + width / 2, y0 + 26), panel.x, INK, small, anchor="mm")
    level = y0 - height * panel.level / up
    pen.line((x0, level, x0 + width, level), FAINT, 2)
    pen.text((x0 + width, level - 8), panel.level_name, FAINT, small, anchor="rm")
    for number, (column, colour) in enumerate(zip(panel.ys, COLOURS, strict=False)):
        spots = [(x0 + width * x, y0 - height * y) for x, y in points(panel, column)]
        pen.line(spots, colour, 2)
        for x, y in spots:
            pen.ellipse((x - 3, y - 3, x + 3, y + 3), colour)
        pen.text((x0 + 130 * number, top + 28), column, colour, small)
