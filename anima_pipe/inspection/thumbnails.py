"""Small copies of pictures and their hashes, decoded in worker processes."""

from __future__ import annotations

import base64
import io
from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from typing import Final, cast

import numpy as np
from PIL import Image

from anima_pipe.errors import DataError
from anima_pipe.inspection.entries import Look
from anima_pipe.inspection.likeness import HASH_SIDE, difference_hash
from anima_pipe.records import ImageFile
from anima_pipe.source.deadly import deadly_picture
from anima_pipe.source.images import decoding_cost, load_small
from anima_pipe.source.workers import Care, WorkerDiedError, in_processes

LONGEST_SIDE: Final = 320
"""Of a thumbnail, in pixels: sharp on dense screens at the size that the page shows it."""

_QUALITY: Final = 70
_PICTURES_PER_TASK: Final = 8


def look_at_all(
    images: Sequence[ImageFile], *, workers: int, thumbnails: bool = True
) -> Generator[Look]:
    """Yield a look at each picture, in order; close it to end the processes at once.

    Args:
        images: The pictures.
        workers: Processes that decode; 0: none beside this one.
        thumbnails: Whether to make them, or only to see what looks alike.

    Raises:
        WorkerDiedError: Processes died of too many pictures; it says which one had the last.
    """
    tasks = [
        list(images[start : start + _PICTURES_PER_TASK])
        for start in range(0, len(images), _PICTURES_PER_TASK)
    ]
    look = partial(_look_at_some, thumbnails)
    care = Care[list[ImageFile], list[Look]](cost=_bytes_at_once, joined=_joined)
    with closing(in_processes(look, tasks, workers, care)) as answers:
        for looks in answers:
            yield from looks


def _look_at_some(thumbnails: bool, images: list[ImageFile]) -> list[Look]:
    return [_look_at(image, thumbnails=thumbnails) for image in images]


def _bytes_at_once(images: Sequence[ImageFile]) -> int:
    return max(decoding_cost(image.size) for image in images)


def _joined(outcomes: Sequence[list[Look] | WorkerDiedError]) -> list[Look]:
    """Return the looks at pictures of which each was tried alone."""
    looks: list[Look] = []
    for outcome in outcomes:
        if isinstance(outcome, WorkerDiedError):
            images = cast("Sequence[ImageFile]", outcome.in_flight)
            looks += [Look(problem=deadly_picture(image.path).problem) for image in images]
        else:
            looks += outcome
    return looks


def _look_at(image: ImageFile, *, thumbnails: bool) -> Look:
    try:
        small = load_small(image, LONGEST_SIDE)
    except DataError as error:
        return Look(problem=error.problem)
    gray = small.convert("L").resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX)
    return Look(
        thumbnail=_data_uri(small) if thumbnails else "",
        likeness=difference_hash(np.asarray(gray)),
    )


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=_QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
