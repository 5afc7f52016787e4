"""Hoshimaru, the demo's character: a little fox with a star on its brow and a teal scarf.

Coordinates of every part: the chin is the origin, the head about 1.3 wide, the ground at y = 1.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from anima_pipe.demo.canvas import Canvas, Pen, Point, mirrored

Mood = Literal["open", "smile", "wink", "sleepy", "surprised"]
Pose = Literal["sit", "wave", "jump", "back", "sleep", "walk", "peek"]

GROUND = 1.2

SKULL = "0,-1 0.36,-0.93 0.62,-0.62 0.7,-0.33 0.52,-0.1 0.26,0.02 0,0.05"
EAR = "0.12,-0.88 0.3,-1.12 0.56,-1.38 0.66,-1 0.62,-0.6"
INNER_EAR = "0.3,-0.93 0.4,-1.08 0.53,-1.2 0.57,-0.95 0.52,-0.72"
CHEEK = "0,-0.3 0.22,-0.36 0.5,-0.34 0.655,-0.32 0.5,-0.12 0.26,0 0,0.03"
TORSO = "0,0 0.3,0.08 0.44,0.5 0.56,0.92 0.46,1.16 0.2,1.2 0,1.2"
BELLY = "0,0.2 0.2,0.26 0.27,0.6 0.2,0.98 0,1.06"
TAIL = "0,0.02 0.3,0.08 0.66,-0.08 0.86,-0.5 0.72,-0.95 0.5,-0.72 0.38,-0.42 0.1,-0.16"
TAIL_TIP = "0.85,-0.52 0.71,-0.92 0.52,-0.72 0.55,-0.62 0.66,-0.64 0.72,-0.5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The colours of the fox."""

    coat: str
    shade: str
    """Inner ears and the legs on the far side."""
    white: str
    scarf: str
    line: str
    stripe: str = "#f4e3b2"
    star: str = "#ffd65c"


ORANGE = Look(coat="#f08a3c", shade="#d96f2b", white="#fff6ea", scarf="#2a9d8f", line="#5a2d1c")
WINTER = Look(coat="#f3f1f4", shade="#d8d7e4", white="#ffffff", scarf="#c94f5d", line="#4f5878")
NIGHT = Look(coat="#c96f4a", shade="#a9553c", white="#efe2e6", scarf="#2f8f9a", line="#3a2036")


def draw_fox(pen: Pen, pose: Pose, mood: Mood = "open", look: Look = ORANGE) -> None:
    """Draw the fox.

    Args:
        pen: Its origin is the fox's chin, its unit about three quarters of the head's width.
        pose: What the fox does.
        mood: The face, where one sees it.
        look: The colours.
    """
    POSES[pose](pen.at((0, 0), ink=look.line), mood, look)


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


def draw_paws_on_edge(pen: Pen, look: Look = ORANGE) -> None:
    """Draw the paws of a peeking fox, over the edge that hides the rest of it."""
    for x in (-0.5, 0.5):
        _paw(pen.at((x, 0), ink=look.line), look, (0.17, 0.13))


def _head(pen: Pen, mood: Mood, look: Look) -> None:
    _ears(pen, look)
    pen.blob(mirrored(SKULL), look.coat)
    for mirror in (False, True):
        pen.inkless.at((0, 0), mirror=mirror).blob(INNER_EAR, look.shade)
        pen.inkless.at((0, 0), mirror=mirror).blob(CHEEK, look.white)
    pen.inkless.star((0, -0.73), 0.15, look.star)
    _face(pen.inkless, mood, look)


def _ears(pen: Pen, look: Look) -> None:
    for mirror in (False, True):
        pen.at((0, 0), mirror=mirror).blob(EAR, look.coat)


