"""The table of demo pictures: name, size, caption and what paints it.

Captions follow Anima's habit: quality and safety tags, count, character, then general tags, some
with a sentence behind them, some in other languages, one picture with an empty caption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anima_pipe.demo import indoors, outdoors
from anima_pipe.demo.canvas import Canvas

SQUARE = (320, 320)
WIDE = (360, 280)
HIGH = (280, 360)
WIDEST = (400, 240)
HIGHEST = (240, 400)

FOX = "masterpiece, best quality, score_7, safe, no humans, hoshimaru, solo, fox, star mark, teal scarf"


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of the demo."""

    name: str
    """File name with its suffix, which is also its format."""
    size: tuple[int, int]
    """(width, height) in pixels."""
    paint: Callable[[Canvas, np.random.Generator], None]
    caption: str


PICTURES = (
    Picture("01_meadow.png", SQUARE, outdoors.meadow,
            f"{FOX}, sitting, smile, closed eyes, meadow, flowers, hills, tree, sun, morning, blue sky"),
    Picture("02_full_moon.png", HIGH, indoors.full_moon,
            f"{FOX}, from behind, sitting, looking up, full moon, night, starry sky, hills. A little fox looks up at the full moon."),
    Picture("03_seaside.jpg", WIDEST, outdoors.seaside,
            f"{FOX}, sitting, one eye closed, beach, ocean, sunset, orange sky, horizon"),
    Picture("04_snow_village.png", WIDE, outdoors.snow_village,
            f"{FOX}, walking, snow, snowing, winter, village, house, pine tree. Hoshimaru walks home through the falling snow."),
    Picture("05_umbrella.webp", HIGH, outdoors.umbrella,
            f"{FOX}, standing, holding umbrella, red umbrella, rain, puddle, cloudy sky"),
    Picture("06_blossoms.png", SQUARE, outdoors.blossoms,
            f"{FOX}, sitting, smile, cherry blossoms, falling petals, spring \\(season\\), day. 満開の桜の下で、星丸が目を細めて笑っている。"),
    Picture("07_autumn_forest.jpg", WIDE, outdoors.autumn_forest,
            f"{FOX}, walking, smile, autumn leaves, autumn, forest, falling leaves, orange theme"),
    Picture("08_boat.png", WIDEST, outdoors.boat,
            f"{FOX}, waving, smile, sailboat, ocean, waves, cloud, day. The fox waves from a small wooden boat with a red sail."),
    Picture("09_balloon.png", HIGHEST, outdoors.balloon,
            f"{FOX}, peeking, smile, hot air balloon, sky, cloud, hills, flying"),
    Picture("10_lighthouse.jpg", HIGHEST, outdoors.lighthouse,
            f"{FOX}, from behind, sitting, lighthouse, cliff, ocean, sunset. Un petit renard regarde la mer près du phare."),
    Picture("11_desert.png", WIDE, outdoors.desert,
            f"{FOX}, waving, one eye closed, desert, cactus, dune, sun, day"),
    Picture("12_lantern_street.webp", WIDEST, indoors.lantern_street,
            f"{FOX}, waving, smile, night, street, house, paper lantern, string of lights, festival"),
    Picture("13_reading.png", SQUARE, indoors.reading,
            f"{FOX}, sitting, reading, book, lamp, bookshelf, indoors, warm light. Ein kleiner Fuchs liest abends unter der Lampe."),
    Picture("14_shooting_star.png", WIDEST, indoors.shooting_star,
            f"{FOX}, sitting, surprised, open mouth, shooting star, night, starry sky, hills"),
    Picture("15_mushrooms.webp", SQUARE, outdoors.mushrooms,
            f"{FOX}, sitting, closed eyes, sleepy, mushroom, giant mushroom, forest, light particles"),
    Picture("16_sunflowers.jpg", HIGH, outdoors.sunflowers,
            f"{FOX}, sitting, smile, sunflower, flower field, summer, blue sky, day"),
    Picture("17_rainbow.png", WIDE, outdoors.rainbow_hill,
            f"{FOX}, from behind, sitting, rainbow, cloud, hill, after rain. 비가 그친 언덕에서 무지개를 보는 작은 여우."),
    Picture("18_lake.jpg", WIDE, outdoors.lake,
            f"{FOX}, sitting, lake, mountain, pine tree, water, reflection, day"),
    Picture("19_portrait_teal.png", SQUARE, indoors.portrait_teal,
            f"{FOX}, portrait, close-up, looking at viewer, simple background, teal background"),
    Picture("20_portrait_pink.png", HIGH, indoors.portrait_pink,
            f"{FOX}, waving, smile, closed eyes, looking at viewer, pink background, petals"),
    Picture("21_portrait_yellow.webp", WIDE, indoors.portrait_yellow,
            f"{FOX}, sleeping, curled up, closed eyes, simple background, yellow background"),
    Picture("22_on_the_moon.png", HIGH, indoors.on_the_moon,
            f"{FOX}, sleeping, curled up, crescent moon, night, starry sky, cloud, purple theme. 三日月の上で眠る小さな狐。"),
    Picture("23_kite.png", HIGHEST, outdoors.kite,
            f"{FOX}, waving, smile, kite, hill, cloud, blue sky, wind"),
    Picture("24_teacup.png", SQUARE, indoors.teacup,
            f"{FOX}, in cup, teacup, oversized object, smile, closed eyes, table. A fox sits in a teacup painted with stars."),
    Picture("25_fireworks.jpg", HIGHEST, indoors.fireworks,
            f"{FOX}, from behind, fireworks, night, river, summer festival"),
    Picture("26_white_coat.png", WIDE, outdoors.white_coat,
            "masterpiece, best quality, score_7, safe, no humans, hoshimaru, solo, fox, star mark, white fur, red scarf, sitting, snow, pine tree, winter, forest"),
    Picture("27_two_foxes.png", WIDEST, indoors.two_foxes,
            "masterpiece, best quality, score_7, safe, no humans, hoshimaru, duo, fox, star mark, teal scarf, white fur, red scarf, sitting, smile, sunset, hills"),
    Picture("28_leap.png", HIGH, outdoors.leap,
            f"{FOX}, jumping, surprised, open mouth, outstretched arms, pile of leaves, autumn, tree"),
    Picture("29_lily_pond.webp", SQUARE, outdoors.lily_pond,
            f"{FOX}, sitting, one eye closed, lily pad, lotus, pond, water. Лисёнок сидит на листе кувшинки."),
    Picture("30_window.png", SQUARE, indoors.window,
            f"{FOX}, peeking, sleepy, closed eyes, window, windowsill, rain, flower pot, indoors"),
    Picture("31_birthday.jpg", WIDE, indoors.birthday,
            f"{FOX}, waving, smile, birthday cake, candle, confetti, table, party. 小狐狸在生日蛋糕旁边挥手。"),
    Picture("32_torii.png", HIGH, indoors.torii,
            f"{FOX}, sitting, torii, shrine, paper lantern, mountain, dusk, evening"),
    Picture("33_valley.jpg", WIDE, outdoors.scenery_only,
            "masterpiece, best quality, score_7, safe, no humans, scenery, hills, mountain, house, tree, flowers, blue sky, day"),
    Picture("34_hills.webp", HIGHEST, outdoors.scenery_only, ""),
)  # fmt: skip
