"""The scenes by night, indoors, and the portraits. Each paints one picture with its fox."""

from __future__ import annotations

import numpy as np

from anima_pipe.demo import scenery
from anima_pipe.demo.canvas import Canvas
from anima_pipe.demo.mascot import NIGHT, WINTER, draw_paws_on_edge, place_fox

CREAM = "#fff6ea"


def full_moon(canvas: Canvas, rng: np.random.Generator) -> None:
    """Looking up at the full moon."""
    canvas.fill_gradient(scenery.NIGHT)
    scenery.stars(canvas, rng, 60)
    scenery.sun(canvas, (0.64, 0.24), 40, "#fdf2c4")
    scenery.hills(canvas, rng, 0.7, scenery.DARK)
    place_fox(canvas, (0.42, 0.64), 62, "back", look=NIGHT)


def on_the_moon(canvas: Canvas, rng: np.random.Generator) -> None:
    """Asleep in the hollow of the crescent moon."""
    canvas.fill_gradient(("#1a1f4a", "#3a3a7a", "#7a5f9f"))
    scenery.stars(canvas, rng, 80, bottom=1.0)
    scenery.crescent(canvas, (0.5, 0.46), 116)
    place_fox(canvas, (0.45, 0.48), 54, "sleep", look=NIGHT)
    scenery.cloud(canvas, (0.2, 0.9), 130, "#ffffff60")
    scenery.cloud(canvas, (0.8, 0.95), 150, "#ffffff60")


def shooting_star(canvas: Canvas, rng: np.random.Generator) -> None:
    """Making a wish."""
    canvas.fill_gradient(scenery.NIGHT)
    scenery.stars(canvas, rng, 80)
    pen = canvas.pen_at((0.26, 0.3), 120)
    for reach, colour in ((1.0, "#fff3c030"), (0.7, "#fff3c060"), (0.42, "#fff3c0a0")):
        pen.stroke([(0, 0), (reach, -0.42 * reach)], 0.033, colour)
    pen.star((0, 0), 0.11, "#ffe79a", angle=0.2)
    scenery.hills(canvas, rng, 0.72, scenery.DARK)
    place_fox(canvas, (0.68, 0.54), 54, "sit", "surprised", look=NIGHT, mirror=True)


def lantern_street(canvas: Canvas, rng: np.random.Generator) -> None:
    """Strings of lanterns over a street at night."""
    canvas.fill_gradient(("#241a3a", "#4a2f55", "#8a4f5c"))
    scenery.stars(canvas, rng, 30, bottom=0.3)
    for x, size in ((0.1, 96), (0.34, 80), (0.66, 84), (0.92, 100)):
        scenery.house(canvas, (x, 0.8), size, "#6d4a4a", "#3f2c40", "#ffcf70")
    scenery.hills(canvas, rng, 0.84, ("#4f3a48",))
    cord = [canvas.pixels(place) for place in ((0, 0.17), (0.5, 0.29), (1, 0.15))]
    canvas.pen.stroke(cord, 1.5, "#2a1a26")
    for place in ((0.1, 0.26), (0.3, 0.34), (0.52, 0.37), (0.74, 0.33), (0.92, 0.26)):
        scenery.lantern(canvas, place, 22)
    place_fox(canvas, (0.46, 0.66), 44, "wave", "smile")


def fireworks(canvas: Canvas, rng: np.random.Generator) -> None:
    """A summer festival by the river."""
    canvas.fill_gradient(("#0f1430", "#232a5c", "#4a4a86"), bottom=0.8)
    scenery.stars(canvas, rng, 30)
    scenery.firework(canvas, (0.3, 0.16), 46, "#ff9fb0")
    scenery.firework(canvas, (0.74, 0.25), 56, "#ffe08a")
    scenery.firework(canvas, (0.4, 0.41), 36, "#9fe0ff")
    scenery.sea(canvas, rng, 0.72, ("#3a3f7a", "#2c3168", "#222655"))
    scenery.hills(canvas, rng, 0.86, ("#2a3a3f",))
    place_fox(canvas, (0.46, 0.72), 46, "back", look=NIGHT)


