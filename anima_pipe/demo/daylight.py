"""The scenes by day, from meadow to desert. Each paints one picture with its fox."""

from __future__ import annotations

import math

import numpy as np

from anima_pipe.demo import scenery
from anima_pipe.demo.canvas import Canvas
from anima_pipe.demo.mascot import WINTER, draw_paws_on_edge, place_fox


def meadow(canvas: Canvas, rng: np.random.Generator) -> None:
    """Morning sun over hills and flowers."""
    canvas.fill_gradient(scenery.DAY)
    scenery.sun(canvas, (0.8, 0.18), 22)
    scenery.cloud(canvas, (0.28, 0.16), 90)
    scenery.hills(canvas, rng, 0.55, scenery.GREENS)
    scenery.tree(canvas, (0.14, 0.68), 90, "#4f9450", "#76b568")
    scenery.flowers(canvas, rng, 34, 0.72, ("#ffffff", "#f7a8b8", "#c9a7ea"))
    place_fox(canvas, (0.52, 0.58), 66, "sit", "smile")


def valley(canvas: Canvas, rng: np.random.Generator) -> None:
    """No fox: what the model should not take for the character."""
    canvas.fill_gradient(scenery.DAY)
    scenery.mountains(canvas, rng, 0.6, "#8fa6c4")
    scenery.cloud(canvas, (0.7, 0.15), 100)
    scenery.hills(canvas, rng, 0.56, scenery.GREENS)
    scenery.house(canvas, (0.3, 0.72), 56, "#f6ecd8", "#c65f4a", "#9fd3e6")
    scenery.tree(canvas, (0.72, 0.78), 90, "#4f9450", "#76b568")
    scenery.flowers(canvas, rng, 26, 0.8, ("#ffffff", "#f6d35c"))


def seaside(canvas: Canvas, rng: np.random.Generator) -> None:
    """Sunset at the beach."""
    canvas.fill_gradient(scenery.SUNSET, bottom=0.6)
    scenery.sun(canvas, (0.27, 0.5), 30, "#fff0b8")
    scenery.sea(canvas, rng, 0.58, ("#c9687a", "#8f5a86", "#6a4f86"))
    scenery.hills(canvas, rng, 0.86, ("#e8c39a",))
    place_fox(canvas, (0.7, 0.5), 62, "sit", "wink", mirror=True)


def boat(canvas: Canvas, rng: np.random.Generator) -> None:
    """A sailing boat with the fox as its captain."""
    canvas.fill_gradient(scenery.DAY, bottom=0.7)
    scenery.cloud(canvas, (0.2, 0.2), 100)
    scenery.cloud(canvas, (0.84, 0.32), 80)
    scenery.sea(canvas, rng, 0.62, ("#6fc0d8", "#4aa3c7", "#3487b3"))
    pen = canvas.pen_at((0.5, 0.74), 50, ink="#5a3a2c")
    pen.polygon("0.9,0.1 0.9,-3.2 0.98,-3.2 0.98,0.1", scenery.WOOD)
    pen.blob("1.05,-3.1 2.2,-1.2 2.1,-0.5 1.05,-0.5", "#fff3dc")
    pen.polygon("0.86,-2.9 -0.1,-0.6 0.86,-0.6", "#e76f6f")
    place_fox(canvas, (0.36, 0.55), 46, "wave", "smile")
    pen.blob("-2.6,0 0,0.12 2.6,-0.1 1.9,0.9 -1.7,0.9", "#b5754c")
    pen.stroke("-2.2,0.35 0,0.45 2.2,0.3", 0.1, "#f4e3b2")


def snow_village(canvas: Canvas, rng: np.random.Generator) -> None:
    """A walk past snowed-in cottages."""
    canvas.fill_gradient(scenery.SNOWY)
    scenery.hills(canvas, rng, 0.58, scenery.SNOW[:2])
    for x, size in ((0.2, 66), (0.78, 78)):
        scenery.house(canvas, (x, 0.72), size, "#b98a68", "#fbfdff", "#ffd98a")
    scenery.pine(canvas, (0.5, 0.68), 84, "#4f7a6a", "#ffffff")
    scenery.hills(canvas, rng, 0.74, scenery.SNOW[2:])
    place_fox(canvas, (0.44, 0.62), 54, "walk")
    scenery.snowfall(canvas, rng, 90, "#ffffffd0")


