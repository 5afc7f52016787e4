"""The scenes at night, indoors and in the studio. Each paints one picture and its fox."""

from __future__ import annotations

import numpy as np

from anima_pipe.demo import scenery
from anima_pipe.demo.canvas import Canvas
from anima_pipe.demo.mascot import NIGHT, WINTER
from anima_pipe.demo.outdoors import place_fox

DARK_HILLS = ("#3a4a72", "#2c3a60", "#222d4d")


def full_moon(canvas: Canvas, rng: np.random.Generator) -> None:
    """Looking up at the full moon."""
    canvas.fill_gradient(scenery.NIGHT)
    scenery.stars(canvas, rng, 60)
    scenery.sun(canvas, (0.64, 0.24), 40, "#fdf2c4")
    scenery.hills(canvas, rng, 0.7, DARK_HILLS)
    place_fox(canvas, (0.42, 0.64), 62, "back", look=NIGHT)


def on_the_moon(canvas: Canvas, rng: np.random.Generator) -> None:
    """Asleep in the arms of the crescent moon."""
    canvas.fill_gradient(("#1a1f4a", "#3a3a7a", "#7a5f9f"))
    scenery.stars(canvas, rng, 80, bottom=1.0)
    scenery.crescent(canvas, (0.5, 0.52), 118)
    place_fox(canvas, (0.44, 0.53), 48, "sleep", look=NIGHT)
    scenery.cloud(canvas, (0.2, 0.93), 130, "#ffffff60")
    scenery.cloud(canvas, (0.8, 0.97), 150, "#ffffff60")


def shooting_star(canvas: Canvas, rng: np.random.Generator) -> None:
    """Making a wish."""
    canvas.fill_gradient(scenery.NIGHT)
    scenery.stars(canvas, rng, 80)
    width, height = canvas.width, canvas.height
    for reach, strength in ((120, "#fff3c030"), (86, "#fff3c060"), (50, "#fff3c0a0")):
        canvas.pen.stroke([(0.26 * width, 0.3 * height), (0.26 * width + reach, 0.3 * height - 0.42 * reach)], 4, strength)
    canvas.pen.star((0.26 * width, 0.3 * height), 13, "#ffe79a", 0.2)
    scenery.hills(canvas, rng, 0.72, DARK_HILLS)
    place_fox(canvas, (0.68, 0.54), 54, "sit", "surprised", look=NIGHT, mirror=True)


def lantern_street(canvas: Canvas, rng: np.random.Generator) -> None:
    """Strings of lanterns over a street at night."""
    canvas.fill_gradient(("#241a3a", "#4a2f55", "#8a4f5c"))
    scenery.stars(canvas, rng, 30, bottom=0.3)
    for x, size in ((0.1, 96), (0.34, 80), (0.66, 84), (0.92, 100)):
        scenery.house(canvas, (x, 0.8), size, "#6d4a4a", "#3f2c40", "#ffcf70")
    scenery.hills(canvas, rng, 0.84, ("#4f3a48",))
    canvas.pen.stroke([(0, 40), (canvas.width / 2, 70), (canvas.width, 36)], 1.5, "#2a1a26")
    for x, y in ((0.1, 0.26), (0.3, 0.34), (0.52, 0.37), (0.74, 0.33), (0.92, 0.26)):
        scenery.lantern(canvas, (x, y), 22)
    place_fox(canvas, (0.46, 0.6), 48, "wave", "smile")


def fireworks(canvas: Canvas, rng: np.random.Generator) -> None:
    """A summer festival by the river."""
    canvas.fill_gradient(("#0f1430", "#232a5c", "#4a4a86"), bottom=0.8)
    scenery.stars(canvas, rng, 30)
    for x, y, radius, colour in (
        (0.3, 0.16, 46, "#ff9fb0"),
        (0.74, 0.25, 56, "#ffe08a"),
        (0.4, 0.41, 36, "#9fe0ff"),
    ):
        scenery.firework(canvas, (x, y), radius, colour)
    scenery.sea(canvas, rng, 0.72, ("#3a3f7a", "#2c3168", "#222655"))
    scenery.hills(canvas, rng, 0.86, ("#2a3a3f",))
    place_fox(canvas, (0.46, 0.72), 46, "back", look=NIGHT)