def torii(canvas: Canvas, rng: np.random.Generator) -> None:
    """A shrine gate at dusk."""
    canvas.fill_gradient(("#6a6fb0", "#d99ab0", "#fbd9b0"))
    scenery.mountains(canvas, rng, 0.66, "#7f7fb0")
    scenery.hills(canvas, rng, 0.64, ("#6f9a72", "#5a8a62"))
    gate = canvas.pen_at((0.5, 0.86), 100, ink="#6a2a24")
    for x in (-0.82, 0.82):
        gate.at((x, 0)).polygon("-0.09,0 -0.07,-2.1 0.07,-2.1 0.09,0", "#d4503c")
    gate.polygon("-1,-1.6 1,-1.6 1,-1.46 -1,-1.46", "#d4503c")
    gate.blob("-1.3,-2.3 0,-2.16 1.3,-2.3 1.24,-2.02 0,-1.94 -1.24,-2.02", "#b83f30")
    scenery.lantern(canvas, (0.5, 0.4), 22)
    place_fox(canvas, (0.48, 0.69), 50, "sit")


def two_foxes(canvas: Canvas, rng: np.random.Generator) -> None:
    """Two friends, one in a winter coat."""
    canvas.fill_gradient(scenery.SUNSET)
    scenery.sun(canvas, (0.5, 0.34), 26, "#fff0b8")
    scenery.hills(canvas, rng, 0.62, ("#8a6f94", "#6f5a84", "#584a72"))
    place_fox(canvas, (0.34, 0.52), 56, "sit", "smile")
    place_fox(canvas, (0.68, 0.52), 56, "sit", "wink", look=WINTER, mirror=True)


def reading(canvas: Canvas, rng: np.random.Generator) -> None:
    """With a book under the lamp."""
    del rng
    canvas.fill_gradient(("#5a3f4f", "#7d5560", "#9a6a64"))
    canvas.glow((0.78, 0.26), 190, "#ffdf9a", 0.75)
    canvas.box((0, 0.82), (1, 1), "#6a4436")
    for height in (0.2, 0.42):
        _bookshelf(canvas, height)
    lamp = canvas.pen_at((0.78, 0.82), 60, ink="#4a2f2a")
    lamp.polygon("-0.05,0 -0.05,-2.6 0.05,-2.6 0.05,0", "#8a6a4a")
    lamp.polygon("-0.6,-2.3 -0.34,-3.1 0.34,-3.1 0.6,-2.3", "#fff0b8")
    place_fox(canvas, (0.44, 0.57), 66, "sit")
    book = canvas.pen_at((0.44, 0.8), 50, ink="#4a2f2a")
    book.polygon("-0.9,-0.35 0,-0.15 0.9,-0.35 0.9,0.35 0,0.55 -0.9,0.35", "#2f6f8f")
    book.polygon("-0.8,-0.42 0,-0.2 0,0.42 -0.8,0.24", "#fdf6e3")
    book.polygon("0.8,-0.42 0,-0.2 0,0.42 0.8,0.24", "#f3e9d0")
    draw_paws_on_edge(canvas.pen_at((0.44, 0.8), 66))


def _bookshelf(canvas: Canvas, height: float) -> None:
    pen = canvas.pen_at((0.04, height), 18)
    pen.polygon("0,0 5.6,0 5.6,0.3 0,0.3", "#4a2f2a")
    for number, colour in enumerate(("#c94f5d", "#2a9d8f", "#e9c46a", "#6a7fb8", "#e08a5a")):
        top = -2 + 0.28 * (number % 3)
        spine = [(0.3, top), (1.1, top), (1.1, 0.0), (0.3, 0.0)]
        pen.at((number, 0)).polygon(spine, colour)


def teacup(canvas: Canvas, rng: np.random.Generator) -> None:
    """In a very large teacup."""
    del rng
    canvas.fill_gradient(("#f6d9cf", "#fbe9df", "#fdf3ea"))
    canvas.box((0, 0.8), (1, 1), "#d9a98a")
    pen = canvas.pen_at((0.48, 0.56), 92, ink="#4f6f8f")
    pen.ellipse((0, 1.1), (1.3, 0.2), "#ffffff")
    handle = "0.9,0.1 1.35,0.05 1.45,0.4 1.2,0.68 0.8,0.7 0.8,0.5 1.15,0.46 1.2,0.25 0.9,0.28"
    pen.blob(handle, "#ffffff")
    place_fox(canvas, (0.48, 0.53), 68, "peek", "smile")
    cup = "-1,0.08 -0.3,0.14 0.3,0.14 1,0.08 0.86,0.66 0.5,0.98 -0.5,0.98 -0.86,0.66"
    pen.blob(cup, "#ffffff")
    for x in (-0.5, 0.0, 0.5):
        pen.inkless.star((x, 0.52), 0.15, "#6fa8d0")
    draw_paws_on_edge(canvas.pen_at((0.48, 0.59), 68))