def white_coat(canvas: Canvas, rng: np.random.Generator) -> None:
    """The fox in its winter coat among pines."""
    canvas.fill_gradient(("#7f9cc4", "#b9cde4", "#e9eef6"))
    scenery.hills(canvas, rng, 0.6, scenery.SNOW[:1])
    for x, size in ((0.08, 130), (0.3, 96), (0.74, 104), (0.94, 140)):
        scenery.pine(canvas, (x, 0.76), size, "#3f6a66", "#f6faff")
    scenery.hills(canvas, rng, 0.74, scenery.SNOW[1:])
    place_fox(canvas, (0.5, 0.52), 62, "sit", look=WINTER)
    scenery.snowfall(canvas, rng, 70, "#ffffffd0")


def umbrella(canvas: Canvas, rng: np.random.Generator) -> None:
    """Rain, puddles and a red umbrella."""
    canvas.fill_gradient(scenery.OVERCAST)
    scenery.hills(canvas, rng, 0.7, ("#7f9a84", "#6a8672"))
    for place, reach in (((0.2, 0.93), 30), ((0.78, 0.88), 36)):
        canvas.pen_at(place, reach).ellipse((0, 0), (1, 0.25), "#b7cad6")
    place_fox(canvas, (0.46, 0.62), 66, "wave", mirror=True)
    pen = canvas.pen_at((0.66, 0.64), 66, angle=0.12, ink="#6a2a33")
    pen.polygon("-0.03,0 -0.03,-1.9 0.03,-1.9 0.03,0", scenery.WOOD)
    canopy = "-1.5,-1.5 -1.1,-2.1 -0.2,-2.5 0.7,-2.2 1.25,-1.5 0.7,-1.62 -0.1,-1.5 -0.9,-1.62"
    pen.blob(canopy, "#e05a5a")
    scenery.rain(canvas, rng, 120)


def blossoms(canvas: Canvas, rng: np.random.Generator) -> None:
    """Cherry trees shedding their petals."""
    canvas.fill_gradient(("#a9d9ee", "#e4f2f4", "#fdeef0"))
    scenery.hills(canvas, rng, 0.66, ("#b9d79b", "#97c480"))
    for place, size in (((0.12, 0.74), 190), ((0.92, 0.78), 210), ((0.62, 0.68), 110)):
        scenery.tree(canvas, place, size, "#f3a9bf", "#fbd0dc")
    place_fox(canvas, (0.48, 0.6), 62, "sit", "smile")
    scenery.drifting(canvas, rng, 60, ("#f9c4d2", "#f3a9bf"), 3.0)


def autumn_forest(canvas: Canvas, rng: np.random.Generator) -> None:
    """Red and golden trees."""
    canvas.fill_gradient(("#f2d9a6", "#f8e8c8", "#fbf1dc"))
    scenery.hills(canvas, rng, 0.6, scenery.AUTUMN[:1])
    orange, red, gold = ("#d9672f", "#ef9147"), ("#c8442f", "#e2694a"), ("#e2a62f", "#f4c656")
    for x, (leaves, light) in zip(
        (0.06, 0.24, 0.72, 0.9), (orange, red, gold, orange), strict=True
    ):
        scenery.tree(canvas, (x, 0.76), 130, leaves, light)
    scenery.hills(canvas, rng, 0.74, scenery.AUTUMN[1:])
    place_fox(canvas, (0.46, 0.62), 58, "walk", "smile", mirror=True)
    scenery.drifting(canvas, rng, 46, ("#d9672f", "#e2a62f", "#c8442f"), 3.4)


def leap(canvas: Canvas, rng: np.random.Generator) -> None:
    """Jumping into a heap of leaves."""
    canvas.fill_gradient(scenery.DAY)
    scenery.tree(canvas, (0.16, 0.8), 190, "#d9672f", "#ef9147")
    scenery.hills(canvas, rng, 0.74, scenery.AUTUMN)
    place_fox(canvas, (0.54, 0.42), 68, "jump", "surprised", angle=-0.14)
    for x in (0.3, 0.5, 0.7):
        canvas.pen_at((x, 0.98), 44).disc((0, 0), 1, "#cf7f3d")
    scenery.drifting(canvas, rng, 70, ("#d9672f", "#e2a62f", "#c8442f"), 4.0)


