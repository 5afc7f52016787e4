"""Mask images: a folder of them beside the pictures, each named like its picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from anima_pipe.errors import DataError
from anima_pipe.records import ImageFile
from anima_pipe.runtime import counted
from anima_pipe.source.images import image_names

NAMED = 3
"""Pictures without a mask that the error names."""


def find_masks(folder: Path, pictures: Sequence[str]) -> list[str]:
    """Return the file name of each picture's mask: the image of the same name but for its suffix.

    Args:
        folder: Of the masks.
        pictures: File names of one subset's pictures.

    Raises:
        DataError: The folder cannot be listed, or a picture has no mask, which Kohya refuses too.
    """
    # Reversed, so that of several masks of one name the first counts.
    masks = {_stem(name): name for name in reversed(image_names(folder))}
    without = [name for name in pictures if _stem(name) not in masks]
    if without:
        first = ", ".join(without[:NAMED]) + (", ..." if len(without) > NAMED else "")
        raise DataError(
            f"{len(without)} of {counted(len(pictures), 'picture')} without a mask in {folder}: "
            f"{first}",
            "add a mask of the same name for each (all white: everything counts), or correct "
            "conditioning_data_dir",
        )
    return [masks[_stem(name)] for name in pictures]


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - a Path for each is five times slower


def refuse_other_size(mask: ImageFile, picture: ImageFile) -> None:
    """Make sure that a mask lies over its picture pixel by pixel.

    Raises:
        DataError: It has another size.
    """
    if mask.size != picture.size:
        raise DataError(
            f"its mask {mask.path} is {mask.size[0]}x{mask.size[1]} pixels, the picture "
            f"{picture.size[0]}x{picture.size[1]}",
            "save the mask in the picture's size",
        )
