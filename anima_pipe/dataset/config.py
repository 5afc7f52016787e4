"""What the user asked to be trained: datasets of subsets of pictures, each with its rules."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

from anima_pipe.buckets import BucketRules
from anima_pipe.errors import ConfigError, check_number
from anima_pipe.source.captions import CaptionRules


@dataclass(frozen=True, slots=True, kw_only=True)
class SubsetConfig:
    """One folder of pictures and the rules for it (Kohya's [[datasets.subsets]]).

    Raises:
        ConfigError: A number is out of its range.
    """

    image_dir: Path
    found_in: Path | None = None
    """The folder that image_dir was found in; None: image_dir was named itself."""
    num_repeats: int = 1
    """How often each picture is visited per epoch; at least 1."""
    caption_extension: str = ".txt"
    """Suffix of the caption file beside each picture, with its dot."""
    class_tokens: str | None = None
    """Caption of pictures that have no caption file."""
    metadata_file: Path | None = None
    """JSON of the pictures to train on, with their captions; None: all pictures of the folder."""
    captions: CaptionRules = field(default_factory=CaptionRules)
    flip_aug: bool = False
    """Train on the mirrored picture too, with probability one half per visit."""
    random_crop: bool = False
    """Crop at one of several places instead of the middle, another one at every visit."""
    face_crop_aug_range: tuple[float, float] | None = None
    """Crop around the face that a file name locates, the crop's shorter side from so many to so
    many faces long; None: faces are not looked for. Only without buckets."""
    resize_interpolation: str | None = None
    """Resampling filter by Kohya's name; None: area to shrink, lanczos to enlarge."""
    loss_weight: float = 1.0
    """Factor of the loss of its pictures; at least 0."""
    sigma_offset: float = 0.0
    """Added to the normal draw behind the noise levels of its pictures; -0.5 to 0.5."""
    is_reg: bool = False
    """Regularisation pictures: visited as often in all as the dataset's other pictures."""
    mask_dir: Path | None = None
    """Folder of mask images named like the pictures: white parts count in the loss."""
    alpha_mask: bool = False
    """Without such a folder: opaque parts of the pictures count in the loss."""
    validation_split: float = 0.0
    """Share of the pictures that is held out for validation, in [0, 1]; of others than is_reg."""
    validation_seed: int = 0
    """Decides which ones they are."""

    def __post_init__(self) -> None:
        check_number("num_repeats", self.num_repeats, least=1)
        check_number("loss_weight", self.loss_weight, least=0)
        check_number("validation_split", self.validation_split, least=0, most=1)
        check_number("validation_seed", self.validation_seed, least=0)

    @property
    def without_chance(self) -> SubsetConfig:
        """The same, but each picture is always shown in the same way."""
        captions = self.captions.without_chance()
        return replace(
            self, captions=captions, flip_aug=False, random_crop=False, face_crop_aug_range=None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """Subsets that share a resolution and a batch size (Kohya's [[datasets]]).

    Raises:
        ConfigError: There are no subsets, or the batch size is below 1.
    """

    subsets: tuple[SubsetConfig, ...]
    buckets: BucketRules
    batch_size: int = 1
    skip_image_resolution: tuple[int, int] | None = None
    """Pictures of no more than this area, in pixels, are left out."""

    def __post_init__(self) -> None:
        if not self.subsets:
            raise ConfigError("a dataset has no subsets", "give it a subset with pictures")
        check_number("batch_size", self.batch_size, least=1)

    def leaves_out(self, image_size: tuple[int, int]) -> bool:
        """Tell whether a picture of this (width, height) is too small to be trained on."""
        limit = self.skip_image_resolution
        return limit is not None and image_size[0] * image_size[1] <= limit[0] * limit[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeakageConfig:
    """How it is measured what an adapter learned, and what else it changed."""

    trigger: tuple[str, ...] = ()
    """What calls the subject, each a word or several; (): the tags that nearly all captions of a
    folder share."""


def held_out(count: int, share: float, seed: int) -> frozenset[int]:
    """Choose the pictures of a subset that are held out, by Kohya's rule.

    Kohya shuffles the list and takes its last round(count * share) for validation. It trains on the
    first ceil(count * (1 - share)), which may have one of them among them: here none is.

    Returns:
        Their places in the list.
    """
    if not share:
        return frozenset()
    places = list(range(count))
    random.Random(seed).shuffle(places)  # noqa: S311 - not a secret
    return frozenset(places[count - round(count * share) :])


def regularisation_visits(repeats: Sequence[int], wanted: int) -> list[int]:
    """Spread an epoch's visits over regularisation pictures, by Kohya's rule.

    They come in one after the other, each with its own repeats, until there are as many visits as
    wanted; the others stay out. Where all of them are too few, each in turn gets one visit more.

    Args:
        repeats: Of each picture, at least 1.
        wanted: Visits of the training pictures of their dataset.

    Returns:
        Visits of each picture. Their sum may be above `wanted` by less than the last one's repeats.
    """
    sums = accumulate(repeats)
    visits = [
        own if with_own - own < wanted else 0 for own, with_own in zip(repeats, sums, strict=True)
    ]
    rounds, rest = divmod(max(0, wanted - sum(visits)), len(visits))
    return [own + rounds + (place < rest) for place, own in enumerate(visits)]