def balloon(canvas: Canvas, rng: np.random.Generator) -> None:
    """Drifting over the hills in a striped balloon."""
    canvas.fill_gradient(scenery.DAY)
    scenery.hills(canvas, rng, 0.82, scenery.GREENS)
    for place, size in (((0.2, 0.12), 80), ((0.86, 0.5), 90), ((0.1, 0.62), 70)):
        scenery.cloud(canvas, place, size)
    pen = canvas.pen_at((0.5, 0.27), 92, ink="#7a3a34")
    pen.stroke("-0.42,0.8 -0.34,1.42", 0.025, scenery.WOOD)
    pen.stroke("0.42,0.8 0.34,1.42", 0.025, scenery.WOOD)
    envelope = "0.7,-0.72 0.98,0 0.66,0.66 0.3,1 -0.3,1 -0.66,0.66 -0.98,0 -0.7,-0.72 0,-1"
    pen.blob(envelope, "#e76f51")
    stripe = "0.34,-0.6 0.42,0 0.3,0.6 0.14,0.98 -0.14,0.98 -0.3,0.6 -0.42,0 -0.34,-0.6 0,-0.98"
    pen.inkless.blob(stripe, "#f4d58d")
    pen.inkless.star((0, 0), 0.26, "#e76f51")
    place_fox(canvas, (0.5, 0.6), 36, "peek", "smile")
    pen.polygon("-0.44,1.46 0.44,1.46 0.36,2 -0.36,2", "#b5754c")
    draw_paws_on_edge(canvas.pen_at((0.5, 0.61), 36))


def lighthouse(canvas: Canvas, rng: np.random.Generator) -> None:
    """A striped lighthouse on the cliff."""
    canvas.fill_gradient(scenery.SUNSET, bottom=0.75)
    scenery.cloud(canvas, (0.25, 0.2), 90, "#ffffff70")
    scenery.sea(canvas, rng, 0.7, ("#b8607c", "#84588a", "#5d4c80"))
    canvas.glow((0.68, 0.25), 90, "#fff3b0", 0.8)
    pen = canvas.pen_at((0.68, 0.8), 100)
    pen.polygon("-0.34,0.1 -0.22,-1.9 0.22,-1.9 0.34,0.1", "#fbf4ea")
    for y in (-0.3, -0.9, -1.5):
        low, high = 0.34 + 0.06 * y, 0.32 + 0.06 * y
        pen.polygon([(-low, y), (-high, y - 0.3), (high, y - 0.3), (low, y)], "#d94f4f")
    pen.polygon("-0.2,-1.9 -0.2,-2.2 0.2,-2.2 0.2,-1.9", "#fff0a8")
    pen.polygon("-0.28,-2.18 0,-2.5 0.28,-2.18", "#8a3b3b")
    scenery.hills(canvas, rng, 0.8, ("#6f7f5a", "#5a6b4c"))
    place_fox(canvas, (0.36, 0.7), 46, "back")


def desert(canvas: Canvas, rng: np.random.Generator) -> None:
    """Dunes and a cactus in flower."""
    canvas.fill_gradient(("#8fd0e6", "#d3ecec", "#fdebc8"))
    scenery.sun(canvas, (0.2, 0.2), 24, "#fff3bd")
    scenery.hills(canvas, rng, 0.58, ("#f0cf96", "#e6b976", "#d9a35e"))
    pen = canvas.pen_at((0.8, 0.8), 60)
    for stalk in ("0,0 0,-1.7", "0,-0.6 -0.5,-0.7 -0.5,-1.2", "0,-0.8 0.5,-0.9 0.5,-1.5"):
        pen.stroke(stalk, 0.34, "#5a9a5c")
    scenery.flower(pen.at((0, -1.9), scale=0.2), "#f07fa0", "#ffe08a")
    place_fox(canvas, (0.42, 0.56), 60, "wave", "wink")


def sunflowers(canvas: Canvas, rng: np.random.Generator) -> None:
    """Half hidden in a field of sunflowers."""
    canvas.fill_gradient(scenery.DAY)
    scenery.cloud(canvas, (0.3, 0.14), 90)
    scenery.hills(canvas, rng, 0.6, scenery.GREENS)
    scenery.sunflowers(canvas, rng, 0.62, 17)
    place_fox(canvas, (0.5, 0.6), 66, "sit", "smile")
    scenery.sunflowers(canvas, rng, 0.86, 25)


