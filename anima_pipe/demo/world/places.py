"""Where the things of the embedded model's world stand: skies, grounds and weather."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from PIL import ImageColor

from anima_pipe.demo.canvas import Canvas, Point

HORIZON: Final = 0.56
"""Height of the horizon, a fraction of the picture's."""

SKIES: Final[Mapping[str, tuple[str, str]]] = {
    "day": ("#5fb4ee", "#c9e9f8"),
    "sunset": ("#8a4f96", "#ffb069"),
    "night": ("#0f1638", "#33447e"),
}
"""Of a clear sky, at its top and at the horizon."""

DULL: Final[Mapping[str, tuple[str, str]]] = {
    "day": ("#7f8f9c", "#b4bec6"),
    "sunset": ("#705a72", "#b5897c"),
    "night": ("#1c2230", "#3c4659"),
}
"""The same where it rains or snows."""

GROUNDS: Final[Mapping[str, str]] = {
    "meadow": "#8cc86a",
    "beach": "#ecd9a3",
    "desert": "#d9a25a",
    "snowfield": "#edf3fa",
    "street": "#8a8a90",
}
LIGHTS: Final[Mapping[str, tuple[float, float, float]]] = {
    "day": (1.0, 1.0, 1.0),
    "sunset": (0.92, 0.74, 0.72),
    "night": (0.36, 0.42, 0.62),
}
"""What a time of day leaves of red, green and blue of everything but the things."""

SEA: Final = "#3f93c4"


def lit(colour: str, time: str) -> str:
    """Return a colour as it looks at a time of day."""
    channels = zip(ImageColor.getrgb(colour)[:3], LIGHTS[time], strict=True)
    return "#{:02x}{:02x}{:02x}".format(*(round(value * light) for value, light in channels))


def paint_sky(canvas: Canvas, time: str, weather: str, rng: np.random.Generator) -> None:
    """Paint the sky, with sun, moon and stars where it is clear, and clouds where it is cloudy."""
    dull = weather in ("rain", "snowing")
    canvas.fill_gradient((DULL if dull else SKIES)[time], bottom=HORIZON + 0.05)
    if weather == "clear sky":
        _lights(canvas, time, rng)
    elif weather == "cloudy":
        colour = lit("#ffffff", time) if time != "night" else "#7683a8"
        for x in (0.16, 0.5, 0.84):
            place = (x + rng.uniform(-0.08, 0.08), rng.uniform(0.1, 0.26))
            _cloud(canvas, place, canvas.width * rng.uniform(0.3, 0.4), colour)


def _lights(canvas: Canvas, time: str, rng: np.random.Generator) -> None:
    radius, x = 0.085 * canvas.height, rng.uniform(0.12, 0.88)
    if time == "night":
        for spot in canvas.scattered(rng, 14, bottom=HORIZON - 0.08):
            canvas.pen.disc(spot, 0.011 * canvas.height, "#fff6d8")
    height = HORIZON - 0.02 if time == "sunset" else rng.uniform(0.12, 0.2)
    colour = {"day": "#fff3a8", "sunset": "#ffe27a", "night": "#f7f3dc"}[time]
    canvas.pen.disc(canvas.pixels((x, height)), radius, colour)


def _cloud(canvas: Canvas, place: Point, size: float, colour: str) -> None:
    pen = canvas.pen_at(place, size)
    for x, y, radius in ((-0.3, 0.02, 0.15), (-0.05, -0.08, 0.2), (0.2, -0.02, 0.17)):
        pen.disc((x, y), radius, colour)
    pen.polygon("-0.4,0.04 0.34,0.04 0.34,0.16 -0.32,0.16", colour)


def paint_place(canvas: Canvas, place: str, time: str, rng: np.random.Generator) -> None:
    """Paint the ground, and what marks the place behind it."""
    _BACKDROPS[place](canvas, time, rng)
    canvas.box((0, _shore(place)), (1, 1), lit(GROUNDS[place], time))
    _FOREGROUNDS.get(place, _nothing)(canvas, time, rng)


def _shore(place: str) -> float:
    """Return where a place's ground begins: behind a beach there is water."""
    return HORIZON + 0.12 if place == "beach" else HORIZON


def _hills(canvas: Canvas, time: str, rng: np.random.Generator) -> None:
    for x in (0.2, 0.75):
        centre = canvas.pixels((x + rng.uniform(-0.1, 0.1), HORIZON + 0.04))
        radii = (0.42 * canvas.width, rng.uniform(0.1, 0.16) * canvas.height)
        canvas.pen.ellipse(centre, radii, lit("#5da352", time))


