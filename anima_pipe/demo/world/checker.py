"""Does a picture show what its prompt named? By the world's own rules, nothing learned.

The time of day is told by the colour of the sky, the place by that of the ground, the weather by
what is in the sky, the style by the palette, and things by `silhouettes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, product
from typing import Final

import numpy as np
from PIL import Image, ImageColor, ImageFilter

from anima_pipe.demo.world.painting import PASTEL, columns
from anima_pipe.demo.world.places import DULL, GROUNDS, SKIES, lit
from anima_pipe.demo.world.scene import NUMBERS, PLACES, TIMES, Scene
from anima_pipe.demo.world.silhouettes import Found, find_things

COLOURLESS: Final = 4.0
"""Mean difference between a pixel's largest and smallest channel, below which a picture is grey."""
DARKEST_PASTEL: Final = 108.0
"""What the smallest channel of nearly all pixels is above in pastel colours."""
RINGS: Final = range(1, 7)
"""Distances from a thing, in pixels, at which its line and what is beyond are looked for."""
OF_THE_LINE: Final = 3
"""So many of them may be the line's."""
RIM: Final = 0.87
"""Luminance of the line, over that of the thing and of what is around it, below which there is
one."""
GLOW: Final = 8.0
"""Of 255."""
LUMINANCE: Final = np.array((0.299, 0.587, 0.114), np.float32)
SKY: Final = 0.29
"""Share of the picture's height in which there is nothing but the sky."""
CLOUDY: Final = 0.13
"""Share of the sky that is not its own colour, above which there are clouds: a sun is smaller."""
REACH: Final = 0.15
"""How far from its column a thing may stand, a fraction of the width."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a prompt named."""

    attribute: str
    wanted: str
    found: str

    @property
    def is_right(self) -> bool:
        """Whether the picture shows it."""
        return self.wanted == self.found


def check(picture: Image.Image, scene: Scene) -> list[Finding]:
    """Look for everything that a scene's caption names, in an RGB picture of any size.

    In a grey picture neither colours nor, by them, place, time and weather can be told: they are
    left out where the scene is monochrome.
    """
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    style = _style(pixels)
    if style == "pastel colors":
        pixels = _without_pastel(pixels)
    things = find_things(pixels, grey=style == "monochrome")
    if style == "flat color" and things and _has_rims(pixels, things[0]):
        style = "thick outlines"
    findings = [Finding(attribute="style", wanted=scene.style, found=style)]
    if scene.style != "monochrome":
        findings += _surroundings(pixels, scene)
    return findings + _things(things, scene)


def _style(pixels: np.ndarray) -> str:
    chroma = (pixels.max(-1) - pixels.min(-1)).mean()
    if chroma < COLOURLESS:
        return "monochrome"
    if np.percentile(pixels.min(-1), 2) > DARKEST_PASTEL:
        return "pastel colors"
    return "flat color"


def _without_pastel(pixels: np.ndarray) -> np.ndarray:
    white = np.array(ImageColor.getrgb(PASTEL)[:3], np.float32)
    return np.clip(2 * pixels - white, 0, 255)


def _surroundings(pixels: np.ndarray, scene: Scene) -> list[Finding]:
    height = pixels.shape[0]
    sky = np.median(pixels[: round(0.06 * height)].reshape(-1, 3), axis=0)
    ground = np.median(pixels[round(0.93 * height) :].reshape(-1, 3), axis=0)
    best = min(
        product(PLACES, TIMES, (False, True)),
        key=lambda guess: _distance(sky, ground, *guess),
    )
    place, time, dull = best
    return [
        Finding(attribute="place", wanted=scene.place, found=place),
        Finding(attribute="time", wanted=scene.time, found=time),
        Finding(attribute="weather", wanted=scene.weather, found=_weather(pixels, time, dull)),
    ]


