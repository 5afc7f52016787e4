"""The things of the embedded model's world: one painter for each kind.

A painter's pen has its origin where the thing stands, and the thing is one unit high. Nearly all
of it has the thing's colour; eyes, wheels and the like are dark or light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from anima_pipe.demo.canvas import Pen, mirrored

PALETTE: Final[Mapping[str, str]] = {
    "red": "#d8262c",
    "orange": "#f08a24",
    "yellow": "#f6d21f",
    "green": "#178a3c",
    "blue": "#2450c8",
    "purple": "#7d35ae",
    "pink": "#f47fb4",
    "white": "#fbfbfb",
    "black": "#1c1c20",
}
"""What the colours' names mean."""

INK_WIDTH: Final = 0.05
"""Of thick outlines, for a thing one high."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coat:
    """The colours of one thing."""

    body: str
    dark: str
    """Of eyes, wheels, doors."""
    light: str
    """Of bellies and windows."""


def coat(colour: str) -> Coat:
    """Return the colours of a thing whose colour has this name."""
    dark = "#f0f0f0" if colour == "black" else "#26222c"
    light = "#8c8c92" if colour in ("white", "black") else "#fbf4e6"
    return Coat(body=PALETTE[colour], dark=dark, light=light)


def _cat(pen: Pen, coat: Coat) -> None:
    pen.stroke("0.22,-0.08 0.5,-0.1 0.56,-0.36 0.46,-0.5", 0.1, coat.body)
    pen.blob(mirrored("0,-0.5 0.18,-0.46 0.3,-0.2 0.3,-0.02 0,0"), coat.body)
    for mirror in (False, True):
        pen.at((0, 0), mirror=mirror).polygon("0.02,-0.88 0.28,-1 0.34,-0.64", coat.body)
    pen.ellipse((0, -0.66), (0.36, 0.27), coat.body)
    for x in (-0.15, 0.15):
        pen.inkless.ellipse((x, -0.68), (0.045, 0.07), coat.dark)
    pen.inkless.polygon("-0.05,-0.58 0.05,-0.58 0,-0.53", coat.dark)


def _rabbit(pen: Pen, coat: Coat) -> None:
    for x, turn in ((-0.17, -0.14), (0.17, 0.14)):
        pen.ellipse((x, -0.77), (0.11, 0.23), coat.body, turn)
    pen.ellipse((0, -0.21), (0.32, 0.21), coat.body)
    pen.ellipse((0, -0.48), (0.28, 0.2), coat.body)
    pen.inkless.ellipse((0, -0.16), (0.15, 0.11), coat.light)
    for x in (-0.09, 0.09):
        pen.inkless.ellipse((x, -0.5), (0.032, 0.05), coat.dark)


def _bird(pen: Pen, coat: Coat) -> None:
    pen = pen.at((0, 0), scale=0.85)
    for x in (-0.06, 0.1):
        pen.inkless.stroke([(x, -0.2), (x, 0)], 0.04, coat.dark)
    pen.polygon("0.3,-0.5 0.72,-0.72 0.62,-0.42", coat.body)
    pen.blob("-0.4,-0.62 -0.2,-0.6 0.25,-0.6 0.42,-0.42 0.2,-0.16 -0.2,-0.16 -0.4,-0.36", coat.body)
    pen.disc((-0.28, -0.72), 0.24, coat.body)
    pen.inkless.polygon("-0.48,-0.8 -0.74,-0.7 -0.48,-0.62", "#e89a1c")
    pen.inkless.disc((-0.34, -0.76), 0.05, coat.dark)
    pen.inkless.ellipse((0.08, -0.4), (0.2, 0.11), coat.light, 0.3)


def _fish(pen: Pen, coat: Coat) -> None:
    pen = pen.at((0, 0), scale=0.72)
    pen.polygon("0.3,-0.5 0.78,-0.86 0.66,-0.5 0.78,-0.14", coat.body)
    pen.polygon("-0.2,-0.76 0.12,-1 0.2,-0.72", coat.body)
    pen.ellipse((-0.1, -0.5), (0.56, 0.32), coat.body)
    pen.inkless.disc((-0.4, -0.56), 0.07, coat.dark)
    pen.inkless.stroke("-0.2,-0.72 -0.12,-0.5 -0.2,-0.28", 0.05, coat.light)


def _ball(pen: Pen, coat: Coat) -> None:
    pen.disc((0, -0.4), 0.4, coat.body)
    pen.inkless.ellipse((-0.14, -0.56), (0.1, 0.07), coat.light, -0.6)


def _umbrella(pen: Pen, coat: Coat) -> None:
    pen = pen.at((0, 0), scale=0.88)
    pen.inkless.stroke("0,-0.6 0,-0.08 0.06,0 0.14,-0.04", 0.05, coat.dark)
    rim = "0.62,-0.5 0.5,-0.56 0.36,-0.5 0.2,-0.56 0,-0.5"
    dome = "0,-1 0.26,-0.95 0.5,-0.78 0.6,-0.6"
    pen.polygon(mirrored(f"{dome} {rim}"), coat.body)


def _mushroom(pen: Pen, coat: Coat) -> None:
    pen.blob(mirrored("0,-0.5 0.14,-0.46 0.17,-0.04 0,0"), "#d3b98a")
    pen.polygon(mirrored("0,-1 0.24,-0.95 0.44,-0.78 0.52,-0.48 0.34,-0.42 0,-0.4"), coat.body)
    for x, y, radius in ((-0.22, -0.64, 0.07), (0.06, -0.8, 0.07), (0.26, -0.58, 0.06)):
        pen.inkless.disc((x, y), radius, coat.light)


def _house(pen: Pen, coat: Coat) -> None:
    pen.polygon("-0.42,0 -0.42,-0.56 0.42,-0.56 0.42,0", coat.body)
    pen.polygon("-0.56,-0.54 0,-1 0.56,-0.54", coat.body)
    pen.inkless.stroke("-0.46,-0.55 0.46,-0.55", 0.025, coat.dark)
    pen.inkless.polygon("-0.1,0 -0.1,-0.32 0.1,-0.32 0.1,0", coat.dark)
    for x in (-0.34, 0.18):
        pen.inkless.at((x, 0)).polygon("0,-0.46 0.16,-0.46 0.16,-0.3 0,-0.3", coat.light)


def _car(pen: Pen, coat: Coat) -> None:
    pen = pen.at((0, 0), scale=0.76)
    pen.polygon("-0.34,-0.4 -0.22,-0.66 0.24,-0.66 0.4,-0.4", coat.body)
    pen.polygon("-0.7,-0.12 -0.7,-0.36 -0.6,-0.42 0.6,-0.42 0.7,-0.34 0.7,-0.12", coat.body)
    pen.inkless.polygon("-0.24,-0.42 -0.16,-0.59 0,-0.59 0,-0.42", coat.light)
    pen.inkless.polygon("0.06,-0.42 0.06,-0.59 0.2,-0.59 0.3,-0.42", coat.light)
    for x in (-0.38, 0.38):
        pen.inkless.disc((x, -0.12), 0.14, coat.dark)
        pen.inkless.disc((x, -0.12), 0.06, "#b9b9bf")


def _star(pen: Pen, coat: Coat) -> None:
    pen.star((0, -0.48), 0.54, coat.body)
    for x in (-0.11, 0.11):
        pen.inkless.ellipse((x, -0.5), (0.035, 0.06), coat.dark)


Painter = Callable[[Pen, Coat], None]

PAINTERS: Final[Mapping[str, Painter]] = {
    "cat": _cat,
    "rabbit": _rabbit,
    "bird": _bird,
    "fish": _fish,
    "ball": _ball,
    "umbrella": _umbrella,
    "mushroom": _mushroom,
    "house": _house,
    "car": _car,
    "star": _star,
}
"""By kind."""
