"""From a scene of the embedded model's world to its picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
from PIL import Image

from anima_pipe.demo.canvas import Canvas
from anima_pipe.demo.world.places import paint_falling, paint_place, paint_sky
from anima_pipe.demo.world.scene import Scene
from anima_pipe.demo.world.things import INK_WIDTH, PAINTERS, Painter, coat

SIZES: Final = {1: 0.54, 2: 0.42, 3: 0.27}
"""Height of a thing, a fraction of the picture's, by how many there are."""

COLUMNS: Final = {2: (0.25, 0.75), 3: (0.18, 0.5, 0.82)}
"""Where they stand, a fraction of the width, by how many there are."""

OF_SIDES: Final = {"left": 0.28, "center": 0.5, "right": 0.72}
"""Where a single one stands."""

FEET: Final = 0.88
"""The height that things stand at, a fraction of the picture's."""

INK: Final = "#201a24"
PASTEL: Final = "#fff4f0"
"""What pastel colours are half blended into."""


def columns(scene: Scene) -> tuple[float, ...]:
    """Return where the things of a scene stand, fractions of the width, before any chance."""
    if len(scene.things) == 1:
        return (OF_SIDES[scene.side],)
    return COLUMNS.get(len(scene.things), ())


def paint(
    scene: Scene,
    size: tuple[int, int],
    rng: np.random.Generator,
    painters: Mapping[str, Painter] = PAINTERS,
) -> Image.Image:
    """Paint a scene.

    Args:
        scene: What to paint.
        size: (width, height) in pixels.
        rng: Decides on everything that the scene leaves open.
        painters: Of the kinds of things.
    """
    canvas = Canvas(size)
    paint_sky(canvas, scene.time, scene.weather, rng)
    paint_place(canvas, scene.place, scene.time, rng)
    for thing, column in zip(scene.things, columns(scene), strict=True):
        place = (column + rng.uniform(-0.012, 0.012), FEET + rng.uniform(-0.03, 0.03))
        height = SIZES[len(scene.things)] * min(size) * rng.uniform(0.95, 1.05)
        pen = canvas.pen_at(place, height)
        pen.ellipse((0, 0), (0.5, 0.06), "#00000030")
        if scene.style == "thick outlines":
            pen = replace(pen, ink=INK, ink_width=INK_WIDTH)
        painters[thing.kind](pen, coat(thing.colour))
    paint_falling(canvas, scene.weather, rng)
    return styled(canvas.finished(), scene.style)


def styled(picture: Image.Image, style: str) -> Image.Image:
    """Return a picture in the colours of a style."""
    if style == "monochrome":
        return picture.convert("L").convert("RGB")
    if style == "pastel colors":
        return Image.blend(picture, Image.new("RGB", picture.size, PASTEL), 0.5)
    return picture
