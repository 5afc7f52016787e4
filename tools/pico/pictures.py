"""Pictures of the embedded model's world to train on, made with their captions by all cores."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from anima_pipe.demo.world.painting import paint
from anima_pipe.demo.world.scene import caption, draw_scene

SHAPES: Final = ((128, 128), (128, 128), (128, 128), (112, 144), (144, 112))
"""(width, height) of pictures, in turn."""
_PART: Final = 500


SCRIBBLES: Final = 12
"""One in so many of the VAE's pictures shows nothing of the world."""
_FINER: Final = 3
"""Scribbles are drawn so many times as large as they are wanted, for smooth edges."""


def vae_pictures(count: int, side: int, seed: int) -> np.ndarray:
    """Return square pictures for the VAE, the world's and others: UInt8[count, side, side, 3].

    The VAE shall show what the world does not hold, a user's own pictures or what the demo teaches:
    some pictures are of any shapes in any colours.
    """
    parts = [(seed, first, min(_PART, count - first)) for first in range(0, count, _PART)]
    with ProcessPoolExecutor() as pool:
        return np.concatenate(list(pool.map(partial(_part, side), parts)))


def _part(side: int, part: tuple[int, int, int]) -> np.ndarray:
    seed, first, count = part
    rng = np.random.default_rng((seed, first))
    pictures = [
        scribble(side, rng)
        if number % SCRIBBLES == 0
        else paint(draw_scene(rng), (side, side), rng)
        for number in range(count)
    ]
    return np.stack([np.asarray(picture) for picture in pictures])


def scribble(side: int, rng: np.random.Generator) -> Image.Image:
    """Draw a dozen shapes of any form, size and colour over each other."""
    width = side * _FINER
    picture = Image.new("RGB", (width, width), _any_colour(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(6, 20))):
        centre = rng.uniform(0, width, 2)
        radius = width * 0.3 * rng.uniform(0.08, 1) ** 2
        outline = _any_colour(rng) if rng.random() < 0.3 else None
        line = int(rng.uniform(0.5, 3) * _FINER)
        corners = centre + rng.normal(0, radius, (int(rng.integers(3, 7)), 2))
        match int(rng.integers(3)):
            case 0:
                low, high = corners.min(0), corners.max(0)
                draw.ellipse((*low, *high), _any_colour(rng), outline, line)
            case 1:
                points = [(float(x), float(y)) for x, y in corners]
                draw.polygon(points, _any_colour(rng), outline, line)
            case _:
                draw.line(corners.flatten().tolist(), _any_colour(rng), line)
    return picture.resize((side, side), Image.Resampling.BOX)


def _any_colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in rng.integers(0, 256, 3))
    return red, green, blue


def write_dataset(folder: Path, count: int, seed: int) -> list[str]:
    """Write `count` pictures with captions beside them; return the captions."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [(seed, first, min(_PART, count - first)) for first in range(0, count, _PART)]
    with ProcessPoolExecutor() as pool:
        return [line for lines in pool.map(partial(_write, folder), parts) for line in lines]


def _write(folder: Path, part: tuple[int, int, int]) -> Sequence[str]:
    seed, first, count = part
    rng = np.random.default_rng((seed, first))
    captions: list[str] = []
    for number in range(first, first + count):
        scene = draw_scene(rng)
        text = caption(scene, quality=rng.random() < 0.7, sentence=rng.random() < 0.5)
        paint(scene, SHAPES[number % len(SHAPES)], rng).save(folder / f"{number:06d}.png")
        (folder / f"{number:06d}.txt").write_text(text + "\n", encoding="utf-8")
        captions.append(text)
    return captions