def rainbow(canvas: Canvas, rng: np.random.Generator) -> None:
    """After the rain."""
    canvas.fill_gradient(("#6fb4dc", "#b5dff0", "#eef7f0"))
    scenery.rainbow(canvas, (0.5, 0.8), 150)
    scenery.cloud(canvas, (0.14, 0.56), 90)
    scenery.cloud(canvas, (0.87, 0.56), 90)
    scenery.hills(canvas, rng, 0.7, scenery.GREENS[1:])
    place_fox(canvas, (0.47, 0.58), 58, "back")


def lake(canvas: Canvas, rng: np.random.Generator) -> None:
    """A mountain lake."""
    canvas.fill_gradient(("#8fc3e8", "#d0e8f2", "#f3f1e4"), bottom=0.7)
    scenery.mountains(canvas, rng, 0.58, "#7f93b8")
    scenery.sea(canvas, rng, 0.56, ("#8cc4d8", "#6cafcb", "#4f96b8"))
    scenery.hills(canvas, rng, 0.8, scenery.GREENS[1:])
    for x, size in ((0.06, 110), (0.94, 130)):
        scenery.pine(canvas, (x, 0.86), size, "#3f7a56")
    place_fox(canvas, (0.5, 0.6), 52, "sit", mirror=True)


def kite(canvas: Canvas, rng: np.random.Generator) -> None:
    """Flying a kite on the hill."""
    canvas.fill_gradient(scenery.DAY)
    scenery.cloud(canvas, (0.25, 0.34), 90)
    scenery.cloud(canvas, (0.8, 0.45), 70)
    scenery.hills(canvas, rng, 0.76, scenery.GREENS)
    place_fox(canvas, (0.52, 0.68), 52, "wave", "smile")
    string = [canvas.pixels(place) for place in ((0.33, 0.68), (0.3, 0.5), (0.62, 0.2))]
    canvas.pen.stroke(string, 1.2, "#ffffff")
    pen = canvas.pen_at((0.65, 0.15), 36, angle=0.5, ink="#7a3a34")
    pen.polygon("0,-1.1 0.75,-0.2 0,1.1 -0.75,-0.2", "#e76f6f")
    pen.polygon("0,-1.1 0.75,-0.2 0,-0.2", "#f4d58d")
    pen.polygon("0,1.1 -0.75,-0.2 0,-0.2", "#7fc8e0")


def lily_pond(canvas: Canvas, rng: np.random.Generator) -> None:
    """On a lily pad."""
    canvas.fill_gradient(("#3f8f9e", "#57a9a8", "#79c2ae"))
    for number, spot in enumerate(canvas.scattered(rng, 14)):
        pen = canvas.pen.at(spot, scale=rng.uniform(16, 34))
        pen.ellipse((0, 0), (1, 0.55), "#5fae5c")
        pen.ellipse((0, 0), (0.7, 0.36), "#7cc474")
        if number % 2:
            for turn in (-0.7, 0.0, 0.7):
                pen.ellipse((0.3 * math.sin(turn), -0.2), (0.16, 0.36), "#f7b7cc", turn)
    pad = canvas.pen_at((0.54, 0.86), 110)
    pad.ellipse((0, 0), (1, 0.33), "#4c9a50")
    pad.ellipse((0, -0.03), (0.87, 0.26), "#6fba66")
    place_fox(canvas, (0.5, 0.6), 62, "sit", "wink")


def mushrooms(canvas: Canvas, rng: np.random.Generator) -> None:
    """Under a giant toadstool."""
    canvas.fill_gradient(("#2f5d4f", "#4f8a64", "#93bf7a"))
    for x in (0.05, 0.25, 0.85):
        canvas.pen_at((x, 0), 20).polygon("-0.45,0 0.45,0 0.7,13 -0.7,13", "#3a5548")
    scenery.hills(canvas, rng, 0.74, ("#5f9a58", "#4b8249"))
    pen = canvas.pen_at((0.56, 0.5), 100, ink="#5a2d1c")
    pen.blob("0.32,0 0.62,0 0.7,1.1 0.3,1.1", "#f8ead2")
    pen.blob("-1.15,0 -0.7,-0.75 0.2,-1.1 1,-0.7 1.3,0 0.1,0.16", "#d94b45")
    for spot in ((-0.6, -0.35), (-0.05, -0.7), (0.1, -0.2), (0.6, -0.5), (0.95, -0.15)):
        pen.inkless.disc(spot, 0.13, "#fff6ea")
    place_fox(canvas, (0.4, 0.7), 52, "sit", "sleepy", mirror=True)
    scenery.snowfall(canvas, rng, 26, "#f9f3a8c0")
