"""What surrounds the fox: skies, hills, plants, houses, weather.

Places are fractions of the picture's width and height, sizes are pixels of the finished picture.
Whatever is scattered takes the picture's own random generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from anima_pipe.demo.canvas import Canvas, Pen, Point

DAY = ("#7cc6ea", "#bfe6f5", "#fdf3d9")
SUNSET = ("#5b4b8a", "#e0728a", "#ffc17a")
NIGHT = ("#141b3f", "#2b3a72", "#5a6aa8")
SNOWY = ("#9fb7d6", "#cfdcec", "#f3f3f5")
OVERCAST = ("#6d8498", "#9fb2bd", "#cdd6d6")

GREENS = ("#a9d18a", "#84bd6e", "#63a356")
AUTUMN = ("#e3a857", "#cf7f3d", "#b4622f")
SNOW = ("#dfe8f2", "#eef3f8", "#ffffff")
DARK = ("#3a4a72", "#2c3a60", "#222d4d")

WOOD = "#7a5138"


def hills(canvas: Canvas, rng: np.random.Generator, height: float, colours: Sequence[str]) -> None:
    """Rolling hills from back to front, the first crest at `height`, one colour each."""
    for layer, colour in enumerate(colours):
        crest = height + layer * (1 - height) / (len(colours) + 0.6)
        edge = [(step / 5 - 0.1, crest + rng.uniform(-0.045, 0.045)) for step in range(7)]
        outline = [(-0.1, 1.1), *edge, (1.1, 1.1)]
        canvas.pen.blob([canvas.pixels(point) for point in outline], colour)


def mountains(canvas: Canvas, rng: np.random.Generator, height: float, colour: str) -> None:
    """Three mountains with snow on top, their feet at `height`."""
    for place in (0.18, 0.8, 0.5):
        rise = height * canvas.height * rng.uniform(0.5, 0.75)
        slope = canvas.width * rng.uniform(0.28, 0.4) / rise
        pen = canvas.pen_at((place + rng.uniform(-0.05, 0.05), height), rise)
        pen.polygon([(0, -1), (slope, 0), (-slope, 0)], colour)
        tongues = ((0.32, -0.68), (0.11, -0.76), (-0.06, -0.65), (-0.32, -0.68))
        pen.polygon([(0, -1), *((slope * x, y) for x, y in tongues)], "#f5f7fb")


def stars(canvas: Canvas, rng: np.random.Generator, count: int, bottom: float = 0.6) -> None:
    """Small stars above `bottom`."""
    for spot in canvas.scattered(rng, count, bottom=bottom):
        canvas.pen.disc(spot, rng.uniform(0.5, 1.5), "#fff6d8")


def sun(canvas: Canvas, place: Point, radius: float, colour: str = "#fff1b0") -> None:
    """A sun, or a full moon, in its glow."""
    canvas.glow(place, radius * 4.5, colour)
    canvas.pen.disc(canvas.pixels(place), radius, colour)


def crescent(canvas: Canvas, place: Point, radius: float) -> None:
    """A crescent moon lying on its back, in its glow."""
    canvas.glow(place, radius * 2, "#f8e9a8", 0.5)
    # Two arcs between the same horns: the rim around the place, the hollow around a point above.
    horn, above = 2.0, 0.55
    x, y = math.sin(horn), math.cos(horn) + above
    hollow, bend = math.hypot(x, y), math.atan2(x, y)
    rim = [(math.sin(turn), math.cos(turn)) for turn in np.linspace(-horn, horn, 40)]
    inside = [
        (hollow * math.sin(turn), hollow * math.cos(turn) - above)
        for turn in np.linspace(bend, -bend, 40)
    ]
    canvas.pen_at(place, radius).polygon(rim + inside, "#f9e7a0")


def cloud(canvas: Canvas, place: Point, size: float, colour: str = "#ffffffd8") -> None:
    """One flat-bottomed cloud, `size` pixels wide."""
    outline = (
        "-0.5,0.1 -0.42,-0.04 -0.24,-0.06 -0.12,-0.2 0.1,-0.22 "
        "0.24,-0.08 0.42,-0.06 0.5,0.08 0.3,0.14 -0.3,0.14"
    )
    canvas.pen_at(place, size).blob(outline, colour)


def tree(canvas: Canvas, place: Point, size: float, leaves: str, light: str) -> None:
    """A round tree, its foot at `place`, `size` pixels high."""
    pen = canvas.pen_at(place, size)
    pen.polygon("-0.06,0 -0.04,-0.5 0.04,-0.5 0.06,0", WOOD)
    for x, y, radius in ((-0.18, -0.5, 0.2), (0.18, -0.5, 0.2), (0, -0.7, 0.27)):
        pen.disc((x, y), radius, leaves)
    for x, y, radius in ((-0.1, -0.76, 0.12), (0.12, -0.6, 0.09), (-0.2, -0.52, 0.08)):
        pen.disc((x, y), radius, light)


def pine(canvas: Canvas, place: Point, size: float, colour: str, snow: str | None = None) -> None:
    """A pine, its foot at `place`, `size` pixels high, with snow on its branches if wished."""
    pen = canvas.pen_at(place, size)
    pen.polygon("-0.05,0 -0.05,-0.2 0.05,-0.2 0.05,0", WOOD)
    for top, half in ((-0.45, 0.3), (-0.7, 0.24), (-1.0, 0.17)):
        pen.polygon([(0, top), (half, top + 0.34), (-half, top + 0.34)], colour)
        if snow:
            pen.polygon([(0, top), (half * 0.45, top + 0.15), (-half * 0.45, top + 0.15)], snow)


def house(canvas: Canvas, place: Point, size: float, wall: str, roof: str, window: str) -> None:
    """A cottage, its foot at `place`, `size` pixels wide."""
    pen = canvas.pen_at(place, size)
    pen.polygon("0.18,-0.95 0.3,-0.95 0.3,-0.6 0.18,-0.6", roof)
    pen.polygon("-0.42,0 -0.42,-0.55 0.42,-0.55 0.42,0", wall)
    pen.polygon("-0.54,-0.52 0,-1 0.54,-0.52", roof)
    pen.polygon("-0.1,0 -0.1,-0.32 0.1,-0.32 0.1,0", WOOD)
    for x in (-0.3, 0.17):
        pen.at((x, 0)).polygon("0,-0.4 0.13,-0.4 0.13,-0.25 0,-0.25", window)


def flowers(
    canvas: Canvas, rng: np.random.Generator, count: int, top: float, colours: Sequence[str]
) -> None:
    """Five-petalled flowers on stalks below `top`, nearer ones larger."""
    for spot in canvas.scattered(rng, count, top=top):
        nearness = (spot[1] / canvas.height - top) / (1 - top)
        pen = canvas.pen.at(spot, scale=3 + 7 * nearness)
        pen.stroke("0,0 0.1,2", 0.25, "#4f8a45")
        flower(pen, colours[int(rng.integers(len(colours)))], "#ffe08a")


def flower(pen: Pen, petals: str, heart: str) -> None:
    """Five petals around a heart, of radius 1."""
    for petal in range(5):
        turn = 2 * math.pi * petal / 5
        pen.disc((0.55 * math.cos(turn), 0.55 * math.sin(turn)), 0.45, petals)
    pen.disc((0, 0), 0.35, heart)


def sunflowers(canvas: Canvas, rng: np.random.Generator, height: float, radius: float) -> None:
    """A row of sunflowers, their heads at `height`."""
    for x in np.linspace(0.02, 0.98, 6):
        pen = canvas.pen_at((x, height + rng.uniform(-0.03, 0.03)), radius)
        pen.stroke("0,0 0.1,6", 0.25, "#4c8a3e")
        for petal in range(14):
            turn = 2 * math.pi * petal / 14
            pen.ellipse((0.7 * math.cos(turn), 0.7 * math.sin(turn)), (0.36, 0.17), "#f7c531", turn)
        pen.disc((0, 0), 0.5, "#6e4426")


def drifting(
    canvas: Canvas, rng: np.random.Generator, count: int, colours: Sequence[str], size: float
) -> None:
    """Petals, leaves or confetti in the air."""
    for spot in canvas.scattered(rng, count):
        reach = size * rng.uniform(0.6, 1.3)
        colour = colours[int(rng.integers(len(colours)))]
        canvas.pen.ellipse(spot, (reach, 0.5 * reach), colour, rng.uniform(0, math.pi))


def snowfall(canvas: Canvas, rng: np.random.Generator, count: int, colour: str) -> None:
    """Flakes, or motes of light, in the air."""
    for spot in canvas.scattered(rng, count):
        canvas.pen.disc(spot, rng.uniform(1.1, 2.6), colour)


def rain(canvas: Canvas, rng: np.random.Generator, count: int) -> None:
    """Slanting rain."""
    for x, y in canvas.scattered(rng, count):
        canvas.pen.stroke([(x, y), (x - 3, y + 11)], 1.0, "#e4f0f899")


def sea(canvas: Canvas, rng: np.random.Generator, top: float, colours: Sequence[str]) -> None:
    """Water below `top`, with glints; colours go from the horizon to the shore."""
    for row, colour in enumerate(colours):
        canvas.box((0, top + (1 - top) * row / len(colours)), (1, 1), colour)
    for x, y in canvas.scattered(rng, 26, top=top + 0.02):
        length = 4 + 26 * (y / canvas.height - top)
        canvas.pen.stroke([(x, y), (x + length / 2, y - 1), (x + length, y)], 1.2, "#ffffff70")


def lantern(canvas: Canvas, place: Point, size: float) -> None:
    """A paper lantern in its glow, `size` pixels wide."""
    canvas.glow(place, size * 2.2, "#ffd27a", 0.7)
    pen = canvas.pen_at(place, size)
    pen.polygon("-0.22,-0.62 0.22,-0.62 0.22,0.62 -0.22,0.62", "#5c2f2a")
    pen.ellipse((0, 0), (0.5, 0.55), "#ff8f4a")
    pen.ellipse((0, 0), (0.26, 0.5), "#ffd98a90")


def rainbow(canvas: Canvas, place: Point, radius: float) -> None:
    """A rainbow around its centre, `radius` pixels."""
    colours = ("#f0686899", "#f7a85899", "#f8e06a99", "#7ccf8299", "#6ab4e899", "#a184d899")
    pen = canvas.pen_at(place, radius)
    for band, colour in enumerate(colours):
        reach = 1 - band / 22
        turns = np.linspace(math.pi, 2 * math.pi, 25)
        arc = [(reach * math.cos(turn), reach * math.sin(turn)) for turn in turns]
        pen.stroke(arc, 0.05, colour)


def firework(canvas: Canvas, place: Point, radius: float, colour: str) -> None:
    """A burst of sparks."""
    canvas.glow(place, radius * 1.5, colour, 0.35)
    pen = canvas.pen_at(place, radius)
    for ray in range(18):
        turn = 2 * math.pi * ray / 18
        for reach in (0.35, 0.6, 0.8, 1.0):
            spark = (reach * math.cos(turn), reach * math.sin(turn))
            pen.disc(spark, 0.045 * reach, colour)
