"""The table of demo pictures: name, size, what paints it, and its caption.

Captions follow Anima's habit: quality and safety tags, count, character, then general tags; some
have a sentence behind them, several of those in other languages; one picture has no caption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anima_pipe.demo import daylight, lamplight
from anima_pipe.demo.canvas import Canvas

SQUARE = (320, 320)
WIDE = (360, 280)
HIGH = (280, 360)
WIDEST = (400, 240)
HIGHEST = (240, 400)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of the demo."""

    name: str
    """File name with its suffix, which is also its format."""
    size: tuple[int, int]
    """(width, height) in pixels."""
    paint: Callable[[Canvas, np.random.Generator], None]
    caption: str


def _tagged(tags: str, sentence: str = "") -> str:
    caption = f"masterpiece, best quality, score_7, safe, no humans, {tags}"
    return f"{caption}. {sentence}" if sentence else caption


def _fox(tags: str, sentence: str = "") -> str:
    return _tagged(f"hoshimaru, solo, fox, star mark, teal scarf, {tags}", sentence)


# fmt: off
PICTURES = (
    Picture("01_meadow.png", SQUARE, daylight.meadow, _fox(
            "sitting, smile, closed eyes, meadow, flowers, hills, tree, sun, morning, blue sky")),
    Picture("02_full_moon.png", HIGH, lamplight.full_moon, _fox(
            "from behind, sitting, looking up, full moon, night, starry sky, hills",
            "A little fox looks up at the full moon.")),
    Picture("03_seaside.jpg", WIDEST, daylight.seaside, _fox(
            "sitting, one eye closed, beach, ocean, sunset, orange sky, horizon")),
    Picture("04_snow_village.png", WIDE, daylight.snow_village, _fox(
            "walking, snow, snowing, winter, village, house, pine tree",
            "Hoshimaru walks home through the falling snow.")),
    Picture("05_umbrella.webp", HIGH, daylight.umbrella, _fox(
            "standing, holding umbrella, red umbrella, rain, puddle, cloudy sky")),
    Picture("06_blossoms.png", SQUARE, daylight.blossoms, _fox(
            "sitting, smile, cherry blossoms, falling petals, spring \\(season\\), day",
            "満開の桜の下で、星丸が目を細めて笑っている。")),
    Picture("07_autumn_forest.jpg", WIDE, daylight.autumn_forest, _fox(
            "walking, smile, autumn leaves, autumn, forest, falling leaves, orange theme")),
    Picture("08_boat.png", WIDEST, daylight.boat, _fox(
            "waving, smile, sailboat, ocean, waves, cloud, day",
            "The fox waves from a small wooden boat with a red sail.")),
    Picture("09_balloon.png", HIGHEST, daylight.balloon, _fox(
            "peeking, smile, hot air balloon, sky, cloud, hills, flying")),
    Picture("10_lighthouse.jpg", HIGHEST, daylight.lighthouse, _fox(
            "from behind, sitting, lighthouse, cliff, ocean, sunset",
            "Un petit renard regarde la mer près du phare.")),
    Picture("11_desert.png", WIDE, daylight.desert, _fox(
            "waving, one eye closed, desert, cactus, dune, sun, day")),
    Picture("12_lantern_street.webp", WIDEST, lamplight.lantern_street, _fox(
            "waving, smile, night, street, house, paper lantern, string of lights, festival")),
    Picture("13_reading.png", SQUARE, lamplight.reading, _fox(
            "sitting, reading, book, lamp, bookshelf, indoors, warm light",
            "Ein kleiner Fuchs liest abends unter der Lampe.")),
    Picture("14_shooting_star.png", WIDEST, lamplight.shooting_star, _fox(
            "sitting, surprised, open mouth, shooting star, night, starry sky, hills")),
    Picture("15_mushrooms.webp", SQUARE, daylight.mushrooms, _fox(
            "sitting, closed eyes, sleepy, mushroom, giant mushroom, forest, light particles")),
    Picture("16_sunflowers.jpg", HIGH, daylight.sunflowers, _fox(
            "sitting, smile, sunflower, flower field, summer, blue sky, day")),
    Picture("17_rainbow.png", WIDE, daylight.rainbow, _fox(
            "from behind, sitting, rainbow, cloud, hill, after rain",
            "비가 그친 언덕에서 무지개를 보는 작은 여우.")),
    Picture("18_lake.jpg", WIDE, daylight.lake, _fox(
            "sitting, lake, mountain, pine tree, water, reflection, day")),
    Picture("19_portrait_teal.png", SQUARE, lamplight.portrait_teal, _fox(
            "portrait, close-up, looking at viewer, simple background, teal background")),
    Picture("20_portrait_pink.png", HIGH, lamplight.portrait_pink, _fox(
            "waving, smile, closed eyes, looking at viewer, pink background, petals")),
    Picture("21_portrait_yellow.webp", WIDE, lamplight.portrait_yellow, _fox(
            "sleeping, curled up, closed eyes, simple background, yellow background")),
    Picture("22_on_the_moon.png", HIGH, lamplight.on_the_moon, _fox(
            "sleeping, curled up, crescent moon, night, starry sky, cloud, purple theme",
            "三日月の上で眠る小さな狐。")),
    Picture("23_kite.png", HIGHEST, daylight.kite, _fox(
            "waving, smile, kite, hill, cloud, blue sky, wind")),
    Picture("24_teacup.png", SQUARE, lamplight.teacup, _fox(
            "in cup, teacup, oversized object, smile, closed eyes, table",
            "A fox sits in a teacup painted with stars.")),
    Picture("25_fireworks.jpg", HIGHEST, lamplight.fireworks, _fox(
            "from behind, fireworks, night, river, summer festival")),
    Picture("26_white_coat.png", WIDE, daylight.white_coat, _tagged(
            "hoshimaru, solo, fox, star mark, white fur, red scarf, sitting, snow, pine tree, "
            "winter, forest")),
    Picture("27_two_foxes.png", WIDEST, lamplight.two_foxes, _tagged(
            "hoshimaru, duo, fox, star mark, teal scarf, white fur, red scarf, sitting, smile, "
            "sunset, hills")),
    Picture("28_leap.png", HIGH, daylight.leap, _fox(
            "jumping, surprised, open mouth, outstretched arms, pile of leaves, autumn, tree")),
    Picture("29_lily_pond.webp", SQUARE, daylight.lily_pond, _fox(
            "sitting, one eye closed, lily pad, lotus, pond, water",
            "Лисёнок сидит на листе кувшинки.")),
    Picture("30_window.png", SQUARE, lamplight.window, _fox(
            "peeking, sleepy, closed eyes, window, windowsill, rain, flower pot, indoors")),
    Picture("31_birthday.jpg", WIDE, lamplight.birthday, _fox(
            "waving, smile, birthday cake, candle, confetti, table, party",
            "小狐狸在生日蛋糕旁边挥手。")),
    Picture("32_torii.png", HIGH, lamplight.torii, _fox(
            "sitting, torii, shrine, paper lantern, mountain, dusk, evening")),
    Picture("33_valley.jpg", WIDE, daylight.valley, _tagged(
            "scenery, hills, mountain, house, tree, flowers, blue sky, day")),
    Picture("34_hills.webp", HIGHEST, daylight.valley, ""),
)
