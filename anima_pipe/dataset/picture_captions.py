"""The captions of a dataset's pictures, and the final texts that they may become."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

from anima_pipe.dataset.config import SubsetConfig
from anima_pipe.dataset.pictures import Picture
from anima_pipe.errors import DataError
from anima_pipe.records import Skipped, Text
from anima_pipe.runtime import counted
from anima_pipe.source.boundary import one_item
from anima_pipe.source.caption_files import caption_file, read_caption_lines, read_json_caption
from anima_pipe.source.json_captions import GroupedCaption
from anima_pipe.source.prompts import half_character
from anima_pipe.source.variants import CaptionNote, CaptionTexts, caption_notes, caption_texts

MOST_LETTERS: Final = 16_384
"""Of one caption: some 4,000 tokens, eight times what the model was made for. More is another text
that got there by mistake, and takes minutes to encode."""

_REMEDY: Final = "correct the caption, or remove the picture"

NAMED_PICTURES: Final = 20
"""With the same oddity, of which the names are kept; of the others there is a count."""


class PictureTexts(Iterable[Text]):
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
        others: Iterable[Text] = (),
    ) -> None:
        self._pictures = pictures
        self._variants = caption_variants
        self._others = tuple(others)
        self._unreadable: dict[str, Skipped] = {}
        self.notes: Counter[CaptionNote] = Counter()
        """Of how many captions each is true, as far as somebody has gone through them last."""
        self.weighted: list[str] = []
        """The first pictures in whose captions there are weights."""

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Captions that could not be read, as far as somebody has gone through them."""
        return tuple(self._unreadable.values())

    def __iter__(self) -> Iterator[Text]:
        """Read the captions and yield their texts; those that cannot be read yield none."""
        yield ""
        self.notes.clear()
        self.weighted.clear()
        for picture in self._pictures:
            try:
                texts = picture_captions(picture, self._variants)
                self._note(picture, texts.notes)
                yield from texts
            except DataError as error:
                name = str(picture.path)
                self._unreadable[name] = Skipped(name=name, reason=error.problem)
        yield from self._others

    def _note(self, picture: Picture, notes: Sequence[CaptionNote]) -> None:
        self.notes.update(notes)
        if "weights" in notes and len(self.weighted) < NAMED_PICTURES:
            self.weighted.append(str(picture.path))


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
        return _read(picture).text is None
    except DataError:
        return False


def picture_captions(picture: Picture, variants: int | None) -> CaptionTexts:
    """Return the final texts of one picture's caption, see `caption_texts`.

    Raises:
        DataError: It cannot be read or used.
    """
    raw, rules = _read(picture), picture.rules.captions
    text = raw.text or ""
    with one_item(f"the caption of {picture.path}", _REMEDY):
        _refuse_unfit(text if isinstance(text, str) else text.written, picture.path)
        texts = caption_texts(text, rules, 1 if picture.held_out else variants)
        notes = caption_notes(text, rules, has_more_lines=raw.has_more_lines)
    return replace(texts, notes=notes) if notes else texts


def _refuse_unfit(text: str, path: Path) -> None:
    """Check a caption's text.

    Raises:
        DataError: It is too long to be a caption, or holds half a character.
    """
    longest = max(map(len, text.split("\n")))
    if longest > MOST_LETTERS:
        raise DataError(
            f"the caption of {path} has {longest:,} letters, more than {MOST_LETTERS:,}",
            "shorten it: encoding would take minutes, and the model was made for 512 tokens",
        )
    if half := half_character(text):
        raise DataError(
            f"the caption of {path} holds half a character, {half}",
            "write the character whole, or remove it",
        )


def caption_lines(notes: Mapping[CaptionNote, int]) -> list[str]:
    """Return the lines that tell a user how some captions are read."""
    lines: list[str] = []
    if count := notes.get("unescaped"):
        lines.append(rf"escapes     \( and \) are read as ( and ) in {counted(count, 'caption')}")
    if count := notes.get("first line"):
        files = counted(count, "caption")
        lines.append(
            f"lines       line 1 alone is used, as Kohya does, of {files} of several lines"
        )
    return lines


class _RawCaption(NamedTuple):
    """A caption as it is written."""

    text: GroupedCaption | str | None
    """None: there is none."""
    has_more_lines: bool = False
    """The file has more lines than are in the text."""


def _read(picture: Picture) -> _RawCaption:
    """Return the caption of a metadata file or of the file beside it, else the class tokens.

    Raises:
        DataError: It cannot be read.
    """
    with one_item(f"the caption of {picture.path}", _REMEDY):
        return _as_written(picture)


def _as_written(picture: Picture) -> _RawCaption:
    if picture.refused:
        raise DataError(picture.refused, _REMEDY)
    if picture.caption is not None:
        return _RawCaption(picture.caption)
    subset = picture.subset
    file = caption_file(picture.path, subset.caption_extension)
    if file is None:
        return _RawCaption(subset.class_tokens)
    picture.bounds.admit(file)
    if subset.caption_extension.lower().endswith(".json"):
        return _RawCaption(read_json_caption(file))
    lines = read_caption_lines(file)
    used = lines if subset.captions.enable_wildcard else lines[:1]
    return _RawCaption("\n".join(used), has_more_lines=len(used) < len(lines))
