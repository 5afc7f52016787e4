"""What a dataset needs: its pictures, the latents and the captions that training will ask for.

Keys are content: they depend on the picture's bytes and on what changes its pixels, or on the
caption's final text, and on nothing else. So a renamed file, another learning rate or another
number of repeats needs nothing new.

Pictures go through one by one: what the scan says of one, its bucket, the keys of what it needs.
What stays is a row of a table, `anima_pipe.dataset.samples`; the records that this module's callers
see are made of rows. So a stage that goes through a survey once needs no more memory for 20,000
pictures than for 1,000, and training, which asks for all records, may keep them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from anima_pipe.buckets import choose_bucket
from anima_pipe.dataset.config import DatasetConfig, regularisation_visits
from anima_pipe.dataset.face_crops import face_in_name
from anima_pipe.dataset.links import LinksOut, links_out
from anima_pipe.dataset.picture_captions import picture_captions, uncaptioned
from anima_pipe.dataset.pictures import Picture
from anima_pipe.dataset.requests import Requests, latent_requests, mask_requests
from anima_pipe.dataset.samples import Sample, SampleTable
from anima_pipe.errors import DataError
from anima_pipe.records import MOST_PIXELS, ImageFile, LatentRequest, MaskRequest, Skipped
from anima_pipe.runtime import counted, say
from anima_pipe.source.boundary import one_item
from anima_pipe.source.deadly import DeadlyPictures, deadly_picture
from anima_pipe.source.images import REMEDY, refuse_more_pixels
from anima_pipe.source.scan import scan_images
from anima_pipe.source.variants import CaptionNote, CaptionTexts

UNREAD: Final = CaptionTexts(full=())
"""In the place of captions that were not read."""


class NothingUsableError(DataError):
    """Not one picture of a dataset can be used.

    Args:
        problem: See `PipeError`.
        remedy: The same.
        skipped: All of the pictures that were left out, and why.
    """

    def __init__(self, problem: str, remedy: str, skipped: Sequence[Skipped]) -> None:
        super().__init__(problem, remedy)
        self.skipped = tuple(skipped)


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """All samples of all datasets, and what could not be used."""

    datasets: tuple[DatasetConfig, ...]
    pictures: Sequence[Picture]
    """All that were found, whether they can be used or not."""
    table: SampleTable
    samples: Sequence[Sample]
    """Of the table, as everything else here: each is made when it is asked for."""
    latents: Mapping[str, LatentRequest]
    """Every latent that the samples need, by key."""
    masks: Mapping[str, MaskRequest]
    """Every mask that they need, by key."""
    skipped: tuple[Skipped, ...]
    """Pictures that cannot be used."""
    too_small: int
    """Pictures left out by skip_image_resolution."""
    not_needed: int
    """Regularisation pictures left out because the others are enough."""
    links: LinksOut
    """Out of its folders."""

    @property
    def captions(self) -> list[str]:
        """The distinct texts of all samples, and the empty one that caption dropout puts in."""
        return list(dict.fromkeys(["", *(c for sample in self.samples for c in sample.captions)]))

    @property
    def caption_notes(self) -> Counter[CaptionNote]:
        """Of how many captions something is true."""
        return Counter(note for captions in self.table.captions() for note in captions.notes)

    def uncaptioned(self) -> list[Skipped]:
        """List the pictures that have no caption; their files are looked for anew.

        Raises:
            DataError: No picture of a subset has one, which nobody means.
        """
        return uncaptioned(self.pictures)

    def noted(self, note: CaptionNote) -> Iterator[str]:
        """Yield the pictures whose captions something is true of."""
        for row, captions in enumerate(self.table.captions()):
            if note in captions.notes:
                yield str(self.table.picture(row).path)

    def without(self, lost: AbstractSet[str], failed: Sequence[Skipped]) -> Survey:
        """Leave out pictures that turned out unreadable when they or their masks were decoded.

        Args:
            lost: Keys of the latents and masks that there cannot be.
            failed: The pictures, and why.

        Raises:
            NothingUsableError: No picture is left.
        """
        kept = self.table.with_rows(
            row
            for row, sample in enumerate(self.samples)
            if lost.isdisjoint(sample.latent_keys + sample.mask_keys)
        )
        if not len(kept):
            raise NothingUsableError(
                f"none of the {counted(len(self.samples), 'picture')} can be decoded; "
                f"the first: {failed[0].reason}",
                "mend the files, or point image_dir to other pictures",
                list(dict.fromkeys([*self.skipped, *failed])),
            )
        balanced = _balanced(kept)
        return _survey(
            balanced,
            datasets=self.datasets,
            pictures=self.pictures,
            # A picture may be wanted in several latents and masks; it is named once.
            skipped=dict.fromkeys([*self.skipped, *failed]),
            too_small=self.too_small,
            not_needed=self.not_needed + len(kept) - len(balanced),
            links=self.links,
        )


def _survey(
    table: SampleTable,
    *,
    datasets: Iterable[DatasetConfig],
    pictures: Sequence[Picture],
    skipped: Iterable[Skipped],
    too_small: int,
    not_needed: int,
    links: LinksOut,
) -> Survey:
    return Survey(
        datasets=tuple(datasets),
        pictures=pictures,
        table=table,
        samples=table.samples(),
        latents=Requests(table.latents, lambda row: table[row].latents()),
        masks=Requests(table.masks, lambda row: table[row].masks()),
        skipped=tuple(skipped),
        too_small=too_small,
        not_needed=not_needed,
        links=links,
    )


def survey_pictures(
    pictures: Sequence[Picture],
    *,
    caption_variants: int | None,
    crop_variants: int = 1,
    cache_dir: Path | None = None,
    rehash: bool = False,
    max_image_pixels: int = MOST_PIXELS,
) -> Survey:
    """Read every picture's header, hash and caption, and choose its bucket.

    Args:
        pictures: From `find_pictures`.
        caption_variants: Texts per caption; None: 1 where nothing varies, else 8; 0: captions are
            not read.
        crop_variants: Crops per picture where random_crop or face_crop_aug_range asks for them.
        cache_dir: Where earlier scans are remembered; pictures that have not changed since are not
            read again. None: nothing is remembered.
        rehash: Read every picture nevertheless, those too that killed their decoders.
        max_image_pixels: Pictures of more pixels are skipped.

    Returns:
        The samples in the order of the pictures. Pictures that cannot be read are listed as
        skipped, not raised.

    Raises:
        NothingUsableError: Not one picture can be used.
    """
    table = SampleTable(pictures)
    skipped: list[Skipped] = []
    too_small = 0
    # Closed, so that an interrupted scan is written down before anything else is done.
    with closing(_scanned(pictures, cache_dir, max_image_pixels, rehash=rehash)) as found:
        for place, (picture, image, mask) in enumerate(found):
            if isinstance(image, ImageFile) and picture.dataset.leaves_out(image.size):
                too_small += 1
                continue
            try:
                with one_item(picture.path, REMEDY):
                    sample = _sample(picture, image, mask, caption_variants, crop_variants)
            except DataError as error:
                skipped.append(Skipped(name=str(picture.path), reason=error.problem))
            else:
                table.append(place, sample)
    if too_small:
        say(f"{too_small} of {len(pictures)} pictures are left out by skip_image_resolution")
    if not len(table):
        raise _none_left(pictures, skipped)
    balanced = _balanced(table)
    _tell_what_is_unused(len(table) - len(balanced), _faceless(balanced))
    datasets = {id(picture.dataset): picture.dataset for picture in pictures}
    return _survey(
        balanced,
        datasets=dict.fromkeys(datasets.values()),
        pictures=pictures,
        skipped=skipped,
        too_small=too_small,
        not_needed=len(table) - len(balanced),
        links=links_out(pictures, captions=caption_variants != 0),
    )


def _tell_what_is_unused(regularisation: int, faceless: int) -> None:
    if regularisation:
        unused = counted(regularisation, "regularisation picture")
        say(f"{unused} not used: the others are enough")
    if faceless:
        say(f"no face in the file names of {counted(faceless, 'picture')} of face_crop_aug_range")


def _scanned(
    pictures: Sequence[Picture], cache_dir: Path | None, max_image_pixels: int, *, rehash: bool
) -> Generator[tuple[Picture, ImageFile | DataError, ImageFile | DataError | None]]:
    """Yield each picture with what the scan found, of itself and of its mask if it has one.

    What must not be decoded is as good as unreadable.
    """
    deadly = DeadlyPictures(cache_dir)
    if rehash:
        deadly.forget()
    usable = partial(_usable, deadly.known().keys(), max_image_pixels)
    bounds = pictures[0].bounds if len(pictures) else None
    scan = partial(scan_images, cache_dir=cache_dir, rehash=rehash, bounds=bounds)
    with ExitStack() as scans:
        images, masks = (
            scans.enter_context(closing(scan(paths)))
            for paths in (
                (picture.path for picture in pictures),
                (picture.mask for picture in pictures if picture.mask),
            )
        )
        for picture, image in zip(pictures, images, strict=True):
            yield picture, usable(image), usable(next(masks)) if picture.mask else None


def _usable(
    deadly: AbstractSet[str], max_image_pixels: int, image: ImageFile | DataError
) -> ImageFile | DataError:
    """Return a picture that may be decoded, or why it may not."""
    if isinstance(image, DataError):
        return image
    if image.content in deadly:
        return deadly_picture(image.path)
    try:
        refuse_more_pixels(image, max_image_pixels)
    except DataError as error:
        return error
    return image


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
    if picture.refused:
        raise DataError(picture.refused, REMEDY)
    if isinstance(image, DataError):
        raise image
    captions = UNREAD if caption_variants == 0 else picture_captions(picture, caption_variants)
    choice = choose_bucket(picture.dataset.buckets, image_size=image.size)
    latents = latent_requests(picture.rules, image, choice, crop_variants)
    is_masked = mask is not None or picture.subset.alpha_mask
    masks = mask_requests(picture.path, mask, latents) if is_masked else []
    return Sample(
        picture=picture,
        size=image.size,
        content=image.content,
        mask=None if isinstance(mask, DataError) else mask,
        crop_variants=crop_variants,
        latent_keys=tuple(request.key for request in latents),
        mask_keys=tuple(request.key for request in masks),
        captions=captions,
        visits=0 if picture.held_out else picture.subset.num_repeats,
    )


def _none_left(pictures: Sequence[Picture], skipped: Sequence[Skipped]) -> NothingUsableError:
    reason = f"; the first: {skipped[0].reason}" if skipped else ", they are all too small"
    return NothingUsableError(
        f"none of the {counted(len(pictures), 'picture')} can be used{reason}",
        "mend the files, or point image_dir to other pictures",
        skipped,
    )


def _faceless(table: SampleTable) -> int:
    """Count the samples that are to be cropped around a face, and whose names tell of none."""
    return sum(
        face_in_name(picture.path.stem) is None
        for picture in table.pictures()
        if picture.subset.face_crop_aug_range is not None
    )


def _balanced(table: SampleTable) -> SampleTable:
    """Give each dataset as many visits to regularisation pictures as to others.

    Regularisation pictures that come to no visit are left out.
    """
    # By identity: the hash of a dataset is that of all its settings, and pictures are many.
    wanted: Counter[int] = Counter()
    regularising: dict[int, list[int]] = {}
    for row, picture in enumerate(table.pictures()):
        if picture.subset.is_reg:
            regularising.setdefault(id(picture.dataset), []).append(row)
        else:
            wanted[id(picture.dataset)] += table.visits[row]
    if not regularising:
        return table
    for dataset, rows in regularising.items():
        repeats = [table.picture(row).subset.num_repeats for row in rows]
        for row, count in zip(rows, regularisation_visits(repeats, wanted[dataset]), strict=True):
            table.visits[row] = count
    return table.with_rows(
        row for row, picture in enumerate(table.pictures()) if table.visits[row] or picture.held_out
    )
