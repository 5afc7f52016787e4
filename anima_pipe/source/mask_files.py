"""Mask images: a folder of them beside the pictures, each named like its picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anima_pipe.errors import DataError
from anima_pipe.records import ImageFile
from anima_pipe.source.images import find_images

NAMED = 3
"""Pictures without a mask that the error names."""


def find_masks(folder: Path | None, pictures: Sequence[Path]) -> list[Path | None]:
    """Return each picture's mask: the image of the same name, whatever its extension.

    Args:
        folder: Of the masks; None: there are none.
        pictures: Of one subset.

    Raises:
        DataError: The folder cannot be listed, or a picture has no mask, which Kohya refuses too.
    """
    if folder is None:
        return [None] * len(pictures)
    # Reversed, so that of several masks of one name the first counts.
    masks = {path.stem: path for path in reversed(find_images(folder))}
    without = [path.name for path in pictures if path.stem not in masks]
    if without:
        first = ", ".join(without[:NAMED]) + (", ..." if len(without) > NAMED else "")
        raise DataError(
            f"{len(without)} of {len(pictures)} pictures have no mask in {folder}: {first}",
            "add a mask of the same name for each (all white: everything counts), or correct "
            "conditioning_data_dir",
        )
    return [masks[path.stem] for path in pictures]


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
