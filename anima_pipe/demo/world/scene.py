"""What can be in a picture of the embedded model's world, and how a caption says it.

A scene is things of a kind and a colour, standing somewhere on one of a few places, at a time of
day, in some weather, drawn in some style. Everything that a caption names can be seen in the
picture, and `checker` finds it there again.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from PIL import ImageColor

from anima_pipe.demo.world.places import GROUNDS, lit
from anima_pipe.demo.world.things import PALETTE

KINDS: Final = (
    *("cat", "rabbit", "bird", "fish", "ball"),
    *("umbrella", "mushroom", "house", "car", "star"),
)
COLOURS: Final = tuple(PALETTE)
SIDES: Final = ("left", "center", "right")
PLACES: Final = tuple(GROUNDS)
TIMES: Final = ("day", "sunset", "night")
WEATHERS: Final = ("clear sky", "cloudy", "rain", "snowing")
STYLES: Final = ("flat color", "thick outlines", "pastel colors", "monochrome")

NUMBERS: Final = {2: "two", 3: "three"}
_ON_SIDES: Final = {"left": "on the left", "center": "in the center", "right": "on the right"}
_IN: Final = {"meadow": "in", "desert": "in"}
_WHEN: Final = {"day": "by day", "sunset": "at sunset", "night": "at night"}
QUALITY: Final = "masterpiece, best quality, score_7, safe"

_UNSEEN: Final = 90.0
"""Distance in RGB from the ground, of 255 each, below which a thing in a colour is hardly seen."""
_HELD_OUT_OF: Final = 12
"""One combination of so many of what, in which colour and where is never trained on."""


@dataclass(frozen=True, slots=True)
class Thing:
    """What stands in a picture."""

    kind: str
    colour: str

    @property
    def name(self) -> str:
        """As captions have it."""
        return f"{self.colour} {self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What one picture shows."""

    things: tuple[Thing, ...]
    """None; one; two unlike ones, from left to right; or two or three that are alike."""
    side: str = "center"
    """Where a single thing stands; others fill the width."""
    place: str
    time: str
    weather: str
    style: str

    @property
    def is_row(self) -> bool:
        """Whether its things are alike."""
        return len(self.things) > 1 and len(set(self.things)) == 1

    def with_things(self, things: tuple[Thing, ...]) -> Scene:
        """Return the same scene with other things."""
        return replace(self, things=things)

    @property
    def is_held_out(self) -> bool:
        """Whether no scene with one of these things in this place is trained on."""
        keys = (f"{thing.name} in {self.place}" for thing in self.things)
        return any(zlib.crc32(key.encode()) % _HELD_OUT_OF == 0 for key in keys)


def plural(kind: str) -> str:
    """Return the name of several."""
    return {"fish": "fish"}.get(kind, f"{kind}s")


def caption(scene: Scene, *, quality: bool = True, sentence: bool = True) -> str:
    """Return a scene's caption: tags in Anima's order, and a sentence behind them.

    Args:
        scene: What is to be seen.
        quality: Whether it begins with the tags of good quality.
        sentence: Whether the sentence is there.
    """
    tags = [QUALITY] * quality + ["no humans", *_thing_tags(scene)]
    tags += [scene.place, scene.time, scene.weather, scene.style]
    text = ", ".join(tags)
    return f"{text}. {_sentence(scene)}" if sentence else text


def _thing_tags(scene: Scene) -> list[str]:
    things = scene.things
    if not things:
        return ["scenery"]
    if len(things) == 1:
        return ["solo", _named(things[0], scene.style), _ON_SIDES[scene.side]]
    if scene.is_row:
        number, kind = NUMBERS[len(things)], plural(things[0].kind)
        return [f"{number} {kind}", _named(Thing(kind, things[0].colour), scene.style)]
    left, right = (_named(thing, scene.style) for thing in things)
    return [f"{left} on the left", f"{right} on the right"]


def _named(thing: Thing, style: str) -> str:
    """Return a thing's name: a picture without colours cannot tell which one was meant."""
    return thing.kind if style == "monochrome" else thing.name


def _sentence(scene: Scene) -> str:
    around = f"{_IN.get(scene.place, 'on')} the {scene.place} {_WHEN[scene.time]}"
    things = scene.things
    if not things:
        return f"An empty {scene.place} {_WHEN[scene.time]}."
    if len(things) == 1:
        return f"A {_named(things[0], scene.style)} is {_ON_SIDES[scene.side]} {around}."
    if scene.is_row:
        several = Thing(plural(things[0].kind), things[0].colour)
        return f"There are {NUMBERS[len(things)]} {_named(several, scene.style)} {around}."
    left, right = (_named(thing, scene.style) for thing in things)
    return f"A {left} is left of a {right} {around}."


def draw_scene(rng: np.random.Generator, *, held_out: bool = False) -> Scene:
    """Draw a scene, one that is trained on or one that is held out."""
    while True:
        scene = _any_scene(rng)
        if scene.is_held_out == held_out:
            return scene


def _any_scene(rng: np.random.Generator) -> Scene:
    style = STYLES[int(rng.choice(len(STYLES), p=(0.5, 0.2, 0.2, 0.1)))]
    count = int(rng.choice(4, p=(0.05, 0.55, 0.27, 0.13)))
    if not count and style == "thick outlines":
        style = "flat color"  # There is nothing to be outlined.
    empty = Scene(
        things=(),
        side=_one_of(rng, SIDES) if count == 1 else "center",
        place=_one_of(rng, PLACES),
        time=_one_of(rng, TIMES),
        weather=_one_of(rng, WEATHERS),
        style=style,
    )
    colours = [colour for colour in COLOURS if is_seen(colour, empty)]
    things = [Thing(_one_of(rng, KINDS), _one_of(rng, colours)) for _ in range(count)]
    # Two are unlike more often than not, three are alike.
    if count == 3 or (count == 2 and rng.random() < 0.4):
        things = things[:1] * count
    return empty.with_things(tuple(things))


def is_seen(colour: str, scene: Scene) -> bool:
    """Tell whether a thing in a colour would be seen well in a scene, and its outline too."""
    if (colour, scene.style) == ("black", "thick outlines"):
        return False
    if (colour, scene.weather) == ("white", "snowing"):
        return False
    own = ImageColor.getrgb(PALETTE[colour])[:3]
    ground = ImageColor.getrgb(lit(GROUNDS[scene.place], scene.time))[:3]
    return math.dist(own, ground) >= _UNSEEN


def _one_of(rng: np.random.Generator, names: tuple[str, ...] | list[str]) -> str:
    return names[int(rng.integers(len(names)))]
