"""From a picture of any size to the pixels of its bucket, with the filters that Kohya uses."""

from __future__ import annotations

from collections.abc import Callable
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
        return _area_average(picture, choice)
    if interpolation not in FILTERS:
        raise ConfigError(
            f'resize interpolation "{interpolation}" is not a valid interpolation',
            f"use one of {', '.join([AREA, *FILTERS])}",
        )
    resized = picture.resize(choice.resized, FILTERS[interpolation])
    return np.array(resized.crop((left, top, left + width, top + height)))


def _area_average(picture: Image.Image, choice: BucketChoice) -> NDArray[np.uint8]:
    """Average the area of the picture under each pixel of the bucket, as OpenCV's INTER_AREA.

    Pillow's BOX is not that: it counts a source pixel fully or not at all.
    """
    left, top = choice.crop
    width, height = choice.bucket
    channels = len(picture.getbands())

    def rows_of_picture(start: int, stop: int) -> NDArray[np.uint8]:
        # The rows that are wanted: all of them would be in memory three times on the way.
        rows = np.asarray(picture.crop((0, start, picture.width, stop)))
        return rows.reshape(stop - start, -1)

    rows = _averaged(
        rows_of_picture, (picture.height, picture.width * channels), choice.resized[1], top, height
    )
    # Averaging is over the first axis, where whole lines are added up at memory speed.
    columns = np.ascontiguousarray(rows.reshape(height, -1, channels).transpose(1, 2, 0))
    columns = columns.reshape(columns.shape[0], -1)
    averaged = _averaged(
        lambda start, stop: columns[start:stop], columns.shape, choice.resized[0], left, width
    ).reshape(width, channels, height)
    bucket = np.ascontiguousarray(np.rint(averaged).astype(np.uint8).transpose(2, 0, 1))
    return bucket if channels > 1 else bucket[:, :, 0]


def _averaged(
    lines: Callable[[int, int], NDArray[np.uint8] | NDArray[np.float32]],
    shape: tuple[int, int],
    resized: int,
    first: int,
    count: int,
) -> NDArray[np.float32]:
    """Resize the first axis to `resized` lines by area and return `count` of them from `first`.

    Args:
        lines: Returns those from one number to before another, [n, M].
        shape: Of all lines, (N, M).
        resized: Length of the first axis after resizing.
        first: The first line wanted.
        count: How many lines are wanted.
    """
    available = shape[0]
    averaged = np.empty((count, shape[1]), dtype=np.float32)
    for index in range(count):
        # In whole numbers, a line is `resized` long, and a resized line `available`.
        begin = (first + index) * available
        end = begin + available
        start, stop = begin // resized, -(-end // resized)
        weights = np.full(stop - start, resized, dtype=np.float32)
        weights[0] -= begin - start * resized
        weights[-1] -= stop * resized - end
        covered = lines(start, stop).astype(np.float32, copy=False)
        # Not a matrix product: those start threads, and every worker process would.
        np.einsum("n,nm->m", weights / available, covered, out=averaged[index])
    return averaged
