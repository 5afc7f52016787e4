"""The pictures of a dataset, before any of them is opened: where they are, and by which rules."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Final

from anima_pipe.dataset.columns import FileNames, MadeWhenAsked
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig, held_out
from anima_pipe.errors import DataError
from anima_pipe.source.images import image_names
from anima_pipe.source.links import Bounds
from anima_pipe.source.mask_files import find_masks
from anima_pipe.source.metadata_file import read_metadata_file

ANYWHERE: Final = Bounds()
"""What lies in no named folder was named itself, and may lie where it wants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture of one subset, not looked into yet."""

    folder: Path
    """One object for all pictures in it."""
    name: str
    dataset: DatasetConfig
    subset: SubsetConfig
    caption: str | None = None
    """By a metadata file; None: the file beside the picture says it."""
    refused: str | None = None
    """Why a metadata file's entry of it cannot be used; None: it can."""
    mask: Path | None = None
    """Its mask image, where the subset has a folder of them."""
    held_out: bool = False
    """It is for validation, and not trained on."""
    bounds: Bounds = ANYWHERE
    """Of its dataset."""

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder / self.name

    @property
    def rules(self) -> SubsetConfig:
        """How it is shown: the subset's rules, of which validation leaves nothing to chance."""
        return self.subset.without_chance if self.held_out else self.subset


def find_pictures(
    datasets: Sequence[DatasetConfig], *, links_refused: str | None = None
) -> Sequence[Picture]:
    """List the pictures of every subset, in a stable order, without opening them.

    What is kept is their names; the records are made when they are asked for.

    Args:
        datasets: What was asked for.
        links_refused: Why links that lead out of its folders are not followed; None: they are.

    Raises:
        DataError: A folder is missing or holds no pictures, a metadata file cannot be read, a
            picture has no mask in its subset's folder of masks, validation leaves no picture to
            train on, or a folder or a metadata file is a link that is not followed.
    """
    subsets = [(dataset, subset) for dataset in datasets for subset in dataset.subsets]
    bounds = Bounds(_named_folders(datasets), links_refused)
    listings = [_listing(dataset, subset, bounds) for dataset, subset in subsets]
    starts = [0, *accumulate(len(listing.folder_of) for listing in listings)]

    def picture(place: int) -> Picture:
        number = bisect_right(starts, place) - 1
        return listings[number].picture(place - starts[number])

    pictures = MadeWhenAsked(starts[-1], picture)
    if all(picture.held_out for picture in pictures):
        raise DataError(
            f"validation_split holds out all {len(pictures)} pictures", "lower validation_split"
        )
    return pictures


def _named_folders(datasets: Sequence[DatasetConfig]) -> Iterator[Path]:
    for subset in (subset for dataset in datasets for subset in dataset.subsets):
        yield subset.found_in or subset.image_dir
        if subset.mask_dir:
            yield subset.mask_dir


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """The pictures of one subset, in columns."""

    dataset: DatasetConfig
    subset: SubsetConfig
    folders: Sequence[Path]
    folder_of: Sequence[int]
    """In which of the folders each picture is."""
    names: FileNames
    captions: Sequence[str | None] | None
    """By a metadata file, where there is one."""
    refused: Mapping[int, str]
    """Why what a metadata file says of some cannot be used, by their places."""
    masks: FileNames | None
    """In the subset's folder of masks, where there is one."""
    held_out: frozenset[int]
    bounds: Bounds

    def picture(self, place: int) -> Picture:
        """Return one of them."""
        masks, mask_dir = self.masks, self.subset.mask_dir
        return Picture(
            folder=self.folders[self.folder_of[place]],
            name=self.names[place],
            dataset=self.dataset,
            subset=self.subset,
            caption=self.captions[place] if self.captions else None,
            refused=self.refused.get(place),
            mask=mask_dir / masks[place] if mask_dir and masks else None,
            held_out=place in self.held_out,
            bounds=self.bounds,
        )


def _listing(dataset: DatasetConfig, subset: SubsetConfig, bounds: Bounds) -> _Listing:
    """List a subset's pictures, those that are held out marked."""
    if subset.found_in:
        bounds.admit(subset.image_dir)
    captions: list[str | None] | None = None
    refused: dict[int, str] = {}
    if subset.metadata_file:
        bounds.admit(subset.metadata_file)
        described = read_metadata_file(
            subset.metadata_file,
            subset.image_dir,
            separator=subset.captions.caption_separator,
            enable_wildcard=subset.captions.enable_wildcard,
        )
        captions = [picture.caption for picture in described]
        refused = {place: one.refused for place, one in enumerate(described) if one.refused}
        names = [picture.path.name for picture in described]
        numbers: dict[Path, int] = {}
        places = [numbers.setdefault(one.path.parent, len(numbers)) for one in described]
        folders = list(numbers)
    else:
        names = _names_in(subset.image_dir)
        folders, places = [subset.image_dir], [0] * len(names)
    share = 0.0 if subset.is_reg else subset.validation_split
    return _Listing(
        dataset=dataset,
        subset=subset,
        folders=folders,
        folder_of=array("I", places),
        names=FileNames(names),
        captions=captions,
        refused=refused,
        masks=FileNames(find_masks(subset.mask_dir, names)) if subset.mask_dir else None,
        held_out=held_out(len(names), share, subset.validation_seed),
        bounds=bounds,
    )


def _names_in(folder: Path) -> list[str]:
    names = image_names(folder)
    if not names:
        raise DataError(
            f"no pictures in {folder}",
            "put pictures (png, jpg, webp, ...) directly into the folder, or correct image_dir",
        )
    return names
