"""Which latents, and which masks over them, one picture needs, and under which keys."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from anima_pipe.buckets import random_crops
from anima_pipe.dataset.config import SubsetConfig
from anima_pipe.dataset.face_crops import face_crops, face_in_name
from anima_pipe.errors import DataError
from anima_pipe.records import BucketChoice, ImageFile, LatentRequest, MaskChannel, MaskRequest
from anima_pipe.shards.keys import latent_key, mask_key
from anima_pipe.shards.packed_keys import KeyPlaces, PackedKeys
from anima_pipe.source.mask_files import refuse_other_size

Request = TypeVar("Request", LatentRequest, MaskRequest)


class KeyColumn:
    """The keys that each row of a table needs; it only grows."""

    def __init__(self) -> None:
        self.keys = PackedKeys()
        """Of all rows, one after the other."""
        self._ends = array("I", [0])

    def append(self, keys: Iterable[str]) -> None:
        """Add a row."""
        self.keys.extend(keys)
        self._ends.append(len(self.keys))

    def __getitem__(self, row: int) -> tuple[str, ...]:
        return tuple(self.keys[place] for place in range(self._ends[row], self._ends[row + 1]))

    def row_of(self, place: int) -> int:
        """Return the row of the key at a place among all of them."""
        return bisect_right(self._ends, place) - 1


class Requests(Mapping[str, Request], Generic[Request]):
    """Requests by key, each made when it is asked for: kept, those of many pictures are large.

    Args:
        column: The keys; of rows that need the same one, the first counts.
        make: Returns all requests of a row.
    """

    def __init__(self, column: KeyColumn, make: Callable[[int], Sequence[Request]]) -> None:
        self._column = column
        self._make = make
        self._places = KeyPlaces(column.keys)

    def __getitem__(self, key: str) -> Request:
        """Make a request."""
        place = self._places.find(key)
        if place is None:
            raise KeyError(key)
        requests = self._make(self._column.row_of(place))
        return next(request for request in requests if request.key == key)

    def __iter__(self) -> Iterator[str]:
        return self._places.distinct()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._places.find(key) is not None


def latent_requests(
    subset: SubsetConfig, image: ImageFile, centred: BucketChoice, crop_variants: int
) -> list[LatentRequest]:
    """Return the latents of one picture, by its subset's rules: one per crop and orientation.

    Args:
        subset: The rules.
        image: The picture.
        centred: Its bucket, cropped in the middle.
        crop_variants: Crops in its place where random_crop or face_crop_aug_range asks for them.
    """
    choices = _crops(subset, image, centred, crop_variants)
    orientations = (False, True) if subset.flip_aug else (False,)
    interpolation = subset.resize_interpolation
    return [
        LatentRequest(
            key=latent_key(
                content=image.content, choice=choice, flipped=flipped, interpolation=interpolation
            ),
            image=image,
            choice=choice,
            flipped=flipped,
            interpolation=interpolation,
        )
        for choice in choices
        for flipped in orientations
    ]


def _crops(
    subset: SubsetConfig, image: ImageFile, centred: BucketChoice, count: int
) -> tuple[BucketChoice, ...]:
    """Return the places that a picture is cropped at."""
    face = face_in_name(image.path.stem) if subset.face_crop_aug_range else None
    if face and subset.face_crop_aug_range:
        return face_crops(
            centred.bucket,
            image.size,
            face,
            subset.face_crop_aug_range,
            count,
            wanders=subset.random_crop,
            seed=image.content,
        )
    if subset.random_crop:
        return random_crops(centred, count, seed=image.content)
    return (centred,)


def mask_requests(
    picture: Path, mask: ImageFile | DataError | None, latents: Sequence[LatentRequest]
) -> list[MaskRequest]:
    """Return the masks that lie over one picture's latents, one each.

    Args:
        picture: Its path.
        mask: Its mask image; None: its own alpha channel.
        latents: From `latent_requests`.

    Raises:
        DataError: The mask image cannot be read, or has another size than the picture.
    """
    if isinstance(mask, DataError):
        raise mask
    if mask is None:
        return [_mask_request(picture, latent.image, "alpha", latent) for latent in latents]
    refuse_other_size(mask, latents[0].image)
    return [_mask_request(picture, mask, "red", latent) for latent in latents]


def _mask_request(
    picture: Path, image: ImageFile, channel: MaskChannel, latent: LatentRequest
) -> MaskRequest:
    key = mask_key(
        content=image.content,
        channel=channel,
        choice=latent.choice,
        flipped=latent.flipped,
        interpolation=latent.interpolation,
    )
    return MaskRequest(
        key=key,
        picture=picture,
        image=image,
        channel=channel,
        choice=latent.choice,
        flipped=latent.flipped,
        interpolation=latent.interpolation,
    )
