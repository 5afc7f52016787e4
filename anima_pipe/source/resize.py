"""From a picture of any size to the pixels of its bucket, with the filters that Kohya uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from anima_pipe.errors import ConfigError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from anima_pipe.records import BucketChoice

AREA = "area"
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "lanczos4": Image.Resampling.LANCZOS,
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "linear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "cubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}
"""Pillow's filters by Kohya's names. Kohya takes nearest, linear and cubic from OpenCV, which does
not widen them to shrink: here they are free of its aliasing, and equal to it only for enlarging."""

MOST_RESIZED_PIXELS = 2**28
"""A narrow strip enlarged to cover its bucket may grow past any memory; this much is 0.8 GB."""


def resize_and_crop(
    picture: Image.Image, choice: BucketChoice, interpolation: str | None
) -> NDArray[np.uint8]:
    """Bring a picture to `choice.resized` and cut its bucket out.

    Args:
        picture: In mode RGB, or L for a mask.
        choice: From `choose_bucket`.
        interpolation: Kohya's name of a filter; None: area where neither side grows, else lanczos.

    Returns:
        UInt8[height, width, 3] of the bucket's size, without the last axis for a mask; not shared
        with `picture`.

    Raises:
        ConfigError: There is no filter of that name.
        ValueError: The resized picture would be absurdly large.
    """
    if choice.resized[0] * choice.resized[1] > MOST_RESIZED_PIXELS:
        raise ValueError(
            f"{picture.width}x{picture.height} pixels are too extreme a shape: to cover its "
            f"bucket it would be resized to {choice.resized[0]}x{choice.resized[1]}"
        )
    if interpolation is None:
        grows = choice.resized[0] > picture.width or choice.resized[1] > picture.height
        interpolation = "lanczos" if grows else AREA
    left, top = choice.crop
    width, height = choice.bucket
    if interpolation == AREA:
        return _area_average(np.asarray(picture), choice)
    if interpolation not in FILTERS:
        raise ConfigError(
            f'resize interpolation "{interpolation}" is not a valid interpolation',
            f"use one of {', '.join([AREA, *FILTERS])}",
        )
    resized = picture.resize(choice.resized, FILTERS[interpolation])
    return np.array(resized.crop((left, top, left + width, top + height)))


def _area_average(pixels: NDArray[np.uint8], choice: BucketChoice) -> NDArray[np.uint8]:
    """Average the area of the picture under each pixel of the bucket, as OpenCV's INTER_AREA.

    Pillow's BOX is not that: it counts a source pixel fully or not at all.

    Args:
        pixels: UInt8[height, width, 3], or UInt8[height, width].
        choice: Which part of which size.
    """
    left, top = choice.crop
    width, height = choice.bucket
    rows = _averaged(pixels.reshape(pixels.shape[0], -1), choice.resized[1], top, height)
    # Averaging is over the first axis, where whole lines are added up at memory speed.
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    columns = np.ascontiguousarray(rows.reshape(height, -1, channels).transpose(1, 2, 0))
    columns = columns.reshape(columns.shape[0], -1)
    averaged = _averaged(columns, choice.resized[0], left, width).reshape(width, channels, height)
    bucket = np.ascontiguousarray(np.rint(averaged).astype(np.uint8).transpose(2, 0, 1))
    return bucket.reshape(height, width, *pixels.shape[2:])


def _averaged(
    lines: NDArray[np.uint8] | NDArray[np.float32], resized: int, first: int, count: int
) -> NDArray[np.float32]:
    """Resize the first axis to `resized` lines by area and return `count` of them from `first`.

    Args:
        lines: [N, M].
        resized: Length of the first axis after resizing.
        first: The first line wanted.
        count: How many lines are wanted.
    """
    available = lines.shape[0]
    averaged = np.empty((count, lines.shape[1]), dtype=np.float32)
    for index in range(count):
        # In whole numbers, a line is `resized` long, and a resized line `available`.
        begin = (first + index) * available
        end = begin + available
        start, stop = begin // resized, -(-end // resized)
        weights = np.full(stop - start, resized, dtype=np.float32)
        weights[0] -= begin - start * resized
        weights[-1] -= stop * resized - end
        covered = lines[start:stop].astype(np.float32, copy=False)
        # Not a matrix product: those start threads, and every worker process would.
        np.einsum("n,nm->m", weights / available, covered, out=averaged[index])
    return averaged
