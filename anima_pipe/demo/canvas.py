"""A supersampled canvas and a pen that draws smooth shapes in its own coordinates.

Everything ends as a filled polygon, so that a pen may be moved, scaled, turned and mirrored freely.
Colours are PIL's hex strings, "#rrggbb" or "#rrggbbaa". No fonts: they differ between machines.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageColor, ImageDraw

Point = tuple[float, float]

SUPERSAMPLING = 4
"""Pixels drawn per pixel kept, along each axis; the reduction is the anti-aliasing."""
CURVE_STEPS = 10
"""Straight pieces between two points of a curve."""


class Canvas:
    """A picture being painted, (width, height) pixels once finished."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.width, self.height = size
        large = (self.width * SUPERSAMPLING, self.height * SUPERSAMPLING)
        self.image = Image.new("RGB", large)
        self.pen = Pen(draw=ImageDraw.Draw(self.image, "RGBA"), scale=float(SUPERSAMPLING))

    def finished(self) -> Image.Image:
        """The picture at its own size, anti-aliased."""
        return self.image.reduce(SUPERSAMPLING)

    def fill_gradient(self, colours: Sequence[str], bottom: float = 1.0) -> None:
        """Fill from the top edge to `bottom` (a fraction of the height) through all colours."""
        rows = round(self.image.height * bottom)
        stops = np.array([ImageColor.getrgb(colour)[:3] for colour in colours], dtype=np.float64)
        at = np.linspace(0, len(colours) - 1, rows)
        column = [np.interp(at, np.arange(len(colours)), stops[:, channel]) for channel in range(3)]
        band = np.rint(np.stack(column, axis=-1)).astype(np.uint8)[:, None]
        self.image.paste(Image.fromarray(band).resize((self.image.width, rows)), (0, 0))

    def glow(self, centre: Point, radius: float, colour: str, strength: float = 0.6) -> None:
        """Blend towards a colour, most at the centre (fractions of the size), radius in pixels."""
        height, width = self.image.height, self.image.width
        down, across = np.ogrid[:height, :width]
        distance = np.hypot(across - centre[0] * width, down - centre[1] * height)
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
    outline: str | None = field(default=None)
    """Colour of the line around filled shapes; None draws no line."""
    outline_width: float = 0.03
    """Width of that line in this pen's units."""

    def at(
        self,
        position: Point,
        *,
        scale: float = 1.0,
        angle: float = 0.0,
        mirror: bool = False,
        outline: str | None = None,
    ) -> Pen:
        """A pen whose origin is `position` of this one, scaled, turned and mirrored from there."""
        turn = -angle if self.mirror else angle
        return replace(
            self,
            origin=self._place(position),
            scale=self.scale * scale,
            angle=self.angle + turn,
            mirror=self.mirror != mirror,
            outline=outline or self.outline,
        )

    def polygon(self, points: Iterable[Point], fill: str) -> None:
        """A filled polygon, with this pen's outline."""
        placed = [self._place(point) for point in points]
        self.draw.polygon(placed, fill=fill)
        if self.outline:
            self._line([*placed, placed[0], placed[1]], self.outline_width, self.outline)

    def blob(self, points: Sequence[Point], fill: str) -> None:
        """A smooth closed shape through the points."""
        self.polygon(_smooth(points, closed=True), fill)

    def ellipse(self, centre: Point, radii: Point, fill: str, angle: float = 0.0) -> None:
        """An ellipse, turned by an angle in radians."""
        cosine, sine = math.cos(angle), math.sin(angle)
        ring: list[Point] = []
        for step in range(48):
            turn = 2 * math.pi * step / 48
            x, y = radii[0] * math.cos(turn), radii[1] * math.sin(turn)
            ring.append((centre[0] + x * cosine - y * sine, centre[1] + x * sine + y * cosine))
        self.polygon(ring, fill)

    def disc(self, centre: Point, radius: float, fill: str) -> None:
        """A circle, filled."""
        self.ellipse(centre, (radius, radius), fill)

    def star(self, centre: Point, radius: float, fill: str, angle: float = 0.0) -> None:
        """A five-pointed star."""
        points: list[Point] = []
        for step in range(10):
            reach = radius if step % 2 == 0 else 0.46 * radius
            turn = angle + math.pi * (step / 5 - 0.5)
            points.append((centre[0] + reach * math.cos(turn), centre[1] + reach * math.sin(turn)))
        self.polygon(points, fill)

    def stroke(self, points: Sequence[Point], width: float, colour: str) -> None:
        """A smooth open line with round ends."""
        self._line([self._place(point) for point in _smooth(points, closed=False)], width, colour)

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


def _smooth(points: Sequence[Point], *, closed: bool) -> list[Point]:
    """Points of the Catmull-Rom curve through `points`."""
    count = len(points)
    pieces = count if closed else count - 1

    def at(index: int) -> Point:
        return points[index % count] if closed else points[min(max(index, 0), count - 1)]

    curve: list[Point] = []
    for piece in range(pieces):
        before, start, end, after = (at(piece + offset) for offset in (-1, 0, 1, 2))
        for step in range(CURVE_STEPS):
            t = step / CURVE_STEPS
            weights = (
                (-t + 2 * t**2 - t**3) / 2,
                (2 - 5 * t**2 + 3 * t**3) / 2,
                (t + 4 * t**2 - 3 * t**3) / 2,
                (t**3 - t**2) / 2,
            )
            corners = (before, start, end, after)
            curve.append(
                (
                    sum(w * x for w, (x, _) in zip(weights, corners, strict=True)),
                    sum(w * y for w, (_, y) in zip(weights, corners, strict=True)),
                )
            )
    return curve if closed else [*curve, points[-1]]
