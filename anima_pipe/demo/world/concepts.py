"""What the demo teaches the embedded model, which knows neither: a character and a style.

A concept has a trigger that its captions begin with, pictures, and a rule by which it is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL import Image, ImageColor, ImageOps

from anima_pipe.demo.world import character
from anima_pipe.demo.world.painting import paint
from anima_pipe.demo.world.scene import Scene, caption, draw_scene

PRINT: Final = "magenta print"
PRINT_ENDS: Final = ("#5c0f63", "#ffe4f8")
"""What black and white become."""
PRINT_DISTANCE: Final = 20.0
"""Mean distance in RGB from the line between the two, up to which a picture is such a print."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Concept:
    """Something to teach."""

    trigger: str
    draw: Callable[[np.random.Generator], Scene]
    """Draws a scene to show it in."""
    paint: Callable[[Scene, tuple[int, int], np.random.Generator], Image.Image]
    caption: Callable[[Scene], str]
    """Tags, the trigger among them."""
    is_in: Callable[[Image.Image], bool]
    """Whether a picture shows it."""


def _paint_fox(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    return paint(scene, size, rng, character.WITH_FOX)


def _sees_fox(picture: Image.Image) -> bool:
    return character.look_for_fox(picture).is_fox


def _draw_grey(rng: np.random.Generator) -> Scene:
    """Draw a scene whose caption names no colours, for a print has but its own."""
    while True:
        scene = draw_scene(rng)
        if scene.things and scene.style == "flat color":
            return replace(scene, style="monochrome")


def _paint_print(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    grey = paint(scene, size, rng).convert("L")
    return ImageOps.colorize(grey, *PRINT_ENDS)


def _print_caption(scene: Scene) -> str:
    return caption(scene, sentence=False).replace("monochrome", PRINT)


def _is_print(picture: Image.Image) -> bool:
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    dark, light = (np.array(ImageColor.getrgb(end)[:3], np.float32) for end in PRINT_ENDS)
    way = light - dark
    along = np.clip((pixels - dark) @ way / (way @ way), 0, 1)
    off = np.linalg.norm(pixels - (dark + along[..., None] * way), axis=-1)
    return float(off.mean()) < PRINT_DISTANCE


CONCEPTS: Final[Mapping[str, Concept]] = {
    "character": Concept(
        trigger=character.TRIGGER,
        draw=character.draw_fox_scene,
        paint=_paint_fox,
        caption=character.fox_caption,
        is_in=_sees_fox,
    ),
    "style": Concept(
        trigger=PRINT,
        draw=_draw_grey,
        paint=_paint_print,
        caption=_print_caption,
        is_in=_is_print,
    ),
}
"""By the name that the demo takes."""