def reading(canvas: Canvas, rng: np.random.Generator) -> None:
    """With a book under the lamp."""
    del rng
    canvas.fill_gradient(("#5a3f4f", "#7d5560", "#9a6a64"))
    canvas.glow((0.76, 0.3), 190, "#ffdf9a", 0.75)
    width, height = canvas.width, canvas.height
    canvas.pen.polygon([(0, 0.82 * height), (width, 0.82 * height), (width, height), (0, height)], "#6a4436")
    lamp = canvas.pen.at((0.78 * width, 0.82 * height), scale=60, outline="#4a2f2a")
    lamp.polygon([(-0.05, 0), (-0.05, -2.6), (0.05, -2.6), (0.05, 0)], "#8a6a4a")
    lamp.polygon([(-0.6, -2.3), (-0.34, -3.1), (0.34, -3.1), (0.6, -2.3)], "#fff0b8")
    for shelf in (0.2, 0.42):
        canvas.pen.polygon([(12, shelf * height), (112, shelf * height), (112, shelf * height + 5), (12, shelf * height + 5)], "#4a2f2a")
        for book, colour in enumerate(("#c94f5d", "#2a9d8f", "#e9c46a", "#6a7fb8", "#e08a5a")):
            left, top = 18 + 18 * book, shelf * height - 36 + 5 * (book % 3)
            canvas.pen.polygon([(left, top), (left + 14, top), (left + 14, shelf * height), (left, shelf * height)], colour)
    place_fox(canvas, (0.44, 0.57), 66, "sit", "open")
    book_pen = canvas.pen.at((0.44 * width, 0.8 * height), scale=50, outline="#4a2f2a")
    book_pen.polygon([(-0.9, -0.35), (0, -0.15), (0.9, -0.35), (0.9, 0.35), (0, 0.55), (-0.9, 0.35)], "#2f6f8f")
    book_pen.polygon([(-0.8, -0.42), (0, -0.2), (0, 0.42), (-0.8, 0.24)], "#fdf6e3")
    book_pen.polygon([(0.8, -0.42), (0, -0.2), (0, 0.42), (0.8, 0.24)], "#f3e9d0")


def teacup(canvas: Canvas, rng: np.random.Generator) -> None:
    """In a very large teacup."""
    del rng
    canvas.fill_gradient(("#f6d9cf", "#fbe9df", "#fdf3ea"))
    width, height = canvas.width, canvas.height
    canvas.pen.polygon([(0, 0.8 * height), (width, 0.8 * height), (width, height), (0, height)], "#d9a98a")
    canvas.pen.ellipse((0.5 * width, 0.88 * height), (120, 20), "#ffffff")
    canvas.pen.ellipse((0.5 * width, 0.875 * height), (96, 14), "#dbe6ee")
    pen = canvas.pen.at((0.48 * width, 0.56 * height), scale=92, outline="#4f6f8f")
    pen.blob([(0.9, 0.1), (1.35, 0.05), (1.45, 0.4), (1.2, 0.68), (0.8, 0.7), (0.8, 0.5), (1.15, 0.46), (1.2, 0.25), (0.9, 0.28)], "#ffffff")
    place_fox(canvas, (0.48, 0.53), 68, "peek", "smile")
    cup = [(-1.0, 0.08), (-0.3, 0.14), (0.3, 0.14), (1.0, 0.08), (0.86, 0.66), (0.5, 0.98), (-0.5, 0.98), (-0.86, 0.66)]
    pen.blob(cup, "#ffffff")
    for x in (-0.5, 0.0, 0.5):
        pen.at((0, 0), outline="#00000000").star((x, 0.52), 0.15, "#6fa8d0")
    for x in (-0.52, 0.52):
        paw = canvas.pen.at((0.48 * width + x * 68, 0.56 * height + 8), scale=68, outline="#5a2d1c")
        paw.ellipse((0, 0), (0.17, 0.13), "#fff6ea")


def window(canvas: Canvas, rng: np.random.Generator) -> None:
    """Watching the rain from inside."""
    width, height = canvas.width, canvas.height
    canvas.fill_gradient(scenery.OVERCAST)
    scenery.hills(canvas, rng, 0.55, ("#7f9a84", "#6a8672"))
    scenery.rain(canvas, rng, 130)
    frame = "#f2e2c8"
    for left, top, right, bottom in ((0, 0, 1, 0.07), (0, 0, 0.08, 1), (0.92, 0, 1, 1), (0.48, 0, 0.52, 0.74), (0, 0.34, 1, 0.37)):
        canvas.pen.polygon([(left * width, top * height), (right * width, top * height), (right * width, bottom * height), (left * width, bottom * height)], frame)
    place_fox(canvas, (0.46, 0.7), 70, "peek", "sleepy")
    canvas.pen.polygon([(0, 0.76 * height), (width, 0.76 * height), (width, height), (0, height)], "#e2c9a2")
    canvas.pen.polygon([(0, 0.76 * height), (width, 0.76 * height), (width, 0.79 * height), (0, 0.79 * height)], "#f8ecd4")
    for x in (-0.5, 0.5):
        paw = canvas.pen.at((0.46 * width + x * 70, 0.755 * height), scale=70, outline="#5a2d1c")
        paw.ellipse((0, 0), (0.17, 0.12), "#fff6ea")
    pot = canvas.pen.at((0.82 * width, 0.78 * height), scale=34, outline="#6a3a2c")
    for x, y in ((-0.5, -1.5), (0.1, -1.9), (0.6, -1.4)):
        pot.stroke([(0, -0.6), (x, y)], 0.12, "#5a9a5c")
        pot.disc((x, y), 0.3, "#f07fa0")
    pot.polygon([(-0.5, -0.7), (0.5, -0.7), (0.36, 0.1), (-0.36, 0.1)], "#c9714a")


