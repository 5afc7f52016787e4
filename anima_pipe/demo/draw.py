"""Draw the demo's pictures and write them with their captions."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from anima_pipe.demo.canvas import Canvas
from anima_pipe.demo.pictures import PICTURES, Picture

COLUMNS = 8
"""Pictures beside each other on the contact sheet."""


def draw_picture(picture: Picture) -> Image.Image:
    """The finished picture; what is scattered over it depends on its name alone."""
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


def write_contact_sheet(path: Path, height: int = 110, margin: int = 6) -> None:
    """All pictures on one sheet, in rows of equal height."""
    thumbnails = [
        (image := draw_picture(picture)).resize(
            (round(height * image.width / image.height), height), Image.Resampling.LANCZOS
        )
        for picture in PICTURES
    ]
    rows = [thumbnails[start : start + COLUMNS] for start in range(0, len(thumbnails), COLUMNS)]
    width = max(sum(image.width + margin for image in row) for row in rows) + margin
    sheet = Image.new("RGB", (width, len(rows) * (height + margin) + margin), "white")
    for number, row in enumerate(rows):
        left = (width - sum(image.width + margin for image in row) + margin) // 2
        for image in row:
            sheet.paste(image, (left, margin + number * (height + margin)))
            left += image.width + margin
    sheet.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
