"""Sheets of pictures: a grid of small ones with labels at every row and every column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from PIL import Image, ImageDraw

from anima_pipe.drawing.lettering import Lettering, lettering_for

CELL: Final = 320
"""Longest side of a picture on a sheet, in pixels."""
MARGIN: Final = 8
ROW_LABEL: Final = 180
"""Width of the labels on the left, in pixels."""
LINE: Final = 18
"""From one line of a label to the next, in pixels."""
COLUMN_LABEL_LINES: Final = 3


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
        rows: Labels; shortened to what fits beside the row. One that cannot be written whole, for
            want of a font, begins with the row's number.
        columns: Labels; shortened to three lines.
        cells: By row and column, from `cell_of`.
    """
    lettering = lettering_for([*rows, *columns])
    widths = [max(row[column].width for row in cells) for column in range(len(columns))]
    heights = [max(cell.height for cell in row) for row in cells]
    heads = [
        fitted(lettering.legible(label), width, COLUMN_LABEL_LINES, lettering.length)
        for label, width in zip(columns, widths, strict=True)
    ]
    lefts = _starts(ROW_LABEL + 2 * MARGIN, widths)
    tops = _starts(2 * MARGIN + LINE * max(map(len, heads)), heights)
    sheet = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    pen = ImageDraw.Draw(sheet)
    for lines, left in zip(heads, lefts, strict=False):
        _write(pen, (left, MARGIN), lines, lettering)
    sides = [_numbered(number, label, lettering) for number, label in enumerate(rows)]
    for label, row, top, height in zip(sides, cells, tops, heights, strict=False):
        lines = fitted(label, ROW_LABEL, max(1, height // LINE), lettering.length)
        _write(pen, (MARGIN, top), lines, lettering)
        for cell, left in zip(row, lefts, strict=False):
            sheet.paste(cell, (left, top))
    return sheet


def _numbered(number: int, label: str, lettering: Lettering) -> str:
    """Return a label to be written, with its number where letters of it cannot be."""
    return f"{number:02d}: {legible}" if (legible := lettering.legible(label)) != label else label


def fitted(label: str, width: int, most_lines: int, length: Callable[[str], float]) -> list[str]:
    """Break a label into lines no wider than `width`; what is too much becomes "...".

    A word that is wider than a line is broken, as names of files and Japanese have no spaces.

    Args:
        label: What is written.
        width: In pixels.
        most_lines: So many at most.
        length: From a text to its width, in pixels.
    """
    lines = [""]
    for word in label.split():
        joined = f"{lines[-1]} {word}".strip()
        if length(joined) <= width:
            lines[-1] = joined
            continue
        pieces = _broken(word, width, length)
        lines += pieces if lines[-1] else []
        lines = lines if lines[-1] else pieces
    if len(lines) <= most_lines:
        return lines
    last = lines[most_lines - 1]
    while last and length(f"{last}...") > width:
        last = last[:-1]
    return [*lines[: most_lines - 1], f"{last.rstrip(' ,')}..."]


def _broken(word: str, width: int, length: Callable[[str], float]) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and length(pieces[-1] + letter) > width:
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
    pen: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], lettering: Lettering
) -> None:
    for number, line in enumerate(lines):
        lettering.write(pen, (place[0], place[1] + number * LINE), line)