def window(canvas: Canvas, rng: np.random.Generator) -> None:
    """Watching the rain from inside."""
    canvas.fill_gradient(scenery.OVERCAST)
    scenery.hills(canvas, rng, 0.55, ("#7f9a84", "#6a8672"))
    scenery.rain(canvas, rng, 130)
    for corner, opposite in (
        ((0, 0), (1, 0.07)),
        ((0, 0), (0.08, 1)),
        ((0.92, 0), (1, 1)),
        ((0.48, 0), (0.52, 0.76)),
        ((0, 0.34), (1, 0.37)),
    ):
        canvas.box(corner, opposite, "#f2e2c8")
    place_fox(canvas, (0.46, 0.7), 70, "peek", "sleepy")
    canvas.box((0, 0.76), (1, 1), "#e2c9a2")
    canvas.box((0, 0.76), (1, 0.79), "#f8ecd4")
    draw_paws_on_edge(canvas.pen_at((0.46, 0.765), 70))
    pot = canvas.pen_at((0.82, 0.78), 34, ink="#6a3a2c")
    for x, y in ((-0.5, -1.5), (0.1, -1.9), (0.6, -1.4)):
        pot.stroke([(0, -0.6), (x, y)], 0.12, "#5a9a5c")
        scenery.flower(pot.inkless.at((x, y), scale=0.36), "#f07fa0", "#ffe08a")
    pot.polygon("-0.5,-0.7 0.5,-0.7 0.36,0.1 -0.36,0.1", "#c9714a")


def birthday(canvas: Canvas, rng: np.random.Generator) -> None:
    """A cake with candles."""
    canvas.fill_gradient(("#f9c9d4", "#fbe3e0", "#fdf3e3"))
    scenery.drifting(canvas, rng, 60, ("#f4a261", "#2a9d8f", "#e9c46a", "#e76f51"), 3.4)
    place_fox(canvas, (0.34, 0.56), 56, "wave", "smile")
    canvas.box((0, 0.84), (1, 1), "#e9b89a")
    cake = canvas.pen_at((0.73, 0.88), 66, ink="#7a4a3a")
    cake.polygon("-0.85,0 -0.85,-0.6 0.85,-0.6 0.85,0", "#c98a5c")
    icing = (
        "-0.9,-0.62 0,-0.72 0.9,-0.62 0.86,-0.36 0.5,-0.26 "
        "0.2,-0.4 -0.2,-0.24 -0.6,-0.38 -0.86,-0.3"
    )
    cake.blob(icing, CREAM)
    for x in (-0.5, 0.0, 0.5):
        candle = cake.at((x, -0.66))
        candle.polygon("-0.05,0 -0.05,-0.45 0.05,-0.45 0.05,0", "#7fc8e0")
        candle.inkless.ellipse((0, -0.6), (0.06, 0.12), "#ffb340")
    canvas.glow((0.73, 0.56), 60, "#fff0b0", 0.5)


def portrait_teal(canvas: Canvas, rng: np.random.Generator) -> None:
    """Close up, before a plain wall."""
    del rng
    canvas.fill_gradient(("#7fc8c0", "#a9dcd2", "#cfeee6"))
    place_fox(canvas, (0.5, 0.78), 140, "sit")


def portrait_pink(canvas: Canvas, rng: np.random.Generator) -> None:
    """Laughing among petals."""
    canvas.fill_gradient(("#f5b5c4", "#f9d3da", "#fdeaec"))
    scenery.drifting(canvas, rng, 30, ("#ffffffa0", "#f59ab0a0"), 5.0)
    place_fox(canvas, (0.5, 0.56), 88, "wave", "smile")


def portrait_yellow(canvas: Canvas, rng: np.random.Generator) -> None:
    """Very tired."""
    del rng
    canvas.fill_gradient(("#f6d77a", "#fae6a8", "#fdf2d0"))
    place_fox(canvas, (0.42, 0.42), 88, "sleep")
