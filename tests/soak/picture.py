"""The series of a long run as one picture of small graphs."""

from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, ImageFont

COLUMNS, WIDTH, HEIGHT, EDGE = 3, 400, 150, 34
INK, FAINT, LINE, WARM = "#222222", "#888888", "#1f4e9e", "#eeeeee"


def draw(
    series: Mapping[str, Sequence[tuple[float, float]]], told: Mapping[str, str], *, warm_s: float
) -> Image.Image:
    """A graph each, from zero up; what lies in the grey part is not counted.

    Args:
        told: what to write below each name.
    """
    rows = -(-len(series) // COLUMNS)
    picture = Image.new("RGB", (COLUMNS * WIDTH, rows * HEIGHT), "white")
    pen = ImageDraw.Draw(picture)
    for number, (name, points) in enumerate(series.items()):
        at = (number % COLUMNS * WIDTH, number // COLUMNS * HEIGHT)
        _graph(pen, at, name, told.get(name, ""), points, warm_s)
    return picture


def _graph(
    pen: ImageDraw.ImageDraw,
    at: tuple[int, int],
    name: str,
    told: str,
    points: Sequence[tuple[float, float]],
    warm_s: float,
) -> None:
    left, top = at[0] + 12, at[1] + EDGE
    width, height = WIDTH - 24, HEIGHT - EDGE - 10
    longest = max(seconds for seconds, _ in points) or 1.0
    most = max(value for _, value in points) * 1.1 or 1.0
    small = ImageFont.load_default(11)
    pen.rectangle((left, top, left + width * min(1.0, warm_s / longest), top + height), fill=WARM)
    pen.line((left, top + height, left + width, top + height), FAINT)
    places = [(left + width * s / longest, top + height * (1 - v / most)) for s, v in points]
    pen.line(places, LINE, width=2)
    title = f"{name}: {points[0][1]:.4g} to {points[-1][1]:.4g}"
    pen.text((left, at[1] + 3), title, INK, ImageFont.load_default(13))
    pen.text((left, at[1] + 19), told, FAINT, small)
