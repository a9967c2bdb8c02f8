"""A contact sheet: one row per query, its best pictures with their cosines."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

TILE_PX, GAP_PX, LABEL_PX = 160, 12, 24
NO_CHARACTER = "\uffff"  # which every font shows as it does what it lacks
PAPER, INK, FAINT = (250, 250, 248), (30, 30, 30), (120, 120, 120)


def draw(queries: Sequence[str], best: Sequence[Sequence[tuple[Path, float]]]) -> Image.Image:
    """The sheet; `best[i]` are the pictures for `queries[i]`, best first.

    Pillow's own font has the letters of English only: any other query is shown by its number.
    """
    Image.MAX_IMAGE_PIXELS = None  # what a worker took within its own limit is no bomb
    columns = max(map(len, best), default=1)
    row_px = TILE_PX + 2 * LABEL_PX + GAP_PX
    title, small = ImageFont.load_default(17), ImageFont.load_default(13)
    labels = [_label(query, number, title) for number, query in enumerate(queries, 1)]
    widths = [columns * (TILE_PX + GAP_PX) - GAP_PX, *map(title.getlength, labels)]
    size = (int(max(widths)) + 2 * GAP_PX, len(labels) * row_px + GAP_PX)
    sheet = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(sheet)
    for number, (label, row) in enumerate(zip(labels, best, strict=True)):
        top = GAP_PX + number * row_px
        pen.text((GAP_PX, top), label, INK, title)
        for column, (file, cosine) in enumerate(row):
            left = GAP_PX + column * (TILE_PX + GAP_PX)
            sheet.paste(_tile(file), (left, top + LABEL_PX))
            pen.text((left, top + LABEL_PX + TILE_PX + 3), f"{cosine:.3f}", FAINT, small)
    return sheet


def _label(query: str, number: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    label = f"“{' '.join(query.split())}”"
    box = bytes(font.getmask(NO_CHARACTER))
    is_readable = all(bytes(font.getmask(character)) != box for character in label)
    return label if is_readable else f"query {number}"


def _tile(file: Path) -> Image.Image:
    with Image.open(file) as picture:
        return ImageOps.pad(picture.convert("RGB"), (TILE_PX, TILE_PX), color=(255, 255, 255))
