"""Which size a picture is trained at, and which part of it: Kohya's buckets, number for number.

Plain numbers only, no pictures and no tensors. Where Kohya divides in double precision and rounds
half up, so does this module, in the same order: an exact fraction would break ties differently.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import lru_cache
from math import isqrt, sqrt

from anima_pipe.errors import ConfigError, DataError
from anima_pipe.records import BucketChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketRules:
    """How the sizes of a dataset's buckets are chosen, in Kohya's words.

    Raises:
        ConfigError: A value is out of range, or the limits leave out the resolution itself.
    """

    resolution: tuple[int, int]
    """(width, height) in pixels; their product is the largest area of a bucket."""
    min_bucket_reso: int = 256
    """Shortest side of a bucket in pixels, rounded down to the steps; at most the resolution."""
    max_bucket_reso: int = 1024
    """Longest side of a bucket in pixels, rounded up to the steps; at least the resolution."""
    bucket_reso_steps: int = 64
    """Sides of buckets are multiples of this many pixels."""
    bucket_no_upscale: bool = False
    """Never enlarge: buckets follow the pictures' own sizes, and the two limits have no effect."""
    enable_bucket: bool = True
    """False: the resolution is the only bucket, and nothing above but it has any effect."""

    def __post_init__(self) -> None:
        if min(self.resolution) < 1:
            raise ConfigError(
                f"resolution {_as_text(self.resolution)} has a side below 1 pixel",
                "give width and height in pixels, such as 1024,1024",
            )
        if self.enable_bucket:
            self._check_limits()

    def _check_limits(self) -> None:
        if self.bucket_reso_steps < 1:
            raise ConfigError(
                f"bucket_reso_steps is {self.bucket_reso_steps}", "use a multiple of 16, such as 64"
            )
        if self.min_bucket_reso < self.bucket_reso_steps:
            raise ConfigError(
                f"min_bucket_reso {self.min_bucket_reso} is less than one step "
                f"(bucket_reso_steps {self.bucket_reso_steps})",
                "raise min_bucket_reso to at least bucket_reso_steps",
            )
        shortest, longest = self.side_limits
        if shortest > min(self.resolution):
            raise ConfigError(
                "min_bucket_reso must be equal or less than resolution, but is "
                f"{self.min_bucket_reso} for {_as_text(self.resolution)}",
                "lower min_bucket_reso or raise the resolution",
            )
        if longest < max(self.resolution):
            raise ConfigError(
                "max_bucket_reso must be equal or greater than resolution, but is "
                f"{self.max_bucket_reso} for {_as_text(self.resolution)}",
                "raise max_bucket_reso or lower the resolution",
            )

    @property
    def side_limits(self) -> tuple[int, int]:
        """(shortest, longest) side of a bucket in pixels, brought outwards to whole steps."""
        steps = self.bucket_reso_steps
        return self.min_bucket_reso // steps * steps, -(-self.max_bucket_reso // steps) * steps

    @property
    def area(self) -> int:
        """Pixels of the resolution: the most of any bucket, but for rounding without upscaling."""
        return self.resolution[0] * self.resolution[1]


