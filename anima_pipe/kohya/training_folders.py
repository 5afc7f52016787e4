"""Folders as datasets: one of pictures, or one of folders whose names say how often: 10_subject."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from anima_pipe.errors import DataError
from anima_pipe.kohya.options import find_option
from anima_pipe.runtime import counted

FOLDER_RESOLUTION: Final = (1024, 1024)
"""Of a bare folder where nothing says otherwise: what Anima is trained at."""


def folder_table(folder: Path, options: Mapping[str, object]) -> tuple[dict[str, Any], list[str]]:
    """Return the dataset.toml that a bare folder stands for.

    It is a folder of pictures, or one of folders named 10_subject, as Kohya's --train_data_dir.
    What the name says holds for a folder of pictures too. Who names a folder and nothing more
    wants pictures of any shape at their best: bucketed, with sides from a quarter to twice the
    resolution instead of Kohya's fixed 256 and 1024.

    Args:
        folder: It is there.
        options: What the user set, by the keys of dataset.toml; it wins.

    Returns:
        The table, and what should be said of it, in sentences.
    """
    subsets, notes = _subsets(folder)
    if not subsets or _holds_pictures(folder):
        subsets, notes = _one_subset(folder, beside=len(subsets))
    resolution = cast("tuple[int, int]", options.get("resolution", FOLDER_RESOLUTION))
    step = cast("int", options.get("bucket_reso_steps", _default("bucket_reso_steps")))
    dataset: dict[str, object] = {
        "resolution": resolution,
        "enable_bucket": True,
        "min_bucket_reso": max(min(resolution) // 4, step),
        "max_bucket_reso": 2 * max(resolution),
    }
    left_to_us = [_without(subset, options) for subset in subsets]
    return {"datasets": [{**_without(dataset, options), "subsets": left_to_us}]}, notes


def _one_subset(folder: Path, beside: int) -> tuple[list[dict[str, object]], list[str]]:
    """Return the subset of a folder of pictures, `beside` which are so many named like it."""
    notes: list[str] = []
    if beside:
        notes.append(
            f"{counted(beside, 'folder')} named like 10_subject in {folder} left out, for pictures "
            f"lie beside them; --train_data_dir {folder} takes the folders instead"
        )
    subset = _subset(folder)
    # Of a folder named 2024 and no more nobody knows that a number of visits is meant.
    if subset is None or "class_tokens" not in subset:
        return [{"image_dir": str(folder)}], notes
    notes.append(
        f"{folder}: {subset['num_repeats']} visits of each picture per epoch, by the folder's name "
        "as in Kohya; --dataset_repeats wins"
    )
    return [subset], notes


def _default(name: str) -> object:
    option = find_option(name)
    assert option is not None
    return option.default


def _without(table: Mapping[str, object], options: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in table.items() if key not in options}


def _holds_pictures(folder: Path) -> bool:
    # Pillow is not for modules that --help needs.
    from anima_pipe.source.images import image_names

    try:
        return bool(image_names(folder))
    except DataError:
        return False


def training_folders(
    folder: Path, reg_folder: Path | None = None
) -> tuple[list[dict[str, object]], list[str]]:
    """Return the subsets, by the keys of dataset.toml, that the folders within a folder are.

    A name is the number of visits per epoch, an underscore, and the caption of pictures that have
    no caption file; Kohya calls it the class tokens.

    Args:
        folder: Holds folders of pictures to train on.
        reg_folder: Holds folders of regularisation pictures.

    Returns:
        The subsets in the order of the folders' names, those to train on first, and a sentence for
        each folder that is left out, as Kohya leaves it out, for want of a number.
    """
    subsets, left_out = _subsets(folder)
    if reg_folder:
        reg_subsets, reg_left_out = _subsets(reg_folder)
        subsets += [{**subset, "is_reg": True} for subset in reg_subsets]
        left_out += reg_left_out
    return subsets, left_out


def _subsets(folder: Path) -> tuple[list[dict[str, object]], list[str]]:
    if not folder.is_dir():
        return [], []
    subsets: list[dict[str, object]] = []
    left_out: list[str] = []
    for path in sorted(folder.iterdir()):
        if not path.is_dir():
            continue
        if subset := _subset(path):
            subsets.append(subset)
        else:
            left_out.append(f"{path} is left out: its name does not begin with a number and _")
    return subsets, left_out


def _subset(folder: Path) -> dict[str, object] | None:
    """Return what the name of a folder of pictures says; None: nothing."""
    name = folder.name if folder.name not in ("", "..") else folder.resolve().name
    visits, _, class_tokens = name.partition("_")
    if not visits.isdecimal():
        return None
    subset: dict[str, object] = {"image_dir": str(folder), "num_repeats": int(visits)}
    return subset | ({"class_tokens": class_tokens} if class_tokens else {})
