"""What a dataset needs: its pictures, the latents and the captions that training will ask for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from pathlib import Path

from anima_pipe.buckets import choose_bucket
from anima_pipe.dataset.config import DatasetConfig, SubsetConfig, held_out, regularisation_visits
from anima_pipe.dataset.face_crops import face_in_name
from anima_pipe.dataset.requests import Requests, latent_requests, mask_requests
from anima_pipe.errors import DataError
from anima_pipe.records import BucketChoice, ImageFile, LatentRequest, MaskRequest, Skipped
from anima_pipe.runtime import counted, say
from anima_pipe.source.caption_files import read_caption, read_json_caption
from anima_pipe.source.images import find_images
from anima_pipe.source.json_captions import GroupedCaption
from anima_pipe.source.mask_files import find_masks
from anima_pipe.source.metadata_file import read_metadata_file
from anima_pipe.source.scan import scan_images
from anima_pipe.source.variants import CaptionTexts, caption_texts


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
    mask: Path | None = None
    """Its mask image, where the subset has a folder of them."""
    held_out: bool = False
    """It is for validation, and not trained on."""

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.folder / self.name

    @property
    def rules(self) -> SubsetConfig:
        """How it is shown: the subset's rules, of which validation leaves nothing to chance."""
        return self.subset.without_chance if self.held_out else self.subset


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One picture and everything that training may draw for it."""

    picture: Picture
    size: tuple[int, int]
    """(width, height) after EXIF rotation, in pixels."""
    content: str
    """Hash of the file's bytes."""
    mask: ImageFile | None
    """Its mask image, where there is one."""
    choice: BucketChoice
    crop_variants: int
    """See `survey_pictures`."""
    latent_keys: tuple[str, ...]
    """One per crop and orientation: as it is, and mirrored where flip_aug asks for it."""
    mask_keys: tuple[str, ...]
    """One per latent, in their order; empty where everything counts."""
    captions: CaptionTexts
    """Final texts, one of which is drawn per visit; none where they were not read."""
    visits: int
    """Per epoch; 0 where the picture is held out."""

    @property
    def image(self) -> ImageFile:
        """The picture's file as the scan found it."""
        return ImageFile(path=self.picture.path, size=self.size, content=self.content)

    def latents(self) -> list[LatentRequest]:
        """Return what `latent_keys` are the keys of."""
        return latent_requests(self.picture.rules, self.image, self.choice, self.crop_variants)

    def masks(self) -> list[MaskRequest]:
        """Return what `mask_keys` are the keys of."""
        return mask_requests(self.picture.path, self.mask, self.latents())


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All samples of all datasets, and what could not be used."""

    datasets: tuple[DatasetConfig, ...]
    samples: tuple[Sample, ...]
    latents: Mapping[str, LatentRequest]
    """Every latent that the samples need, by key."""
    masks: Mapping[str, MaskRequest]
    """Every mask that they need, by key."""
    skipped: tuple[Skipped, ...]
    """Pictures that cannot be used."""
    too_small: int = 0
    """Pictures left out by skip_image_resolution."""
    not_needed: int = 0
    """Regularisation pictures left out because the others are enough."""

    @property
    def captions(self) -> list[str]:
        """The distinct texts of all samples, and the empty one that caption dropout puts in."""
        return list(dict.fromkeys(["", *(c for sample in self.samples for c in sample.captions)]))

    def without(self, lost: AbstractSet[str], failed: Sequence[Skipped]) -> Survey:
        """Leave out pictures that turned out unreadable when they or their masks were decoded.

        Args:
            lost: Keys of the latents and masks that there cannot be.
            failed: The pictures, and why.

        Raises:
            DataError: No picture is left.
        """
        used = [s for s in self.samples if lost.isdisjoint(s.latent_keys + s.mask_keys)]
        samples = _balanced(used)
        if not samples:
            raise DataError(
                f"none of the {counted(len(self.samples), 'picture')} can be decoded; "
                f"the first: {failed[0].reason}",
                "mend the files, or point image_dir to other pictures",
            )
        return replace(
            self,
            samples=samples,
            # A picture may be wanted in several latents and masks; it is named once.
            skipped=tuple(dict.fromkeys([*self.skipped, *failed])),
            not_needed=self.not_needed + len(used) - len(samples),
        )


def find_pictures(datasets: Sequence[DatasetConfig]) -> list[Picture]:
    """List the pictures of every subset, in a stable order, without opening them.

    Raises:
        DataError: A folder is missing or holds no pictures, a metadata file cannot be read, a
            picture has no mask in its subset's folder of masks, or validation leaves no picture to
            train on.
    """
    pictures = [
        picture
        for dataset in datasets
        for subset in dataset.subsets
        for picture in _split(dataset, subset)
    ]
    if all(picture.held_out for picture in pictures):
        raise DataError(
            f"validation_split holds out all {len(pictures)} pictures", "lower validation_split"
        )
    return pictures


def _split(dataset: DatasetConfig, subset: SubsetConfig) -> Iterator[Picture]:
    """Yield a subset's pictures, those that are held out marked."""
    listed = _listed(subset)
    masks = find_masks(subset.mask_dir, [path for path, _ in listed])
    share = 0.0 if subset.is_reg else subset.validation_split
    for_validation = held_out(len(listed), share, subset.validation_seed)
    folders: dict[Path, Path] = {}
    for place, ((path, caption), mask) in enumerate(zip(listed, masks, strict=True)):
        folder = folders.setdefault(path.parent, path.parent)
        yield Picture(
            folder=folder,
            name=path.name,
            dataset=dataset,
            subset=subset,
            caption=caption,
            mask=mask,
            held_out=place in for_validation,
        )


