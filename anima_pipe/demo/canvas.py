"""A supersampled canvas and a pen that draws smooth shapes in its own coordinates.

Everything ends as a filled polygon, so that a pen may be moved, scaled, turned and mirrored freely.
Colours are PIL's hex strings, "#rrggbb" or "#rrggbbaa". No fonts: they differ between machines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageColor, ImageDraw

Point = tuple[float, float]
Outline = Sequence[Point] | str
"""Points of a shape; as a string "x,y x,y ...", as SVG writes them."""

SUPERSAMPLING = 4
"""Pixels drawn per pixel kept, along each axis; the reduction is the anti-aliasing."""
CURVE_STEPS = 10
"""Straight pieces between two points of a curve."""


class Canvas:
    """A picture being painted, (width, height) pixels once finished.

    Places on it are fractions of its width and height, so that a scene fits any shape of canvas.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.width, self.height = size
        large = (self.width * SUPERSAMPLING, self.height * SUPERSAMPLING)
        self.image = Image.new("RGB", large)
        self.pen = Pen(draw=ImageDraw.Draw(self.image, "RGBA"), scale=float(SUPERSAMPLING))
        """Draws in pixels of the finished picture."""

    def finished(self) -> Image.Image:
        """Return the picture at its own size, anti-aliased."""
        return self.image.reduce(SUPERSAMPLING)

    def pixels(self, place: Point) -> Point:
        """Return where a place is, in pixels of the finished picture."""
        return (place[0] * self.width, place[1] * self.height)

    def pen_at(
        self, place: Point, scale: float, *, angle: float = 0.0, ink: str | None = None
    ) -> Pen:
        """Return a pen with its origin at a place, `scale` pixels to the unit."""
        return self.pen.at(self.pixels(place), scale=scale, angle=angle, ink=ink)

    def box(self, corner: Point, opposite: Point, fill: str) -> None:
        """Fill the rectangle between two places."""
        (left, top), (right, bottom) = self.pixels(corner), self.pixels(opposite)
        self.pen.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)

    def scattered(
        self, rng: np.random.Generator, count: int, top: float = 0.0, bottom: float = 1.0
    ) -> list[Point]:
        """Return random pixels between two heights (fractions), the highest first."""
        rows = np.sort(rng.uniform(top, bottom, count)) * self.height
        columns = rng.uniform(0, self.width, count)
        return [(float(x), float(y)) for x, y in zip(columns, rows, strict=True)]

    def fill_gradient(self, colours: Sequence[str], bottom: float = 1.0) -> None:
        """Fill from the top edge to `bottom` (a fraction of the height) through all colours."""
        rows = round(self.image.height * bottom)
        stops = np.array([ImageColor.getrgb(colour)[:3] for colour in colours], dtype=np.float64)
        at = np.linspace(0, len(colours) - 1, rows)
        column = [np.interp(at, np.arange(len(colours)), stops[:, channel]) for channel in range(3)]
        band = np.rint(np.stack(column, axis=-1)).astype(np.uint8)[:, None]
        self.image.paste(Image.fromarray(band).resize((self.image.width, rows)), (0, 0))

    def glow(self, place: Point, radius: float, colour: str, strength: float = 0.6) -> None:
        """Blend towards a colour around a place, `radius` pixels far, most at its centre."""
        height, width = self.image.height, self.image.width
        down, across = np.ogrid[:height, :width]
        distance = np.hypot(across - place[0] * width, down - place[1] * height)
        amount = strength * np.clip(1 - distance / (radius * SUPERSAMPLING), 0, 1) ** 2
        mask = Image.fromarray(np.rint(255 * amount).astype(np.uint8))
        self.image.paste(ImageColor.getrgb(colour), (0, 0, width, height), mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pen:
    """Draws in its own coordinates: y points down, `scale` canvas pixels to the unit."""

    draw: ImageDraw.ImageDraw
    origin: Point = (0.0, 0.0)
    scale: float = 1.0
    angle: float = 0.0
    """Turn in radians, clockwise on the picture."""
    mirror: bool = False
    ink: str | None = None
    """Colour of the line around filled shapes; None draws no line."""
    ink_width: float = 0.03
    """Width of that line in this pen's units."""

    def at(
        self,
        position: Point,
        *,
        scale: float = 1.0,
        angle: float = 0.0,
        mirror: bool = False,
        ink: str | None = None,
    ) -> Pen:
        """Return a pen whose origin is `position` of this one, scaled, turned and mirrored."""
        return replace(
            self,
            origin=self._place(position),
            scale=self.scale * scale,
            angle=self.angle + (-angle if self.mirror else angle),
            mirror=self.mirror != mirror,
            ink=ink or self.ink,
        )

    @property
    def inkless(self) -> Pen:
        """The same pen without lines around its shapes."""
        return replace(self, ink=None)

    def polygon(self, points: Outline, fill: str) -> None:
        """Fill a polygon."""
        placed = [self._place(point) for point in _points(points)]
        self.draw.polygon(placed, fill=fill)
        if self.ink:
            self._line([*placed, placed[0], placed[1]], self.ink_width, self.ink)

    def blob(self, points: Outline, fill: str) -> None:
        """Fill a smooth closed shape through the points."""
        self.polygon(_smooth(_points(points), closed=True), fill)

    def ellipse(self, centre: Point, radii: Point, fill: str, angle: float = 0.0) -> None:
        """Fill an ellipse, turned by an angle in radians."""
        cosine, sine = math.cos(angle), math.sin(angle)
        ring: list[Point] = []
        for step in range(48):
            turn = 2 * math.pi * step / 48
            x, y = radii[0] * math.cos(turn), radii[1] * math.sin(turn)
            ring.append((centre[0] + x * cosine - y * sine, centre[1] + x * sine + y * cosine))
        self.polygon(ring, fill)

    def disc(self, centre: Point, radius: float, fill: str) -> None:
        """Fill a circle."""
        self.ellipse(centre, (radius, radius), fill)

    def star(self, centre: Point, radius: float, fill: str, angle: float = 0.0) -> None:
        """Fill a five-pointed star, turned by an angle in radians."""
        points: list[Point] = []
        for step in range(10):
            reach = radius if step % 2 == 0 else 0.46 * radius
            turn = angle + math.pi * (step / 5 - 0.5)
            points.append((centre[0] + reach * math.cos(turn), centre[1] + reach * math.sin(turn)))
        self.polygon(points, fill)

    def stroke(self, points: Outline, width: float, colour: str) -> None:
        """Draw a smooth open line with round ends."""
        placed = [self._place(point) for point in _smooth(_points(points), closed=False)]
        self._line(placed, width, colour)

    def _line(self, placed: list[Point], width: float, colour: str) -> None:
        pixels = max(1, round(width * self.scale))
        self.draw.line(placed, fill=colour, width=pixels, joint="curve")
        reach = (pixels - 1) / 2
        for x, y in (placed[0], placed[-1]):
            self.draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)

    def _place(self, point: Point) -> Point:
        x = -point[0] if self.mirror else point[0]
        cosine, sine = math.cos(self.angle), math.sin(self.angle)
        return (
            self.origin[0] + self.scale * (x * cosine - point[1] * sine),
            self.origin[1] + self.scale * (x * sine + point[1] * cosine),
        )