@lru_cache(maxsize=4096)
def choose_bucket(rules: BucketRules, *, image_size: tuple[int, int]) -> BucketChoice:
    """Choose the bucket of a picture, the size to bring it to and the centred crop.

    Args:
        rules: The dataset's bucket settings.
        image_size: (width, height) in pixels, after EXIF rotation.

    Returns:
        The same object for pictures of the same size, which are often many.

    Raises:
        DataError: The picture is so narrow or so small that its bucket would have no pixels.
    """
    if rules.enable_bucket and rules.bucket_no_upscale:
        resized = _shrunk_to_area(rules, image_size)
        bucket = _floored(resized, rules.bucket_reso_steps)
        if min(bucket) == 0:
            raise _too_extreme(rules, image_size)
    else:
        bucket = _nearest_predefined(rules, image_size)
        resized = _covering(bucket, image_size)
    left, top = ((whole - part) // 2 for whole, part in zip(resized, bucket, strict=True))
    return BucketChoice(bucket=bucket, resized=resized, crop=(left, top))


def random_crops(choice: BucketChoice, count: int, *, seed: str) -> tuple[BucketChoice, ...]:
    """Return a picture's choice with crops at random places instead of the middle.

    Args:
        choice: With any crop.
        count: Places to draw, at least 1. The first ones do not depend on how many follow.
        seed: Of the draws: the same for the same picture, so that its latents are found again.

    Returns:
        At most `count` choices, each once; a single one where nothing is cut off.
    """
    rng = random.Random(f"crop\x1f{seed}")  # noqa: S311 - not a secret
    # As in Kohya, every place is equally likely, both edges among them.
    slack = [whole - part for whole, part in zip(choice.resized, choice.bucket, strict=True)]
    crops = [(rng.randint(0, slack[0]), rng.randint(0, slack[1])) for _ in range(count)]
    return tuple(replace(choice, crop=crop) for crop in dict.fromkeys(crops))


def predefined_buckets(rules: BucketRules) -> tuple[tuple[int, int], ...]:
    """List the (width, height) of every bucket that may be enlarged to, in ascending order."""
    if not rules.enable_bucket:
        return (rules.resolution,)
    return _size_table(rules.area, *rules.side_limits, rules.bucket_reso_steps).sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class _SizeTable:
    """The predefined buckets, and the way to find one by aspect ratio without looking at all."""

    sizes: tuple[tuple[int, int], ...]
    known: frozenset[tuple[int, int]]
    ratios: tuple[float, ...]
    """Width / height, each once, ascending."""
    index_of_ratio: tuple[int, ...]
    """The first bucket of each ratio, by its place in `sizes`."""


@lru_cache(maxsize=64)
def _size_table(area: int, shortest: int, longest: int, steps: int) -> _SizeTable:
    square = isqrt(area) // steps * steps
    sizes = {(square, square)}
    for width in range(shortest, longest + 1, steps):
        height = min(longest, area // width // steps * steps)
        if height >= shortest:
            sizes |= {(width, height), (height, width)}
    ordered = sorted(sizes)
    first_of_ratio: dict[float, int] = {}
    for index, (width, height) in enumerate(ordered):
        first_of_ratio.setdefault(width / height, index)
    ratios = sorted(first_of_ratio)
    return _SizeTable(
        sizes=tuple(ordered),
        known=frozenset(ordered),
        ratios=tuple(ratios),
        index_of_ratio=tuple(first_of_ratio[ratio] for ratio in ratios),
    )


def _nearest_predefined(rules: BucketRules, image_size: tuple[int, int]) -> tuple[int, int]:
    """A bucket of exactly the picture's size, else the one of the nearest aspect ratio."""
    if not rules.enable_bucket:
        return rules.resolution
    table = _size_table(rules.area, *rules.side_limits, rules.bucket_reso_steps)
    if image_size in table.known:
        return image_size
    wanted = image_size[0] / image_size[1]
    place = bisect_left(table.ratios, wanted)
    neighbours = range(max(0, place - 1), min(place + 1, len(table.ratios)))
    # Of two equally near ratios the bucket that comes first, the narrower one, wins.
    _, index = min((abs(table.ratios[i] - wanted), table.index_of_ratio[i]) for i in neighbours)
    return table.sizes[index]


def _covering(bucket: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
    """The smallest size of the picture's aspect ratio that covers the bucket."""
    width, height = image_size
    wider_than_bucket = width / height > bucket[0] / bucket[1]
    scale = bucket[1] / height if wider_than_bucket else bucket[0] / width
    return _rounded(width * scale), _rounded(height * scale)


def _shrunk_to_area(rules: BucketRules, image_size: tuple[int, int]) -> tuple[int, int]:
    """The picture's own size, or, if its area exceeds the rules', a size of about that area.

    One side is a whole number of steps: the one whose bucket keeps the aspect ratio better.
    """
    width, height = image_size
    if width * height <= rules.area:
        return image_size
    steps, ratio = rules.bucket_reso_steps, width / height
    ideal_width = sqrt(rules.area * ratio)
    ideal_height = rules.area / ideal_width
    width_first = _step(ideal_width, steps)
    width_firsts_height = _step(width_first / ratio, steps)
    height_first = _step(ideal_height, steps)
    height_firsts_width = _step(height_first * ratio, steps)
    if 0 in (width_first, width_firsts_height, height_first, height_firsts_width):
        raise _too_extreme(rules, image_size)
    error_by_width = abs(width_first / width_firsts_height - ratio)
    error_by_height = abs(height_firsts_width / height_first - ratio)
    if error_by_width < error_by_height:
        return width_first, _rounded(width_first / ratio)
    return _rounded(height_first * ratio), height_first


def _too_extreme(rules: BucketRules, image_size: tuple[int, int]) -> DataError:
    return DataError(
        f"image too extreme: {_as_text(image_size)} pixels leave a side of less than "
        f"{rules.bucket_reso_steps} (bucket_reso_steps) in its bucket",
        "crop or enlarge the picture, leave it out, or turn bucket_no_upscale off",
    )


def _rounded(length: float) -> int:
    return int(length + 0.5)


def _step(length: float, steps: int) -> int:
    return _rounded(length) // steps * steps


def _floored(size: tuple[int, int], steps: int) -> tuple[int, int]:
    return size[0] // steps * steps, size[1] // steps * steps


def _as_text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
