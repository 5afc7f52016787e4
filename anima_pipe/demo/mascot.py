"""Hoshimaru, the demo's character: a little fox with a star on its brow and a teal scarf.

Coordinates of every part: the chin is the origin, the head about 1.3 wide, the ground at y = 1.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from anima_pipe.demo.canvas import Pen, Point

Mood = Literal["open", "smile", "wink", "sleepy", "surprised"]
Pose = Literal["sit", "wave", "jump", "back", "sleep", "walk", "peek"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The colours of the fox."""

    coat: str = "#f08a3c"
    shade: str = "#d96f2b"
    white: str = "#fff6ea"
    scarf: str = "#2a9d8f"
    stripe: str = "#f4e3b2"
    star: str = "#ffd65c"
    line: str = "#5a2d1c"


ORANGE = Look()
WINTER = Look(coat="#f3f1f4", shade="#d8d7e4", white="#ffffff", line="#4f5878", scarf="#c94f5d")
NIGHT = Look(coat="#c96f4a", shade="#a9553c", white="#efe2e6", line="#3a2036", scarf="#2f8f9a")


def draw_fox(pen: Pen, pose: Pose, mood: Mood = "open", look: Look = ORANGE) -> None:
    """Draw the fox at the pen's origin.

    Args:
        pen: Its origin is the fox's chin, its unit about three quarters of the head's width.
        pose: What the fox does.
        mood: The face, where one sees it.
        look: The colours.
    """
    outlined = pen.at((0, 0), outline=look.line)
    POSES[pose](outlined, mood, look)


def _mirrored(points: list[Point]) -> list[Point]:
    """A shape from its right half, listed from top to bottom."""
    return points + [(-x, y) for x, y in reversed(points) if x != 0]


def _head(pen: Pen, mood: Mood, look: Look) -> None:
    for side in (-1, 1):
        ear = pen.at((0, 0), mirror=side < 0)
        ear.blob(
            [(0.12, -0.88), (0.3, -1.12), (0.56, -1.38), (0.66, -1.0), (0.62, -0.6)], look.coat
        )
        soft = ear.at((0, 0), outline="#00000000")
        soft.blob(
            [(0.3, -0.93), (0.4, -1.08), (0.53, -1.2), (0.57, -0.95), (0.52, -0.72)], look.shade
        )
    right = [
        (0, -1.0),
        (0.36, -0.93),
        (0.62, -0.62),
        (0.7, -0.33),
        (0.52, -0.1),
        (0.26, 0.02),
        (0, 0.05),
    ]
    pen.blob(_mirrored(right), look.coat)
    soft = pen.at((0, 0), outline="#00000000")
    for side in (-1, 1):
        cheek = soft.at((0, 0), mirror=side < 0)
        cheek.blob(
            [
                (0.0, -0.3),
                (0.22, -0.36),
                (0.5, -0.34),
                (0.655, -0.32),
                (0.5, -0.12),
                (0.26, 0.0),
                (0, 0.03),
            ],
            look.white,
        )
    soft.star((0, -0.73), 0.15, look.star)
    _face(soft, mood, look)


def _face(pen: Pen, mood: Mood, look: Look) -> None:
    for side in (-1, 1):
        half = pen.at((0, 0), mirror=side < 0)
        half.ellipse((0.44, -0.22), (0.11, 0.06), "#ff7f7f70")
        closed = mood in {"smile", "sleepy"} or (mood == "wink" and side > 0)
        if closed:
            bend = 0.09 if mood == "sleepy" else -0.1
            half.stroke([(0.18, -0.42), (0.29, -0.42 + bend), (0.4, -0.42)], 0.05, look.line)
        else:
            _eye(half, (0.29, -0.42), 1.15 if mood == "surprised" else 1.0, side)
    pen.blob([(-0.07, -0.24), (0, -0.26), (0.07, -0.24), (0, -0.17)], look.line)
    if mood == "surprised":
        pen.ellipse((0, -0.07), (0.05, 0.06), "#a43c3c")
        return
    if mood in {"smile", "wink"}:
        pen.blob([(-0.1, -0.12), (0, -0.1), (0.1, -0.12), (0.05, -0.02), (-0.05, -0.02)], "#c9504a")
    pen.stroke(
        [(-0.16, -0.13), (-0.08, -0.09), (0, -0.15), (0.08, -0.09), (0.16, -0.13)], 0.035, look.line
    )