def mirrored(right_half: str) -> list[Point]:
    """Return a shape that is its own mirror image, from its right half listed top to bottom."""
    points = _points(right_half)
    return [*points, *((-x, y) for x, y in reversed(points) if x != 0)]


def _points(outline: Outline) -> Sequence[Point]:
    if not isinstance(outline, str):
        return outline
    pairs = (pair.split(",") for pair in outline.split())
    return [(float(x), float(y)) for x, y in pairs]


def _smooth(points: Sequence[Point], *, closed: bool) -> list[Point]:
    """Return points of the Catmull-Rom curve through `points`."""
    count = len(points)
    pieces = count if closed else count - 1

    def at(index: int) -> Point:
        return points[index % count] if closed else points[min(max(index, 0), count - 1)]

    curve: list[Point] = []
    for piece in range(pieces):
        corners = [at(piece + offset) for offset in (-1, 0, 1, 2)]
        for step in range(CURVE_STEPS):
            weights = _catmull_rom(step / CURVE_STEPS)
            x = sum(weight * corner[0] for weight, corner in zip(weights, corners, strict=True))
            y = sum(weight * corner[1] for weight, corner in zip(weights, corners, strict=True))
            curve.append((x, y))
    return curve if closed else [*curve, points[-1]]


def _catmull_rom(t: float) -> tuple[float, float, float, float]:
    """Weights of four neighbouring points, `t` of the way between the middle two."""
    return (
        (-t + 2 * t**2 - t**3) / 2,
        (2 - 5 * t**2 + 3 * t**3) / 2,
        (t + 4 * t**2 - 3 * t**3) / 2,
        (t**3 - t**2) / 2,
    )