def _face(pen: Pen, mood: Mood, look: Look) -> None:
    for side in (-1, 1):
        half = pen.at((0, 0), mirror=side < 0)
        half.ellipse((0.44, -0.22), (0.11, 0.06), "#ff7f7f70")
        if mood == "sleepy":
            half.stroke("0.18,-0.42 0.29,-0.33 0.4,-0.42", 0.05, look.line)
        elif mood == "smile" or (mood == "wink" and side > 0):
            half.stroke("0.18,-0.42 0.29,-0.52 0.4,-0.42", 0.05, look.line)
        else:
            _eye(half, (0.29, -0.42), 1.15 if mood == "surprised" else 1.0, side)
    pen.blob("-0.07,-0.24 0,-0.26 0.07,-0.24 0,-0.17", look.line)
    if mood == "surprised":
        pen.ellipse((0, -0.07), (0.05, 0.06), "#a43c3c")
        return
    if mood in {"smile", "wink"}:
        pen.blob("-0.1,-0.12 0,-0.1 0.1,-0.12 0.05,-0.02 -0.05,-0.02", "#c9504a")
    pen.stroke("-0.16,-0.13 -0.08,-0.09 0,-0.15 0.08,-0.09 0.16,-0.13", 0.035, look.line)


def _eye(pen: Pen, centre: Point, size: float, side: int) -> None:
    x, y = centre
    pen.ellipse(centre, (0.115 * size, 0.16 * size), "#2b1a1f")
    pen.ellipse((x, y + 0.06 * size), (0.085 * size, 0.09 * size), "#2f7f86")
    pen.ellipse((x, y + 0.1 * size), (0.055 * size, 0.045 * size), "#7fd6c8")
    # Light falls from one side, so the highlights are not mirrored with the face.
    pen.ellipse((x - 0.04 * side, y - 0.07), (0.045, 0.055), "#ffffff")
    pen.disc((x + 0.05 * side, y + 0.05), 0.022, "#ffffff")


def _scarf(pen: Pen, look: Look, flutter: float = 0.0) -> None:
    end = pen.at((0.24, 0.12), angle=-flutter)
    end.blob("-0.1,0 0.12,0 0.17,0.3 0.14,0.52 -0.1,0.5 -0.12,0.25", look.scarf)
    end.inkless.stroke("-0.09,0.36 0.02,0.39 0.14,0.37", 0.06, look.stripe)
    pen.blob(mirrored("0,-0.02 0.32,-0.05 0.46,0.03 0.42,0.17 0.2,0.24 0,0.26"), look.scarf)
    pen.inkless.stroke("-0.38,0.1 0,0.16 0.38,0.1", 0.05, look.stripe)


def _tail(pen: Pen, look: Look) -> None:
    """Draw the tail, which starts at the origin and rises to the right."""
    pen.blob(TAIL, look.coat)
    pen.inkless.blob(TAIL_TIP, look.white)
    pen.inkless.star((0.62, -0.3), 0.12, look.star, angle=0.3)


def _paw(pen: Pen, look: Look, radii: Point = (0.16, 0.11)) -> None:
    pen.ellipse((0, 0), radii, look.white)
    for x in (-0.05, 0.05):
        pen.stroke([(x, 0), (x, radii[1] * 0.7)], 0.025, look.line)


def _sit(pen: Pen, mood: Mood, look: Look) -> None:
    _tail(pen.at((0.36, 1.1)), look)
    pen.blob(mirrored(TORSO), look.coat)
    pen.inkless.blob(mirrored(BELLY), look.white)
    for x in (-0.18, 0.18):
        _paw(pen.at((x, 1.14)), look)
    _scarf(pen, look)
    _head(pen, mood, look)


def _wave(pen: Pen, mood: Mood, look: Look) -> None:
    _tail(pen.at((0.36, 1.1)), look)
    pen.blob(mirrored(TORSO), look.coat)
    pen.inkless.blob(mirrored(BELLY), look.white)
    for x in (-0.18, 0.18):
        _paw(pen.at((x, 1.14)), look)
    _scarf(pen, look, flutter=0.3)
    _head(pen, mood, look)
    pen.blob("-0.28,0.3 -0.38,0.58 -0.66,0.44 -0.92,0.14 -0.8,0 -0.6,0.16", look.coat)
    _paw(pen.at((-0.88, 0.04), angle=0.75 * math.pi), look, (0.15, 0.12))