def _distance(sky: np.ndarray, ground: np.ndarray, place: str, time: str, dull: bool) -> float:
    own_sky = ImageColor.getrgb((DULL if dull else SKIES)[time][0])[:3]
    own_ground = ImageColor.getrgb(lit(GROUNDS[place], time))[:3]
    return float(np.linalg.norm(sky - own_sky) + np.linalg.norm(ground - own_ground))


def _weather(pixels: np.ndarray, time: str, dull: bool) -> str:
    height = pixels.shape[0]
    if dull:
        return _falling(pixels)
    rows = round(SKY * height)
    ends = [np.array(ImageColor.getrgb(colour)[:3], np.float32) for colour in SKIES[time]]
    # As `places.paint_sky` paints the sky, down to the horizon.
    way = (np.arange(rows) / (0.61 * height))[:, None, None]
    own = ends[0] * (1 - way) + ends[1] * way
    other = np.linalg.norm(pixels[:rows] - own, axis=-1) > 48
    return "cloudy" if other.mean() > CLOUDY else "clear sky"


def _falling(pixels: np.ndarray) -> str:
    """Tell streaks from flakes: the former are longer than the latter are wide."""
    grey = Image.fromarray(np.uint8(pixels @ LUMINANCE))
    smooth = np.asarray(grey.filter(ImageFilter.MedianFilter(9)), np.float32)
    sky = round(SKY * pixels.shape[0])
    specks = (np.asarray(grey, np.float32) - smooth)[:sky] > 14
    below = (specks[4:] & specks[:-4]).sum()
    beside = (specks[:, 2:] & specks[:, :-2]).sum()
    return "rain" if below > beside else "snowing"


def _has_rims(pixels: np.ndarray, thing: Found) -> bool:
    """Tell whether there is a line around a thing that is darker than both its sides."""
    grey = pixels @ LUMINANCE
    masks = [thing.patch, *(_grown(thing.patch, reach) for reach in RINGS)]
    rings = [np.median(grey[outer & ~inner]) for inner, outer in pairwise(masks)]
    line, around = min(rings[:OF_THE_LINE]), max(rings[OF_THE_LINE:])
    # A little light on all, or the darkest things would have lines by the smallest difference.
    return bool(line + GLOW < RIM * (min(np.median(grey[thing.patch]), around) + GLOW))


def _grown(patch: np.ndarray, reach: int) -> np.ndarray:
    image = Image.fromarray(np.uint8(patch) * 255).filter(ImageFilter.MaxFilter(2 * reach + 1))
    return np.asarray(image) > 0


def _things(found: list[Found], scene: Scene) -> list[Finding]:
    findings: list[Finding] = []
    for number, (thing, column) in enumerate(zip(scene.things, columns(scene), strict=True)):
        at = _nearest(found, column)
        label = f"thing {number + 1}"
        kind, colour = (at.kind, at.colour) if at else ("", "")
        findings.append(Finding(attribute=f"{label} kind", wanted=thing.kind, found=kind))
        if scene.style != "monochrome":
            findings.append(Finding(attribute=f"{label} colour", wanted=thing.colour, found=colour))
    if len(scene.things) == 1:
        side = _side(found[0].centre) if found else ""
        findings.append(Finding(attribute="side", wanted=scene.side, found=side))
    if scene.is_row:
        alike = sum(one.kind == scene.things[0].kind for one in found)
        number = NUMBERS.get(alike, str(alike))
        wanted = NUMBERS[len(scene.things)]
        findings.append(Finding(attribute="number", wanted=wanted, found=number))
    return findings


def _nearest(found: list[Found], column: float) -> Found | None:
    """Return what stands in a column, a fraction of the width, if anything does."""
    near = [one for one in found if abs(one.centre - column) <= REACH]
    return min(near, key=lambda one: abs(one.centre - column), default=None)


def _side(centre: float) -> str:
    return "left" if centre < 0.375 else "right" if centre > 0.625 else "center"
