"""Put the fox into a scene."""

from __future__ import annotations

from anima_pipe.demo.canvas import Canvas, Point
from anima_pipe.demo.mascot import GROUND, ORANGE, Look, Mood, Pose, draw_fox


def place_fox(
    canvas: Canvas,
    place: Point,
    size: float,
    pose: Pose,
    mood: Mood = "open",
    *,
    look: Look = ORANGE,
    angle: float = 0.0,
    mirror: bool = False,
) -> None:
    """Draw the fox, with a soft shadow where it touches the ground.

    Args:
        canvas: The scene.
        place: Of the chin, in fractions of the canvas.
        size: Pixels to the fox's unit; it is about 2.6 units high.
        pose: What it does.
        mood: Its face.
        look: Its colours.
        angle: Turn in radians, clockwise.
        mirror: Turn the other cheek.
    """
    pen = canvas.pen_at(place, size, angle=angle).at((0, 0), mirror=mirror)
    if pose not in {"jump", "peek"}:
        pen.ellipse((0.2, GROUND), (0.9, 0.14), "#00000030")
    draw_fox(pen, pose, mood, look)
