"""Sheets of pictures: a grid of small ones with labels at every row and every column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from PIL import Image, ImageDraw, ImageFont

CELL: Final = 320
"""Longest side of a picture on a sheet, in pixels."""
MARGIN: Final = 8
ROW_LABEL: Final = 180
"""Width of the labels on the left, in pixels."""
LETTERS: Final = 14
"""Height of the letters, in pixels; lines are `LINE` apart."""
LINE: Final = 18
COLUMN_LABEL_LINES: Final = 3

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def cell_of(picture: Image.Image) -> Image.Image:
    """Return a picture as small as it is on a sheet."""
    scale = min(1.0, CELL / max(picture.size))
    size = round(picture.width * scale), round(picture.height * scale)
    return picture.resize(size, Image.Resampling.LANCZOS)


def draw_sheet(
    rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Image.Image]]
) -> Image.Image:
    """Lay pictures out in a grid, row labels on the left and column labels on top.

    Args:
        rows: Labels; shortened to what fits beside the row.
        columns: Labels; shortened to three lines.
        cells: By row and column, from `cell_of`.
    """
    font = ImageFont.load_default(LETTERS)
    widths = [max(row[column].width for row in cells) for column in range(len(columns))]
    heights = [max(cell.height for cell in row) for row in cells]
    heads = [
        fitted(label, width, COLUMN_LABEL_LINES, font)
        for label, width in zip(columns, widths, strict=True)
    ]
    lefts = _starts(ROW_LABEL + 2 * MARGIN, widths)
    tops = _starts(2 * MARGIN + LINE * max(map(len, heads)), heights)
    sheet = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    pen = ImageDraw.Draw(sheet)
    for lines, left in zip(heads, lefts, strict=False):
        _write(pen, (left, MARGIN), lines, font)
    for label, row, top, height in zip(rows, cells, tops, heights, strict=False):
        _write(pen, (MARGIN, top), fitted(label, ROW_LABEL, max(1, height // LINE), font), font)
        for cell, left in zip(row, lefts, strict=False):
            sheet.paste(cell, (left, top))
    return sheet


def fitted(label: str, width: int, most_lines: int, font: Font) -> list[str]:
    """Break a label into lines no wider than `width`; what is too much becomes "...".

    A word that is wider than a line is broken, as names of files and Japanese have no spaces.
    """
    lines = [""]
    for word in label.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        pieces = _broken(word, width, font)
        lines += pieces if lines[-1] else []
        lines = lines if lines[-1] else pieces
    if len(lines) <= most_lines:
        return lines
    last = lines[most_lines - 1]
    while last and font.getlength(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: most_lines - 1], f"{last.rstrip(' ,')}..."]


def _broken(word: str, width: int, font: Font) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _starts(first: int, sizes: Sequence[int]) -> list[int]:
    """Return where each of a row of boxes begins, and where the one behind the last would."""
    starts = [first]
    for size in sizes:
        starts.append(starts[-1] + size + MARGIN)
    return starts


def _write(
    pen: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], font: Font
) -> None:
    for number, line in enumerate(lines):
        pen.text((place[0], place[1] + number * LINE), line, fill="black", font=font)