def _listed(subset: SubsetConfig) -> list[tuple[Path, str | None]]:
    """Return a subset's pictures, and what a metadata file says of them."""
    if subset.metadata_file:
        described = read_metadata_file(
            subset.metadata_file,
            subset.image_dir,
            separator=subset.captions.caption_separator,
            enable_wildcard=subset.captions.enable_wildcard,
        )
        return [(picture.path, picture.caption) for picture in described]
    paths = find_images(subset.image_dir)
    if not paths:
        raise DataError(
            f"no pictures in {subset.image_dir}",
            "put pictures (png, jpg, webp, ...) directly into the folder, or correct image_dir",
        )
    return [(path, None) for path in paths]


def survey_pictures(
    pictures: Sequence[Picture],
    *,
    caption_variants: int | None,
    crop_variants: int = 1,
    cache_dir: Path | None = None,
    rehash: bool = False,
) -> Survey:
    """Read every picture's header, hash and caption, and choose its bucket.

    Args:
        pictures: From `find_pictures`.
        caption_variants: Texts per caption; None: 1 where nothing varies, else 8; 0: captions are
            not read.
        crop_variants: Crops per picture where random_crop or face_crop_aug_range asks for them.
        cache_dir: Where earlier scans are remembered; pictures that have not changed since are not
            read again. None: nothing is remembered.
        rehash: Read every picture nevertheless.

    Returns:
        The samples in the order of the pictures. Pictures that cannot be read are listed as
        skipped, not raised.

    Raises:
        DataError: Not one picture can be used.
    """
    samples: list[Sample] = []
    skipped: list[Skipped] = []
    too_small = 0
    images = scan_images((picture.path for picture in pictures), cache_dir, rehash=rehash)
    masks = list(dict.fromkeys(picture.mask for picture in pictures if picture.mask))
    mask_images = dict(zip(masks, scan_images(masks, cache_dir, rehash=rehash), strict=True))
    for picture, image in zip(pictures, images, strict=True):
        if isinstance(image, ImageFile) and picture.dataset.leaves_out(image.size):
            too_small += 1
            continue
        mask = mask_images[picture.mask] if picture.mask else None
        try:
            samples.append(_sample(picture, image, mask, caption_variants, crop_variants))
        except DataError as error:
            skipped.append(Skipped(name=str(picture.path), reason=error.problem))
    if too_small:
        say(f"{too_small} of {len(pictures)} pictures are left out by skip_image_resolution")
    if not samples:
        raise _none_left(pictures, skipped)
    balanced = _balanced(samples)
    if unused := len(samples) - len(balanced):
        say(f"{counted(unused, 'regularisation picture')} not used: the others are enough")
    cropped = [s.picture for s in balanced if s.picture.subset.face_crop_aug_range]
    if faceless := sum(face_in_name(picture.path.stem) is None for picture in cropped):
        say(f"no face in the file names of {counted(faceless, 'picture')} of face_crop_aug_range")
    datasets = {id(picture.dataset): picture.dataset for picture in pictures}
    return Survey(
        datasets=tuple(dict.fromkeys(datasets.values())),
        samples=balanced,
        latents=Requests({key: s for s in balanced for key in s.latent_keys}, Sample.latents),
        masks=Requests({key: s for s in balanced for key in s.mask_keys}, Sample.masks),
        skipped=tuple(skipped),
        too_small=too_small,
        not_needed=len(samples) - len(balanced),
    )