def birthday(canvas: Canvas, rng: np.random.Generator) -> None:
    """A cake with candles."""
    canvas.fill_gradient(("#f9c9d4", "#fbe3e0", "#fdf3e3"))
    scenery.drifting(canvas, rng, 60, ("#f4a261", "#2a9d8f", "#e9c46a", "#e76f51"), size=3.4, flat=0.5)
    width, height = canvas.width, canvas.height
    place_fox(canvas, (0.34, 0.56), 56, "wave", "smile")
    canvas.pen.polygon([(0, 0.84 * height), (width, 0.84 * height), (width, height), (0, height)], "#e9b89a")
    cake = canvas.pen.at((0.73 * width, 0.86 * height), scale=66, outline="#7a4a3a")
    cake.polygon([(-0.85, 0), (-0.85, -0.6), (0.85, -0.6), (0.85, 0)], "#c98a5c")
    cake.blob([(-0.9, -0.62), (0, -0.72), (0.9, -0.62), (0.86, -0.36), (0.5, -0.26), (0.2, -0.4), (-0.2, -0.24), (-0.6, -0.38), (-0.86, -0.3)], "#fff6ea")
    for x in (-0.5, 0.0, 0.5):
        cake.polygon([(x - 0.05, -0.7), (x - 0.05, -1.15), (x + 0.05, -1.15), (x + 0.05, -0.7)], "#7fc8e0")
        cake.at((0, 0), outline="#00000000").ellipse((x, -1.28), (0.06, 0.12), "#ffb340")
    canvas.glow((0.73, 0.5), 60, "#fff0b0", 0.5)


def torii(canvas: Canvas, rng: np.random.Generator) -> None:
    """A shrine gate at dusk."""
    canvas.fill_gradient(("#6a6fb0", "#d99ab0", "#fbd9b0"))
    scenery.mountains(canvas, rng, 0.66, "#7f7fb0")
    scenery.hills(canvas, rng, 0.64, ("#6f9a72", "#5a8a62"))
    width, height = canvas.width, canvas.height
    gate = canvas.pen.at((0.5 * width, 0.86 * height), scale=100, outline="#6a2a24")
    for x in (-0.85, 0.85):
        gate.polygon([(x - 0.09, 0), (x * 0.92 - 0.07, -2.1), (x * 0.92 + 0.07, -2.1), (x + 0.09, 0)], "#d4503c")
    gate.polygon([(-1.0, -1.6), (1.0, -1.6), (1.0, -1.46), (-1.0, -1.46)], "#d4503c")
    gate.blob([(-1.3, -2.3), (0, -2.16), (1.3, -2.3), (1.24, -2.02), (0, -1.94), (-1.24, -2.02)], "#b83f30")
    scenery.lantern(canvas, (0.5, 0.38), 24)
    place_fox(canvas, (0.48, 0.66), 56, "sit", "open")


def two_foxes(canvas: Canvas, rng: np.random.Generator) -> None:
    """Two friends, one in a winter coat."""
    canvas.fill_gradient(scenery.SUNSET)
    scenery.sun(canvas, (0.5, 0.34), 26, "#fff0b8")
    scenery.hills(canvas, rng, 0.62, ("#8a6f94", "#6f5a84", "#584a72"))
    place_fox(canvas, (0.34, 0.52), 56, "sit", "smile")
    place_fox(canvas, (0.68, 0.52), 56, "sit", "wink", look=WINTER, mirror=True)


def portrait_teal(canvas: Canvas, rng: np.random.Generator) -> None:
    """Close up, before a plain wall."""
    del rng
    canvas.fill_gradient(("#7fc8c0", "#a9dcd2", "#cfeee6"))
    place_fox(canvas, (0.5, 0.78), 140, "sit", "open")


def portrait_pink(canvas: Canvas, rng: np.random.Generator) -> None:
    """Laughing, with hearts' worth of petals."""
    canvas.fill_gradient(("#f5b5c4", "#f9d3da", "#fdeaec"))
    scenery.drifting(canvas, rng, 30, ("#ffffffa0", "#f59ab0a0"), size=5.0, flat=0.6)
    place_fox(canvas, (0.5, 0.56), 88, "wave", "smile")


def portrait_yellow(canvas: Canvas, rng: np.random.Generator) -> None:
    """Very tired."""
    del rng
    canvas.fill_gradient(("#f6d77a", "#fae6a8", "#fdf2d0"))
    place_fox(canvas, (0.42, 0.42), 88, "sleep")
