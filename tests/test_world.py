"""The world that the embedded model is taught: captions say what pictures show, and a checker sees.

The checker is what tells whether the model draws what it was asked for: here it is held against
pictures that certainly do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from anima_pipe.demo.world.checker import check
from anima_pipe.demo.world.painting import paint
from anima_pipe.demo.world.scene import (
    KINDS,
    PLACES,
    STYLES,
    TIMES,
    WEATHERS,
    Scene,
    Thing,
    caption,
    draw_scene,
)
from anima_pipe.evaluation.world import score

SQUARE = (128, 128)
ONE = Scene(
    things=(Thing("cat", "red"),),
    side="left",
    place="meadow",
    time="day",
    weather="clear sky",
    style="flat color",
)


def _picture(scene: Scene, seed: int = 0) -> Image.Image:
    return paint(scene, SQUARE, np.random.default_rng(seed))


def _wrong(picture: Image.Image, scene: Scene) -> dict[str, str]:
    """Return what the checker finds instead of what was wanted, by attribute."""
    return {
        finding.attribute: finding.found
        for finding in check(picture, scene)
        if not finding.is_right
    }


def test_the_checker_finds_what_painted_pictures_show() -> None:
    rng = np.random.default_rng(3)
    wanted, right = Counter[str](), Counter[str]()
    for _ in range(80):
        scene = draw_scene(rng)
        for finding in check(paint(scene, SQUARE, rng), scene):
            subject = finding.attribute.split()[-1]
            wanted[subject] += 1
            right[subject] += finding.is_right

    assert right.total() >= 0.97 * wanted.total()
    assert all(right[subject] >= 0.9 * wanted[subject] for subject in wanted), (right, wanted)


@pytest.mark.parametrize(
    ("other", "attribute"),
    [
        ({"things": (Thing("house", "red"),)}, "thing 1 kind"),
        ({"things": (Thing("cat", "blue"),)}, "thing 1 colour"),
        ({"side": "right"}, "side"),
        ({"place": "beach"}, "place"),
        ({"time": "night"}, "time"),
        ({"weather": "cloudy"}, "weather"),
        ({"weather": "rain"}, "weather"),
        ({"weather": "snowing"}, "weather"),
        ({"style": "pastel colors"}, "style"),
        ({"style": "monochrome"}, "style"),
        ({"style": "thick outlines"}, "style"),
    ],
)
def test_the_checker_notices_what_is_other_than_asked(
    other: dict[str, object], attribute: str
) -> None:
    assert not _wrong(_picture(ONE), ONE)

    assert attribute in _wrong(_picture(replace(ONE, **other)), ONE)


def test_the_checker_tells_two_things_apart_and_counts_alike_ones() -> None:
    cat, ball = Thing("cat", "red"), Thing("ball", "blue")
    pair, swapped = replace(ONE, things=(cat, ball)), replace(ONE, things=(ball, cat))
    two, three = replace(ONE, things=(cat,) * 2), replace(ONE, things=(cat,) * 3)

    assert not _wrong(_picture(pair), pair)
    assert _wrong(_picture(swapped), pair).keys() >= {"thing 1 kind", "thing 2 colour"}
    assert not _wrong(_picture(three), three)
    assert _wrong(_picture(three), two)["number"] == "three"


def test_the_checker_finds_little_in_noise() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)

    assert score([Image.fromarray(noise)], [ONE]).share < 0.3


def test_every_name_of_a_scene_stands_in_its_caption() -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        scene = draw_scene(rng)
        text = caption(scene)
        named = {scene.place, scene.time, scene.weather, scene.style}
        named |= {thing.kind for thing in scene.things}
        if scene.style != "monochrome":
            named |= {thing.colour for thing in scene.things}
        assert all(name in text for name in named), text
        assert text.startswith(caption(scene, sentence=False))


def test_held_out_scenes_are_never_drawn_to_train_on() -> None:
    rng = np.random.default_rng(2)

    assert not any(draw_scene(rng).is_held_out for _ in range(300))
    assert all(draw_scene(rng, held_out=True).is_held_out for _ in range(30))


def test_a_scene_and_a_seed_make_one_picture() -> None:
    assert _picture(ONE, 5).tobytes() == _picture(ONE, 5).tobytes()
    assert _picture(ONE, 5).tobytes() != _picture(ONE, 6).tobytes()


def test_scenes_use_all_that_there_is() -> None:
    rng = np.random.default_rng(4)
    scenes = [draw_scene(rng) for _ in range(400)]

    assert {thing.kind for scene in scenes for thing in scene.things} == set(KINDS)
    assert {scene.place for scene in scenes} == set(PLACES)
    assert {scene.time for scene in scenes} == set(TIMES)
    assert {scene.weather for scene in scenes} == set(WEATHERS)
    assert {scene.style for scene in scenes} == set(STYLES)