def _eye(pen: Pen, centre: Point, size: float, side: int) -> None:
    x, y = centre
    pen.ellipse(centre, (0.115 * size, 0.16 * size), "#2b1a1f")
    pen.ellipse((x, y + 0.06 * size), (0.085 * size, 0.09 * size), "#2f7f86")
    pen.ellipse((x, y + 0.1 * size), (0.055 * size, 0.045 * size), "#7fd6c8")
    # Light falls from one side, so the highlights are not mirrored with the face.
    pen.ellipse((x - 0.04 * side, y - 0.07), (0.045, 0.055), "#ffffff")
    pen.disc((x + 0.05 * side, y + 0.05), 0.022, "#ffffff")


def _scarf(pen: Pen, look: Look, flutter: float = 0.0) -> None:
    tail = pen.at((0.24, 0.12), angle=-flutter)
    tail.blob(
        [(-0.1, 0.0), (0.12, 0.0), (0.17, 0.3), (0.14, 0.52), (-0.1, 0.5), (-0.12, 0.25)],
        look.scarf,
    )
    soft = tail.at((0, 0), outline="#00000000")
    soft.stroke([(-0.09, 0.36), (0.02, 0.39), (0.14, 0.37)], 0.06, look.stripe)
    right = [(0, -0.02), (0.32, -0.05), (0.46, 0.03), (0.42, 0.17), (0.2, 0.24), (0, 0.26)]
    pen.blob(_mirrored(right), look.scarf)
    pen.at((0, 0), outline="#00000000").stroke(
        [(-0.38, 0.1), (0, 0.16), (0.38, 0.1)], 0.05, look.stripe
    )


def _tail(pen: Pen, look: Look) -> None:
    """A bushy tail that starts at the origin and rises to the right, with a star near its tip."""
    pen.blob(
        [
            (0, 0.02),
            (0.3, 0.08),
            (0.66, -0.08),
            (0.86, -0.5),
            (0.72, -0.95),
            (0.5, -0.72),
            (0.38, -0.42),
            (0.1, -0.16),
        ],
        look.coat,
    )
    soft = pen.at((0, 0), outline="#00000000")
    soft.blob(
        [(0.85, -0.52), (0.71, -0.92), (0.52, -0.72), (0.55, -0.62), (0.66, -0.64), (0.72, -0.5)],
        look.white,
    )
    soft.star((0.62, -0.3), 0.12, look.star, angle=0.3)


def _paw(pen: Pen, centre: Point, look: Look, radii: Point = (0.16, 0.11)) -> None:
    pen.ellipse(centre, radii, look.white)
    toes = pen.at(centre, outline="#00000000")
    for offset in (-0.05, 0.05):
        toes.stroke([(offset, 0.0), (offset, radii[1] * 0.7)], 0.025, look.line)


def _torso(pen: Pen, look: Look) -> None:
    pen.blob(
        _mirrored(
            [(0, 0.0), (0.3, 0.08), (0.44, 0.5), (0.56, 0.92), (0.46, 1.16), (0.2, 1.2), (0, 1.2)]
        ),
        look.coat,
    )
    soft = pen.at((0, 0), outline="#00000000")
    soft.blob(_mirrored([(0, 0.2), (0.2, 0.26), (0.27, 0.6), (0.2, 0.98), (0, 1.06)]), look.white)


def _sit(pen: Pen, mood: Mood, look: Look) -> None:
    _tail(pen.at((0.36, 1.1)), look)
    _torso(pen, look)
    for x in (-0.18, 0.18):
        _paw(pen, (x, 1.14), look)
    _scarf(pen, look)
    _head(pen, mood, look)


def _wave(pen: Pen, mood: Mood, look: Look) -> None:
    _tail(pen.at((0.36, 1.1)), look)
    _torso(pen, look)
    _paw(pen, (0.18, 1.14), look)
    arm = [(-0.28, 0.3), (-0.38, 0.58), (-0.66, 0.44), (-0.92, 0.14), (-0.8, 0.0), (-0.6, 0.16)]
    _scarf(pen, look, flutter=0.3)
    _head(pen, mood, look)
    pen.blob(arm, look.coat)
    _paw(pen.at((-0.88, 0.04), angle=math.pi * 0.75), (0, 0), look, (0.15, 0.12))


