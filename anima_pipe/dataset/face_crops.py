"""Crops around a face that the picture's file name locates: Kohya's face_crop_aug_range.

Plain numbers only, no pictures. Lengths are rounded where Kohya rounds them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

from anima_pipe.records import BucketChoice

_NUMBERS: Final = 4
"""A file is named <name>_<centre x>_<centre y>_<width>_<height>."""

_LEAST_SHIFTED: Final = 40
"""Pixels: smaller faces stay in the very middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """Where a face is, in pixels of the picture."""

    centre: tuple[int, int]
    """(x, y)."""
    size: int
    """The longer side."""


def face_in_name(stem: str) -> Face | None:
    """Return the face that a file name without its ending locates; None: it locates none."""
    parts = stem.split("_")
    numbers = parts[-_NUMBERS:]
    if len(parts) <= _NUMBERS or not all(part.isdecimal() for part in numbers):
        return None
    x, y, width, height = map(int, numbers)
    return Face(centre=(x, y), size=max(width, height)) if x and width and height else None


def face_crops(
    target: tuple[int, int],
    image_size: tuple[int, int],
    face: Face,
    closeness: tuple[float, float],
    count: int,
    *,
    wanders: bool,
    seed: str,
) -> tuple[BucketChoice, ...]:
    """Draw crops of a picture around its face, each at a size of its own.

    Args:
        target: (width, height) of the crop, in pixels.
        image_size: (width, height) of the picture.
        face: Where its face is.
        closeness: From how many to how many faces the shorter side of the crop is long; the picture
            is never enlarged for it, and always covers the crop.
        count: Crops to draw, at least 1. The first ones do not depend on how many follow.
        wanders: Move the crop off the face at random, less often the further (random_crop).
        seed: Of the draws: the same for the same picture, so that its latents are found again.

    Returns:
        At most `count` choices, each once.
    """
    if image_size == target:
        return (BucketChoice(bucket=target, resized=image_size, crop=(0, 0)),)
    rng = random.Random(f"face\x1f{seed}")  # noqa: S311 - not a secret
    crops = (_face_crop(target, image_size, face, closeness, wanders, rng) for _ in range(count))
    return tuple(dict.fromkeys(crops))


def _face_crop(
    target: tuple[int, int],
    image_size: tuple[int, int],
    face: Face,
    closeness: tuple[float, float],
    wanders: bool,
    rng: random.Random,
) -> BucketChoice:
    scale = _scale(target, image_size, face, closeness, rng)
    resized = _rounded(image_size[0] * scale), _rounded(image_size[1] * scale)
    centre = _rounded(face.centre[0] * scale), _rounded(face.centre[1] * scale)
    shifts = closeness[0] != closeness[1] and face.size >= _LEAST_SHIFTED
    shifts = shifts and face.size > min(target) // 10
    # Kohya draws for the rows first.
    top, left = (
        _start(target[axis], resized[axis], centre[axis], face.size * shifts, wanders, rng)
        for axis in (1, 0)
    )
    return BucketChoice(bucket=target, resized=resized, crop=(left, top))


def _scale(
    target: tuple[int, int],
    image_size: tuple[int, int],
    face: Face,
    closeness: tuple[float, float],
    rng: random.Random,
) -> float:
    covering = max(part / whole for part, whole in zip(target, image_size, strict=True))
    if covering >= 1:
        return covering  # Kohya refuses pictures smaller than the crop
    nearest, farthest = closeness
    lowest = min(1.0, max(covering, min(target) / (face.size * farthest)))
    highest = min(1.0, max(lowest, min(target) / (face.size * nearest)))
    return lowest if lowest >= highest else rng.uniform(lowest, highest)


def _start(
    part: int, whole: int, centre: int, shifted_face: int, wanders: bool, rng: random.Random
) -> int:
    """Return where the crop begins along one axis.

    Args:
        part: Length of the crop.
        whole: Length of the resized picture.
        centre: Of the face, in the resized picture.
        shifted_face: Size of the face in the picture; the crop moves by up to a twentieth of it.
        wanders: See `face_crops`.
        rng: The only source of randomness.
    """
    start = centre - part // 2
    if wanders:
        farther = max(whole - centre, centre)
        start += rng.randint(0, farther) + rng.randint(0, farther) - farther
    elif shifted_face:
        start += rng.randint(-shifted_face // 20, shifted_face // 20)
    return max(0, min(start, whole - part))


def _rounded(length: float) -> int:
    return int(length + 0.5)
