"""Pictures that have been looked at, and everything that training may draw for them.

Many samples are kept as a table: 16 bytes per hash or key, 4 per number. `Sample` objects are made
of its rows when they are asked for, and the requests to the caches of those.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from anima_pipe.buckets import choose_bucket
from anima_pipe.dataset.columns import MadeWhenAsked
from anima_pipe.dataset.pictures import Picture
from anima_pipe.dataset.requests import KeyColumn, latent_requests, mask_requests
from anima_pipe.records import BucketChoice, ImageFile, LatentRequest, MaskRequest
from anima_pipe.shards.packed_keys import PackedKeys
from anima_pipe.source.variants import CaptionTexts


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
    def choice(self) -> BucketChoice:
        """Its bucket, cropped in the middle."""
        return choose_bucket(self.picture.dataset.buckets, image_size=self.size)

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


class SampleTable:
    """Samples in columns; it only grows.

    Args:
        pictures: From `find_pictures`; each sample is of one of them.
    """

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self._pictures = pictures
        self._places = array("I")
        self._widths, self._heights = array("I"), array("I")
        self._contents = PackedKeys()
        self._mask_contents = KeyColumn()
        self._crop_variants = array("I")
        self._captions: list[CaptionTexts] = []
        self.visits = array("I")
        """Per epoch, of each sample; to be corrected once all are known."""
        self.latents = KeyColumn()
        """Keys of the latents that each sample needs."""
        self.masks = KeyColumn()
        """Keys of the masks."""

    def __len__(self) -> int:
        return len(self._places)

    def append(self, place: int, sample: Sample) -> None:
        """Add the sample of the picture at a place."""
        self._places.append(place)
        self._widths.append(sample.size[0])
        self._heights.append(sample.size[1])
        self._contents.append(sample.content)
        self._mask_contents.append([sample.mask.content] if sample.mask else [])
        self._crop_variants.append(sample.crop_variants)
        self._captions.append(sample.captions)
        self.visits.append(sample.visits)
        self.latents.append(sample.latent_keys)
        self.masks.append(sample.mask_keys)

    def __getitem__(self, row: int) -> Sample:
        picture = self.picture(row)
        size = self._widths[row], self._heights[row]
        return Sample(
            picture=picture,
            size=size,
            content=self._contents[row],
            mask=_mask(picture, size, *self._mask_contents[row]),
            crop_variants=self._crop_variants[row],
            latent_keys=self.latents[row],
            mask_keys=self.masks[row],
            captions=self._captions[row],
            visits=self.visits[row],
        )

    def picture(self, row: int) -> Picture:
        """Return the picture that a sample is of."""
        return self._pictures[self._places[row]]

    def pictures(self) -> Iterator[Picture]:
        """Go over the pictures of all samples."""
        return map(self.picture, range(len(self)))

    def captions(self) -> Sequence[CaptionTexts]:
        """Return the texts of all samples, in their order."""
        return self._captions

    def samples(self) -> Sequence[Sample]:
        """Return the samples, each made when it is asked for."""
        return MadeWhenAsked(len(self), self.__getitem__)

    def with_rows(self, rows: Iterable[int]) -> SampleTable:
        """Return a table of some of the samples."""
        table = SampleTable(self._pictures)
        for row in rows:
            table.append(self._places[row], self[row])
        return table


def _mask(picture: Picture, size: tuple[int, int], content: str | None = None) -> ImageFile | None:
    """Return a picture's mask, of the picture's size: another one would have been refused."""
    if picture.mask is None or content is None:
        return None
    return ImageFile(path=picture.mask, size=size, content=content)
