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
from anima_pipe.demo.mascot import GROUND, ORANGE, draw_fox
from anima_pipe.demo.world.scene import Scene, Thing, caption, draw_scene, is_seen
from anima_pipe.demo.world.silhouettes import Mask, closed, patches
from anima_pipe.demo.world.things import PAINTERS, PALETTE, Coat, Painter

TRIGGER: Final = "hoshimaru"
KIND: Final = "fox"
HEIGHT: Final = 2.2
"""Of the fox, in the mascot's units: a little less than it has, so that it is a little larger."""

SCARF_TOLERANCE: Final = 48.0
"""Distance in RGB up to which a pixel is of the scarf; green and blue things are further away."""
COAT_TOLERANCE: Final = 60.0
LEAST_COAT: Final = 0.012
"""Share of the picture."""
SCARF_SHARES: Final = (0.06, 1.2)
"""Of the scarf's pixels over the coat's."""


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
    """What there is of the fox in a picture, in pixels."""

    coat: int
    scarf: int

    @property
    def is_fox(self) -> bool:
        """Whether it is Hoshimaru."""
        low, high = SCARF_SHARES
        return bool(self.coat) and low <= self.scarf / self.coat <= high


def look_for_fox(picture: Image.Image) -> Sighting:
    """Look for a patch of the coat's colour with the scarf's across it."""
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    coat = _near(pixels, PALETTE["orange"], COAT_TOLERANCE)
    scarf = _near(pixels, ORANGE.scarf, SCARF_TOLERANCE)
    best = Sighting(coat=0, scarf=0)
    for patch in patches(coat | scarf, round(LEAST_COAT * coat.size), gap=2):
        seen = _seen(patch, coat, scarf)
        if seen.scarf > best.scarf:
            best = seen
    return best


def _seen(patch: Mask, coat: Mask, scarf: Mask) -> Sighting:
    whole = closed(patch)
    return Sighting(coat=int((coat & whole).sum()), scarf=int((scarf & whole).sum()))


def _near(pixels: np.ndarray, colour: str, tolerance: float) -> Mask:
    return np.linalg.norm(pixels - np.array(ImageColor.getrgb(colour)[:3]), axis=-1) < tolerance


def draw_fox_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene in which the fox is alone and its colours are to be seen."""
    while True:
        scene = draw_scene(rng)
        plain = scene.style in ("flat color", "thick outlines")
        if len(scene.things) == 1 and plain and is_seen("orange", scene):
            return with_fox(scene)
