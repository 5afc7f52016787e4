"""The captions of a dataset's pictures, and the final texts that they may become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from anima_pipe.dataset.config import SubsetConfig
from anima_pipe.dataset.pictures import Picture
from anima_pipe.errors import DataError
from anima_pipe.records import Skipped
from anima_pipe.runtime import counted
from anima_pipe.source.caption_files import read_caption, read_json_caption
from anima_pipe.source.json_captions import GroupedCaption
from anima_pipe.source.variants import CaptionTexts, caption_texts


class PictureTexts(Iterable[str]):
    """The final texts that pictures need, and the empty one that caption dropout puts in.

    Whoever goes through them reads the captions; none is kept. A text that several pictures need
    comes several times.

    Args:
        pictures: From `find_pictures`.
        caption_variants: Texts per caption; None: 1 where nothing varies, else 8.
        others: Texts that are needed besides.
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        *,
        caption_variants: int | None,
        others: Iterable[str] = (),
    ) -> None:
        self._pictures = pictures
        self._variants = caption_variants
        self._others = tuple(others)
        self._unreadable: dict[str, Skipped] = {}

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Captions that could not be read, as far as somebody has gone through them."""
        return tuple(self._unreadable.values())

    def __iter__(self) -> Iterator[str]:
        """Read the captions and yield their texts; those that cannot be read yield none."""
        yield ""
        for picture in self._pictures:
            try:
                yield from picture_captions(picture, self._variants)
            except DataError as error:
                name = str(picture.path)
                self._unreadable[name] = Skipped(name=name, reason=error.problem)
        yield from self._others


def uncaptioned(pictures: Iterable[Picture]) -> list[Skipped]:
    """List the pictures that will be trained with the empty caption for want of a file.

    Raises:
        DataError: No picture of a subset has a caption, which nobody means.
    """
    # By identity: the hash of a subset is that of all its settings, and pictures are many.
    counts: Counter[int] = Counter()
    subsets: dict[int, SubsetConfig] = {}
    missing: dict[int, list[Skipped]] = {}
    for picture in pictures:
        subset = picture.subset
        if subset.class_tokens is not None:
            continue
        counts[id(subset)] += 1
        subsets[id(subset)] = subset
        if lacks_caption(picture):
            reason = f"no caption file ending in {subset.caption_extension}: the caption is empty"
            skipped = Skipped(name=str(picture.path), reason=reason)
            missing.setdefault(id(subset), []).append(skipped)
    for number, without in missing.items():
        if len(without) == counts[number]:
            raise _none_captioned(subsets[number], len(without))
    return [skipped for without in missing.values() for skipped in without]


def _none_captioned(subset: SubsetConfig, count: int) -> DataError:
    return DataError(
        f"none of the {counted(count, 'picture')} in {subset.image_dir} has a "
        f"caption file ending in {subset.caption_extension}",
        "write captions beside the pictures, or set caption_extension or class_tokens",
    )


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