def _sample(
    picture: Picture,
    image: ImageFile | DataError,
    mask: ImageFile | DataError | None,
    caption_variants: int | None,
    crop_variants: int,
) -> Sample:
    """Read one picture's caption, choose its bucket, and say what it needs.

    Raises:
        DataError: The picture, its mask or its caption cannot be used.
    """
    if isinstance(image, DataError):
        raise image
    captions = CaptionTexts(full=())
    if caption_variants != 0:
        captions = picture_captions(picture, caption_variants)
    choice = choose_bucket(picture.dataset.buckets, image_size=image.size)
    latents = latent_requests(picture.rules, image, choice, crop_variants)
    is_masked = mask is not None or picture.subset.alpha_mask
    masks = mask_requests(picture.path, mask, latents) if is_masked else []
    return Sample(
        picture=picture,
        size=image.size,
        content=image.content,
        mask=None if isinstance(mask, DataError) else mask,
        choice=choice,
        crop_variants=crop_variants,
        latent_keys=tuple(request.key for request in latents),
        mask_keys=tuple(request.key for request in masks),
        captions=captions,
        visits=0 if picture.held_out else picture.subset.num_repeats,
    )


def _none_left(pictures: Sequence[Picture], skipped: Sequence[Skipped]) -> DataError:
    reason = f"; the first: {skipped[0].reason}" if skipped else ", they are all too small"
    return DataError(
        f"none of the {counted(len(pictures), 'picture')} can be used{reason}",
        "mend the files, or point image_dir to other pictures",
    )


def _balanced(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Give each dataset as many visits to regularisation pictures as to others.

    Regularisation pictures that come to no visit are left out.
    """
    # By identity: the hash of a dataset is that of all its settings, and pictures are many.
    wanted: Counter[int] = Counter()
    regularising: dict[int, list[int]] = {}
    for place, sample in enumerate(samples):
        dataset = id(sample.picture.dataset)
        if sample.picture.subset.is_reg:
            regularising.setdefault(dataset, []).append(place)
        else:
            wanted[dataset] += sample.visits
    balanced = list(samples)
    for dataset, places in regularising.items():
        repeats = [samples[place].picture.subset.num_repeats for place in places]
        visits = regularisation_visits(repeats, wanted[dataset])
        for place, count in zip(places, visits, strict=True):
            balanced[place] = replace(samples[place], visits=count)
    return tuple(sample for sample in balanced if sample.visits or sample.picture.held_out)


def survey_captions(
    pictures: Iterable[Picture], *, caption_variants: int | None
) -> tuple[list[str], list[Skipped]]:
    """List the distinct final texts that the pictures need, and captions that cannot be read.

    The empty caption is always among them: it is what caption dropout puts in.
    """
    texts: dict[str, None] = {"": None}
    skipped: list[Skipped] = []
    for picture in pictures:
        try:
            texts.update(dict.fromkeys(picture_captions(picture, caption_variants)))
        except DataError as error:
            skipped.append(Skipped(name=str(picture.path), reason=error.problem))
    return list(texts), skipped


def uncaptioned(pictures: Iterable[Picture]) -> list[Skipped]:
    """List the pictures that will be trained with the empty caption for want of a file.

    Raises:
        DataError: No picture of a subset has a caption, which nobody means.
    """
    missing: list[Skipped] = []
    by_subset: dict[int, list[Picture]] = {}
    for picture in pictures:
        if picture.subset.class_tokens is None:
            by_subset.setdefault(id(picture.subset), []).append(picture)
    for members in by_subset.values():
        subset = members[0].subset
        without = [p for p in members if lacks_caption(p)]
        if len(without) == len(members):
            raise DataError(
                f"none of the {counted(len(members), 'picture')} in {subset.image_dir} has a "
                f"caption file ending in {subset.caption_extension}",
                "write captions beside the pictures, or set caption_extension or class_tokens",
            )
        reason = f"no caption file ending in {subset.caption_extension}: the caption is empty"
        missing += [Skipped(name=str(p.path), reason=reason) for p in without]
    return missing


def lacks_caption(picture: Picture) -> bool:
    """Tell whether there is none; one that cannot be read is not missing, it is left out."""
    try:
        return read_raw_caption(picture) is None
    except DataError:
        return False


def read_raw_caption(picture: Picture) -> GroupedCaption | str | None:
    """Return the caption of a metadata file or of the file beside it, else the class tokens.

    Raises:
        DataError: The file is not UTF-8, or is to be JSON and is not.
    """
    if picture.caption is not None:
        return picture.caption
    subset, extension = picture.subset, picture.subset.caption_extension
    if extension.lower().endswith(".json"):
        raw = read_json_caption(picture.path, extension)
    else:
        wildcards = subset.captions.enable_wildcard
        raw = read_caption(picture.path, extension, enable_wildcard=wildcards)
    return subset.class_tokens if raw is None else raw


def picture_captions(picture: Picture, variants: int | None) -> CaptionTexts:
    """Return the final texts of one picture's caption, see `caption_texts`.

    Raises:
        DataError: The caption file is not UTF-8.
    """
    raw = read_raw_caption(picture) or ""
    return caption_texts(raw, picture.rules.captions, 1 if picture.held_out else variants)
