"""Draw the demo's pictures, write them with their captions, and lay them out on one sheet."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from anima_pipe.demo.canvas import Canvas
from anima_pipe.demo.pictures import PICTURES, Picture

SHEET_WIDTH = 860
SHEET_ROWS = 5
SHEET_MARGIN = 6


def draw_picture(picture: Picture) -> Image.Image:
    """Return the finished picture; what is scattered over it depends on its name alone."""
    canvas = Canvas(picture.size)
    picture.paint(canvas, np.random.default_rng(zlib.crc32(picture.name.encode())))
    return canvas.finished()


def write_pictures(folder: Path) -> None:
    """Write every picture in its format, and its caption beside it as `.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in PICTURES:
        path = folder / picture.name
        image = draw_picture(picture)
        if path.suffix == ".png":
            image.save(path, optimize=True)
        else:
            image.save(path, quality=90)
        path.with_suffix(".txt").write_text(picture.caption, encoding="utf-8")


def write_contact_sheet(path: Path) -> None:
    """Write all pictures on one sheet, in rows of equal width, with a palette to be small."""
    images = [draw_picture(picture) for picture in PICTURES]
    strips = [_strip(row) for row in _rows(images)]
    height = sum(strip.height + SHEET_MARGIN for strip in strips) + SHEET_MARGIN
    sheet = Image.new("RGB", (SHEET_WIDTH, height), "white")
    top = SHEET_MARGIN
    for strip in strips:
        sheet.paste(strip, (SHEET_MARGIN, top))
        top += strip.height + SHEET_MARGIN
    sheet.quantize(256, Image.Quantize.MEDIANCUT).save(path, optimize=True)


def _rows(images: Sequence[Image.Image]) -> list[list[Image.Image]]:
    """Cut the sequence where the summed aspect ratios pass each row's share."""
    total = sum(image.width / image.height for image in images)
    rows: list[list[Image.Image]] = [[] for _ in range(SHEET_ROWS)]
    passed = 0.0
    for image in images:
        aspect = image.width / image.height
        row = int((passed + aspect / 2) * SHEET_ROWS / total)
        rows[row].append(image)
        passed += aspect
    return rows


def _strip(images: Sequence[Image.Image]) -> Image.Image:
    """Lay pictures side by side, scaled to one height so that they fill the sheet's width."""
    room = SHEET_WIDTH - SHEET_MARGIN * (len(images) + 1)
    height = round(room / sum(image.width / image.height for image in images))
    strip = Image.new("RGB", (SHEET_WIDTH - 2 * SHEET_MARGIN, height), "white")
    left = 0
    for image in images:
        size = (round(height * image.width / image.height), height)
        strip.paste(image.resize(size, Image.Resampling.LANCZOS), (left, 0))
        left += size[0] + SHEET_MARGIN
    return strip