def _water(canvas: Canvas, time: str, _rng: np.random.Generator) -> None:
    canvas.box((0, HORIZON), (1, HORIZON + 0.13), lit(SEA, time))


def _dunes(canvas: Canvas, time: str, rng: np.random.Generator) -> None:
    for x in (0.15, 0.85):
        peak = canvas.pixels((x + rng.uniform(-0.12, 0.12), HORIZON - rng.uniform(0.06, 0.12)))
        foot = canvas.pixels((0.4, HORIZON))[0]
        low = canvas.pixels((0, HORIZON + 0.02))[1]
        outline = [(peak[0] - foot, low), peak, (peak[0] + foot, low)]
        canvas.pen.polygon(outline, lit("#c48a48", time))


def _peaks(canvas: Canvas, time: str, rng: np.random.Generator) -> None:
    for x in (0.2, 0.55, 0.9):
        rise = rng.uniform(0.14, 0.22) * canvas.height
        pen = canvas.pen_at((x + rng.uniform(-0.06, 0.06), HORIZON + 0.01), rise)
        pen.polygon("-1.1,0 0,-1 1.1,0", lit("#7f97b8", time))
        pen.polygon("-0.38,-0.65 0,-1 0.38,-0.65 0,-0.52", lit("#ffffff", time))


def _houses(canvas: Canvas, time: str, rng: np.random.Generator) -> None:
    window = "#ffe08a" if time == "night" else "#c8d8e4"
    for column in range(6):
        left = column / 6
        top = HORIZON - rng.uniform(0.12, 0.26)
        grey = ("#6a7386", "#78706f", "#5f6f78")[int(rng.integers(3))]
        canvas.box((left, top), (left + 1 / 6, HORIZON + 0.01), lit(grey, time))
        for row in range(2):
            height = top + 0.03 + 0.06 * row
            canvas.box((left + 0.05, height), (left + 0.09, height + 0.035), window)


def _tufts(canvas: Canvas, time: str, rng: np.random.Generator) -> None:
    for spot in canvas.scattered(rng, 10, top=HORIZON + 0.05, bottom=0.98):
        pen = canvas.pen.at(spot, scale=0.05 * canvas.height)
        pen.polygon("-0.5,0 -0.3,-0.9 0,-0.2 0.3,-0.9 0.5,0", lit("#5da352", time))


def _cacti(canvas: Canvas, time: str, rng: np.random.Generator) -> None:
    side = 0.06 if rng.random() < 0.5 else 0.94
    pen = canvas.pen_at((side, HORIZON + 0.08), 0.26 * canvas.height)
    colour = lit("#4f8f52", time)
    pen.stroke("0,0 0,-1", 0.16, colour)
    pen.stroke("0,-0.4 0.26,-0.44 0.26,-0.74", 0.11, colour)
    pen.stroke("0,-0.3 -0.26,-0.34 -0.26,-0.6", 0.11, colour)


def _stripes(canvas: Canvas, time: str, _rng: np.random.Generator) -> None:
    for column in range(4):
        left = 0.04 + column / 4
        canvas.box((left, 0.93), (left + 0.14, 0.96), lit("#e8e6dc", time))


def _nothing(_canvas: Canvas, _time: str, _rng: np.random.Generator) -> None:
    return


_Part = Callable[[Canvas, str, np.random.Generator], None]

_BACKDROPS: Final[Mapping[str, _Part]] = {
    "meadow": _hills,
    "beach": _water,
    "desert": _dunes,
    "snowfield": _peaks,
    "street": _houses,
}
_FOREGROUNDS: Final[Mapping[str, _Part]] = {
    "meadow": _tufts,
    "desert": _cacti,
    "street": _stripes,
}


def paint_falling(canvas: Canvas, weather: str, rng: np.random.Generator) -> None:
    """Paint what falls, over everything else."""
    if weather == "rain":
        for x, y in canvas.scattered(rng, 34, bottom=0.95):
            length = 0.09 * canvas.height
            end = (x - length * math.sin(0.3), y + length * math.cos(0.3))
            canvas.pen.stroke([(x, y), end], 0.012 * canvas.height, "#dcecf6b0")
    elif weather == "snowing":
        for spot in canvas.scattered(rng, 36):
            canvas.pen.disc(spot, rng.uniform(0.013, 0.02) * canvas.height, "#ffffffe8")