def _jump(pen: Pen, mood: Mood, look: Look) -> None:
    _tail(pen.at((0.2, 0.8), angle=0.5), look)
    pen.blob(mirrored("0,0 0.3,0.1 0.42,0.5 0.34,0.86 0,0.94"), look.coat)
    pen.inkless.blob(mirrored("0,0.2 0.2,0.28 0.24,0.56 0,0.82"), look.white)
    for mirror in (False, True):
        half = pen.at((0, 0), mirror=mirror)
        half.blob("0.26,0.26 0.5,0.12 0.84,-0.02 0.9,0.12 0.64,0.34 0.36,0.46", look.coat)
        _paw(half.at((0.86, 0.04), angle=-1.9), look, (0.14, 0.11))
        _paw(half.at((0.36, 0.92), angle=-0.5), look, (0.15, 0.13))
    _scarf(pen, look, flutter=1.3)
    _head(pen, mood, look)


def _back(pen: Pen, mood: Mood, look: Look) -> None:
    del mood  # one does not see the face
    pen.blob(mirrored(TORSO), look.coat)
    _ears(pen, look)
    pen.blob(mirrored(SKULL), look.coat)
    _scarf(pen.at((0, 0), mirror=True), look, flutter=0.2)
    _tail(pen.at((-0.12, 1.12), scale=1.1), look)


def _sleep(pen: Pen, mood: Mood, look: Look) -> None:
    """Curled up: the body a round loaf, the tail in front, the head resting on it."""
    del mood  # asleep
    pen.blob("-0.2,0.3 0.4,0.1 1,0.3 1.24,0.8 1,1.16 0.2,1.2 -0.4,1.1", look.coat)
    pen.blob("0.16,0.62 0.36,0.46 0.56,0.62 0.56,0.9 0.34,1 0.2,0.9", look.scarf)
    pen.inkless.stroke("0.42,0.56 0.47,0.74 0.44,0.92", 0.05, look.stripe)
    _head(pen.at((-0.25, 0.98), angle=-0.12, scale=0.86), "sleepy", look)
    tail = "1.2,0.8 1.16,1.12 0.7,1.3 0.1,1.28 -0.28,1.12 0.1,0.98 0.6,0.98 0.94,0.8"
    pen.blob(tail, look.coat)
    pen.inkless.blob("0.14,1.27 -0.24,1.12 0.1,1 0.2,1.06 0.1,1.14", look.white)
    pen.inkless.star((0.6, 1.13), 0.11, look.star, angle=0.2)


def _walk(pen: Pen, mood: Mood, look: Look) -> None:
    """To the left, the body from the side, the face to the viewer."""
    _tail(pen.at((0.95, 0.62), angle=0.15), look)
    for x in (0.12, 0.86):
        pen.at((x, 0)).blob("0,0.7 0.2,0.7 0.24,1.14 0.04,1.14", look.shade)
    pen.blob("-0.2,0.1 0.3,0.12 0.9,0.2 1.16,0.5 1,0.86 0.4,0.92 -0.1,0.84", look.coat)
    for x in (-0.16, 0.66):
        pen.at((x, 0)).blob("0,0.64 0.26,0.66 0.2,1.16 -0.06,1.16", look.coat)
        _paw(pen.at((x + 0.04, 1.14)), look, (0.15, 0.09))
    _scarf(pen, look, flutter=0.9)
    _head(pen, mood, look)


def _peek(pen: Pen, mood: Mood, look: Look) -> None:
    """The head alone; the scene draws an edge before it, and the paws on that."""
    _scarf(pen, look)
    _head(pen, mood, look)


POSES: dict[Pose, Callable[[Pen, Mood, Look], None]] = {
    "sit": _sit,
    "wave": _wave,
    "jump": _jump,
    "back": _back,
    "sleep": _sleep,
    "walk": _walk,
    "peek": _peek,
}
