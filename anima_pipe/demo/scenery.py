"""What surrounds the fox: skies, hills, plants, houses, weather.

Positions are fractions of the picture's width and height, sizes are pixels of the finished picture
unless said otherwise. Whatever is scattered takes the picture's own random generator.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from anima_pipe.demo.canvas import Canvas, Point

DAY = ("#7cc6ea", "#bfe6f5", "#fdf3d9")
SUNSET = ("#5b4b8a", "#e0728a", "#ffc17a")
NIGHT = ("#141b3f", "#2b3a72", "#5a6aa8")
SNOWY = ("#9fb7d6", "#cfdcec", "#f3f3f5")
OVERCAST = ("#6d8498", "#9fb2bd", "#cdd6d6")


def hills(canvas: Canvas, rng: np.random.Generator, height: float, colours: Sequence[str]) -> None:
    """Rolling hills from back to front, the first crest at `height`, one colour each."""
    for layer, colour in enumerate(colours):
        crest = height + layer * (1 - height) / (len(colours) + 0.6)
        points: list[Point] = [(-0.1 * canvas.width, 1.1 * canvas.height)]
        for step in range(7):
            sway = rng.uniform(-0.045, 0.045)
            points.append((canvas.width * (step / 5 - 0.1), canvas.height * (crest + sway)))
        points.append((1.1 * canvas.width, 1.1 * canvas.height))
        canvas.pen.blob(points, colour)


def mountains(canvas: Canvas, rng: np.random.Generator, height: float, colour: str) -> None:
    """Three mountains with snow on top, their feet at `height`."""
    foot = height * canvas.height
    for place in (0.18, 0.8, 0.5):
        peak = (canvas.width * (place + rng.uniform(-0.05, 0.05)), foot * rng.uniform(0.25, 0.5))
        half = canvas.width * rng.uniform(0.28, 0.4)
        canvas.pen.polygon([peak, (peak[0] + half, foot), (peak[0] - half, foot)], colour)
        down = 0.32 * (foot - peak[1])
        side = 0.32 * half
        snow = [peak, (peak[0] + side, peak[1] + down), (peak[0] + side / 3, peak[1] + 0.75 * down)]
        snow += [(peak[0] - side / 5, peak[1] + down * 1.1), (peak[0] - side, peak[1] + down)]
        canvas.pen.polygon(snow, "#f5f7fb")


def stars(canvas: Canvas, rng: np.random.Generator, count: int, bottom: float = 0.6) -> None:
    """Small stars above `bottom`."""
    for _ in range(count):
        place = (rng.uniform(0, canvas.width), rng.uniform(0, bottom * canvas.height))
        canvas.pen.disc(place, rng.uniform(0.5, 1.5), "#fff6d8")


def sun(canvas: Canvas, place: Point, radius: float, colour: str = "#fff1b0") -> None:
    """A sun, or a full moon, in its glow."""
    canvas.glow(place, radius * 4.5, colour)
    canvas.pen.disc((place[0] * canvas.width, place[1] * canvas.height), radius, colour)


def crescent(canvas: Canvas, place: Point, radius: float) -> None:
    """A crescent moon, open to the upper right, in its glow."""
    canvas.glow(place, radius * 3, "#f8e9a8", 0.5)
    moon = canvas.pen.at(
        (place[0] * canvas.width, place[1] * canvas.height), scale=radius, angle=0.5
    )
    turns = np.linspace(-0.75 * math.pi, 0.75 * math.pi, 40)
    outer = [(-math.cos(turn), math.sin(turn)) for turn in turns]
    inner = [(0.71 - 1.05 * math.cos(turn), math.sin(turn) * 0.71) for turn in turns[::-1] * 0.96]
    moon.polygon(outer + inner, "#f9e7a0")


def cloud(canvas: Canvas, place: Point, size: float, colour: str = "#ffffffd8") -> None:
    """One flat-bottomed cloud, `size` pixels wide."""
    pen = canvas.pen.at((place[0] * canvas.width, place[1] * canvas.height), scale=size)
    pen.blob(
        [(-0.5, 0.1), (-0.42, -0.04), (-0.24, -0.06), (-0.12, -0.2), (0.1, -0.22)]
        + [(0.24, -0.08), (0.42, -0.06), (0.5, 0.08), (0.3, 0.14), (-0.3, 0.14)],
        colour,
    )


def tree(canvas: Canvas, place: Point, size: float, leaves: str, light: str) -> None:
    """A round tree, its foot at `place`, `size` pixels high."""
    pen = canvas.pen.at((place[0] * canvas.width, place[1] * canvas.height), scale=size)
    pen.polygon([(-0.06, 0), (-0.04, -0.5), (0.04, -0.5), (0.06, 0)], "#7a5138")
    for x, y, radius in ((-0.18, -0.5, 0.2), (0.18, -0.5, 0.2), (0, -0.7, 0.27)):
        pen.disc((x, y), radius, leaves)
    for x, y, radius in ((-0.1, -0.76, 0.12), (0.12, -0.6, 0.09), (-0.2, -0.52, 0.08)):
        pen.disc((x, y), radius, light)


def pine(canvas: Canvas, place: Point, size: float, colour: str, snow: str | None = None) -> None:
    """A pine, its foot at `place`, `size` pixels high, with snow on its branches if wished."""
    pen = canvas.pen.at((place[0] * canvas.width, place[1] * canvas.height), scale=size)
    pen.polygon([(-0.05, 0), (-0.05, -0.2), (0.05, -0.2), (0.05, 0)], "#6a4a3a")
    for top, half in ((-0.45, 0.3), (-0.7, 0.24), (-1.0, 0.17)):
        pen.polygon([(0, top), (half, top + 0.34), (-half, top + 0.34)], colour)
        if snow:
            pen.polygon([(0, top), (half * 0.45, top + 0.15), (-half * 0.45, top + 0.15)], snow)


def house(canvas: Canvas, place: Point, size: float, wall: str, roof: str, window: str) -> None:
    """A cottage, its foot at `place`, `size` pixels wide."""
    pen = canvas.pen.at((place[0] * canvas.width, place[1] * canvas.height), scale=size)
    pen.polygon([(0.18, -0.95), (0.3, -0.95), (0.3, -0.6), (0.18, -0.6)], roof)
    pen.polygon([(-0.42, 0), (-0.42, -0.55), (0.42, -0.55), (0.42, 0)], wall)
    pen.polygon([(-0.54, -0.52), (0, -1.0), (0.54, -0.52)], roof)
    pen.polygon([(-0.1, 0), (-0.1, -0.32), (0.1, -0.32), (0.1, 0)], "#7b4b34")
    for x in (-0.3, 0.2):
        pen.polygon([(x, -0.4), (x + 0.13, -0.4), (x + 0.13, -0.25), (x, -0.25)], window)


def flowers(
    canvas: Canvas, rng: np.random.Generator, count: int, top: float, colours: Sequence[str]
) -> None:
    """Five-petalled flowers on stalks below `top`, nearer ones larger."""
    for height in np.sort(rng.uniform(top, 1.0, count)):
        size = 3 + 7 * (height - top) / (1 - top)
        spot = (rng.uniform(0, canvas.width), height * canvas.height)
        pen = canvas.pen.at(spot, scale=size)
        pen.stroke([(0, 0), (0.1, 2.0)], 0.25, "#4f8a45")
        colour = colours[int(rng.integers(len(colours)))]
        for petal in range(5):
            turn = 2 * math.pi * petal / 5
            pen.disc((0.55 * math.cos(turn), 0.55 * math.sin(turn)), 0.45, colour)
        pen.disc((0, 0), 0.35, "#ffe08a")


def drifting(
    canvas: Canvas, rng: np.random.Generator, count: int, colours: Sequence[str], *, size: float, flat: float
) -> None:
    """Petals, leaves or flakes in the air, `flat` times as high as they are wide."""
    for _ in range(count):
        place = (rng.uniform(0, canvas.width), rng.uniform(0, canvas.height))
        reach = size * rng.uniform(0.6, 1.3)
        colour = colours[int(rng.integers(len(colours)))]
        canvas.pen.ellipse(place, (reach, flat * reach), colour, rng.uniform(0, math.pi))


def rain(canvas: Canvas, rng: np.random.Generator, count: int) -> None:
    """Slanting rain."""
    for _ in range(count):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0, canvas.height)
        canvas.pen.stroke([(x, y), (x - 3, y + 11)], 1.0, "#e4f0f899")


def sea(canvas: Canvas, rng: np.random.Generator, top: float, colours: Sequence[str]) -> None:
    """Water below `top`, with glints; colours go from the horizon to the shore."""
    rows = len(colours)
    for row, colour in enumerate(colours):
        y = canvas.height * (top + (1 - top) * row / rows)
        edge = [
            (canvas.width * step / 8, y + rng.uniform(-1.5, 1.5) * (row > 0))
            for step in range(-1, 10)
        ]
        below: list[Point] = [(1.2 * canvas.width, 1.1 * canvas.height)]
        below.append((-0.2 * canvas.width, 1.1 * canvas.height))
        canvas.pen.polygon([*edge, *below], colour)
    for _ in range(26):
        x, y = rng.uniform(0, canvas.width), canvas.height * rng.uniform(top + 0.02, 1)
        length = 4 + 26 * (y / canvas.height - top)
        canvas.pen.stroke([(x, y), (x + length / 2, y - 1), (x + length, y)], 1.2, "#ffffff70")


def lantern(canvas: Canvas, place: Point, size: float, colour: str = "#ff8f4a") -> None:
    """A paper lantern in its glow, `size` pixels wide."""
    canvas.glow(place, size * 2.2, "#ffd27a", 0.7)
    pen = canvas.pen.at((place[0] * canvas.width, place[1] * canvas.height), scale=size)
    pen.polygon([(-0.22, -0.62), (0.22, -0.62), (0.22, 0.62), (-0.22, 0.62)], "#5c2f2a")
    pen.ellipse((0, 0), (0.5, 0.55), colour)
    pen.ellipse((0, 0), (0.26, 0.5), "#ffd98a90")


def rainbow(canvas: Canvas, place: Point, radius: float) -> None:
    """A rainbow around its centre, `radius` pixels."""
    colours = ("#f0686899", "#f7a85899", "#f8e06a99", "#7ccf8299", "#6ab4e899", "#a184d899")
    turns = np.linspace(math.pi, 2 * math.pi, 25)
    for band, colour in enumerate(colours):
        reach = radius - band * radius / 22
        arc = [
            (
                place[0] * canvas.width + reach * math.cos(turn),
                place[1] * canvas.height + reach * math.sin(turn),
            )
            for turn in turns
        ]
        canvas.pen.stroke(arc, radius / 20, colour)


def firework(canvas: Canvas, place: Point, radius: float, colour: str) -> None:
    """A burst of sparks."""
    canvas.glow(place, radius * 1.5, colour, 0.35)
    centre = (place[0] * canvas.width, place[1] * canvas.height)
    for ray in range(18):
        turn = 2 * math.pi * ray / 18
        for part, size in ((0.35, 0.8), (0.6, 1.2), (0.8, 1.6), (1.0, 2.2)):
            reach = radius * part
            spark = (centre[0] + reach * math.cos(turn), centre[1] + reach * math.sin(turn))
            canvas.pen.disc(spark, size, colour)