def _jump(pen: Pen, mood: Mood, look: Look) -> None:
    _tail(pen.at((0.2, 0.8), angle=0.5), look)
    pen.blob(_mirrored([(0, 0.0), (0.3, 0.1), (0.42, 0.5), (0.34, 0.86), (0, 0.94)]), look.coat)
    soft = pen.at((0, 0), outline="#00000000")
    soft.blob(_mirrored([(0, 0.2), (0.2, 0.28), (0.24, 0.56), (0, 0.82)]), look.white)
    for side in (-1, 1):
        half = pen.at((0, 0), mirror=side < 0)
        half.blob(
            [(0.26, 0.26), (0.5, 0.12), (0.84, -0.02), (0.9, 0.12), (0.64, 0.34), (0.36, 0.46)],
            look.coat,
        )
        _paw(half.at((0.86, 0.04), angle=-1.9), (0, 0), look, (0.14, 0.11))
        _paw(half.at((0.36, 0.92), angle=-0.5), (0, 0), look, (0.15, 0.13))
    _scarf(pen, look, flutter=1.3)
    _head(pen, mood, look)


def _back(pen: Pen, mood: Mood, look: Look) -> None:
    del mood
    _torso_back(pen, look)
    for side in (-1, 1):
        ear = pen.at((0, 0), mirror=side < 0)
        ear.blob(
            [(0.12, -0.88), (0.3, -1.12), (0.56, -1.38), (0.66, -1.0), (0.62, -0.6)], look.coat
        )
    right = [
        (0, -1.0),
        (0.36, -0.93),
        (0.62, -0.62),
        (0.7, -0.33),
        (0.52, -0.1),
        (0.26, 0.02),
        (0, 0.05),
    ]
    pen.blob(_mirrored(right), look.coat)
    _scarf(pen.at((0, 0), mirror=True), look, flutter=0.2)
    _tail(pen.at((-0.12, 1.12), scale=1.1), look)


def _torso_back(pen: Pen, look: Look) -> None:
    pen.blob(
        _mirrored(
            [(0, 0.0), (0.3, 0.08), (0.44, 0.5), (0.56, 0.92), (0.46, 1.16), (0.2, 1.2), (0, 1.2)]
        ),
        look.coat,
    )


def _sleep(pen: Pen, mood: Mood, look: Look) -> None:
    """Curled up: the body a round loaf, the tail in front, the head resting on it."""
    del mood
    pen.blob(
        [(-0.2, 0.3), (0.4, 0.1), (1.0, 0.3), (1.24, 0.8), (1.0, 1.16), (0.2, 1.2), (-0.4, 1.1)],
        look.coat,
    )
    _head(pen.at((-0.25, 0.98), angle=-0.12, scale=0.86), "sleepy", look)
    pen.blob(
        [
            (1.2, 0.8),
            (1.16, 1.12),
            (0.7, 1.3),
            (0.1, 1.28),
            (-0.28, 1.12),
            (0.1, 0.98),
            (0.6, 0.98),
            (0.94, 0.8),
        ],
        look.coat,
    )
    soft = pen.at((0, 0), outline="#00000000")
    soft.blob([(0.14, 1.27), (-0.24, 1.12), (0.1, 1.0), (0.2, 1.06), (0.1, 1.14)], look.white)
    soft.star((0.6, 1.13), 0.11, look.star, angle=0.2)
    pen.blob([(0.22, 0.62), (0.44, 0.5), (0.62, 0.72), (0.54, 0.96), (0.34, 0.96)], look.scarf)


def _walk(pen: Pen, mood: Mood, look: Look) -> None:
    """To the left, body from the side, face to the viewer."""
    _tail(pen.at((0.95, 0.62), angle=0.15), look)
    for x in (0.12, 0.86):
        pen.blob([(x, 0.7), (x + 0.2, 0.7), (x + 0.24, 1.14), (x + 0.04, 1.14)], look.shade)
    pen.blob(
        [(-0.2, 0.1), (0.3, 0.12), (0.9, 0.2), (1.16, 0.5), (1.0, 0.86), (0.4, 0.92), (-0.1, 0.84)],
        look.coat,
    )
    for x in (-0.16, 0.66):
        pen.blob([(x, 0.64), (x + 0.26, 0.66), (x + 0.2, 1.16), (x - 0.06, 1.16)], look.coat)
        _paw(pen, (x + 0.04, 1.14), look, (0.15, 0.09))
    _scarf(pen, look, flutter=0.9)
    _head(pen, mood, look)


def _peek(pen: Pen, mood: Mood, look: Look) -> None:
    """Head and two paws over an edge at y = 0.25, which the scene draws before."""
    _head(pen, mood, look)
    for x in (-0.5, 0.5):
        _paw(pen, (x, 0.1), look, (0.17, 0.14))


POSES: dict[Pose, Callable[[Pen, Mood, Look], None]] = {
    "sit": _sit,
    "wave": _wave,
    "jump": _jump,
    "back": _back,
    "sleep": _sleep,
    "walk": _walk,
    "peek": _peek,
}
