"""Folders of pictures that say in their names how they are trained on: 10_subject."""

from __future__ import annotations

from pathlib import Path


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
        visits, _, class_tokens = path.name.partition("_")
        if not visits.isdecimal():
            left_out.append(f"{path} is left out: its name does not begin with a number and _")
            continue
        subset: dict[str, object] = {"image_dir": str(path), "num_repeats": int(visits)}
        subsets.append(subset | ({"class_tokens": class_tokens} if class_tokens else {}))
    return subsets, left_out
