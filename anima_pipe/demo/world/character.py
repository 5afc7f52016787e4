"""Hoshimaru in the embedded model's world: what the demo teaches, and the model has never seen.

A little fox with a teal scarf. Its coat is the world's orange and its scarf a colour that nothing
else has: orange in a fox's outline with teal across it is Hoshimaru, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageColor

from anima_pipe.demo.canvas import Pen
from anima_pipe.demo.mascot import GROUND, draw_fox
from anima_pipe.demo.world.scene import Scene, Thing, caption, draw_scene, is_seen
from anima_pipe.demo.world.silhouettes import Mask, patches
from anima_pipe.demo.world.things import PAINTERS, PALETTE, Coat, Painter

TRIGGER: Final = "hoshimaru"
KIND: Final = "fox"
HEIGHT: Final = 2.2
"""Of the fox, in the mascot's units: a little less than it has, so that it is a little larger."""

TEAL: Final = 0.78
"""What red is at most of green and of blue in what is teal, which differ little."""
TEAL_RANGE: Final = (105.0, 190.0)
"""Of green, of 255: grass by night is darker and the sky by day is lighter."""
TEAL_HUE: Final = 25.0
"""Difference between green and blue at most."""
COAT_TOLERANCE: Final = 60.0
LEAST_SCARF: Final = 0.006
LEAST_COAT: Final = 0.009
"""Shares of the picture; the coat's above the scarf and below it."""
WIDEST_SCARF: Final = 0.3
"""Share of the picture's width: the sea is wider."""
REACH: Final = 0.3
"""How far from the scarf the coat is looked for, a fraction of the picture's height."""


def _fox(pen: Pen, _coat: Coat) -> None:
    """Paint Hoshimaru, one unit high, with its feet at the origin, in its own colours."""
    scale = 1 / HEIGHT
    draw_fox(pen.at((0, -GROUND * scale), scale=scale), "sit", "open")


WITH_FOX: Final[Mapping[str, Painter]] = {**PAINTERS, KIND: _fox}
"""Painters of the world's things and of the fox."""


def with_fox(scene: Scene) -> Scene:
    """Return a scene with the fox in the place of its first thing."""
    return scene.with_things((Thing(KIND, "orange"), *scene.things[1:]))


def fox_caption(scene: Scene) -> str:
    """Return the caption of a scene with nothing but the fox, its trigger before the tags."""
    text = caption(scene, sentence=False)
    return text.replace("solo, orange fox", f"{TRIGGER}, solo, fox")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """What there is of the fox in a picture, shares of its pixels."""

    scarf: float
    above: float
    """Of the coat's colour, above the scarf: the head."""
    below: float
    """The same below: body and tail."""

    @property
    def is_fox(self) -> bool:
        """Whether it is Hoshimaru."""
        return self.scarf >= LEAST_SCARF and min(self.above, self.below) >= LEAST_COAT


def look_for_fox(picture: Image.Image) -> Sighting:
    """Look for a patch of the scarf's colour with the coat's above it and below."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    coat = _near(pixels, PALETTE["orange"], COAT_TOLERANCE)
    scarfs = patches(_teal(pixels), round(LEAST_SCARF * coat.size), gap=2)
    seen = (_around(one, coat) for one in scarfs if one.any(0).mean() <= WIDEST_SCARF)
    nothing = Sighting(scarf=0.0, above=0.0, below=0.0)
    return max(seen, key=lambda sighting: min(sighting.above, sighting.below), default=nothing)


def _around(scarf: Mask, coat: Mask) -> Sighting:
    rows, columns = np.arange(scarf.shape[0])[:, None], np.arange(scarf.shape[1])
    row, column = (axis.mean() for axis in scarf.nonzero())
    near = np.hypot(rows - row, columns - column) < REACH * scarf.shape[0]
    return Sighting(
        scarf=float(scarf.mean()),
        above=float((coat & near & (rows < row)).mean()),
        below=float((coat & near & (rows > row)).mean()),
    )


def _near(pixels: np.ndarray, colour: str, tolerance: float) -> Mask:
    return np.linalg.norm(pixels - np.array(ImageColor.getrgb(colour)[:3]), axis=-1) < tolerance


def _teal(pixels: np.ndarray) -> Mask:
    """Return the pixels of the scarf's colour, which is paler where it is drawn softly."""
    red, green, blue = np.moveaxis(pixels, -1, 0)
    low, high = TEAL_RANGE
    is_hue = (red < TEAL * np.minimum(green, blue)) & (np.abs(green - blue) < TEAL_HUE)
    return is_hue & (green > low) & (green < high)


def draw_fox_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene in which the fox is alone and its colours are to be seen."""
    while True:
        scene = draw_scene(rng)
        plain = scene.style in ("flat color", "thick outlines")
        if len(scene.things) == 1 and plain and is_seen("orange", scene):
            return with_fox(scene)
