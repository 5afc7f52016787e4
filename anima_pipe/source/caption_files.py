"""Captions on disk: which file belongs to a picture, and the text in it."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from anima_pipe.errors import DataError
from anima_pipe.source.json_captions import GroupedCaption, parse_json_caption

FACE_NUMBERS = 4
"""A face crop is named <name>_<centre x>_<centre y>_<width>_<height>; captions say <name> only."""


MOST_BYTES: Final = 2**20
"""Of a file of captions: thousands of lines to draw from, or somebody else's file."""


def caption_file(image: Path, extension: str) -> Path | None:
    """Return the file that holds the caption of a picture; None if there is none.

    As in Kohya it is the picture's name with `extension`, or, for a picture named as a face crop,
    the same without the four numbers.

    Args:
        image: The picture.
        extension: What the caption file's name ends in, with its dot, such as ".txt".
    """
    return next((path for path in _candidates(image, extension) if path.is_file()), None)


def read_caption(image: Path, extension: str, *, enable_wildcard: bool) -> str | None:
    r"""Read the caption of a picture from the file beside it, as Kohya does.

    Unlike Kohya, blank lines at the start are skipped without wildcards too, and an empty file is
    the empty caption.

    Args:
        image: The picture.
        extension: See `caption_file`.
        enable_wildcard: Keep every line, for one to be drawn per visit, not just the first.

    Returns:
        The caption: stripped lines that are not blank, with "\n" between them. None if there is
        no file.

    Raises:
        DataError: The file is not UTF-8, or cannot be read.
    """
    file = caption_file(image, extension)
    if file is None:
        return None
    lines = read_caption_lines(file)
    return "\n".join(lines if enable_wildcard else lines[:1])


def read_caption_lines(file: Path) -> list[str]:
    r"""Return the lines of a caption file that are not blank, stripped.

    A line ends at "\n", "\r\n" or "\r" alone: other signs that Unicode calls line ends are text.

    Raises:
        DataError: The file is not UTF-8, or cannot be read.
    """
    lines = [line.strip() for line in _read_text(file).split("\n")]
    return [line for line in lines if line]


def read_json_caption(file: Path) -> GroupedCaption | str:
    """Read the caption in a JSON file.

    Raises:
        DataError: The file is not JSON in UTF-8, cannot be read, or holds no caption.
    """
    return parse_json_caption(_read_text(file), f"caption file {file}")


def _candidates(image: Path, extension: str) -> list[Path]:
    names = [image.stem]
    parts = image.stem.split("_")
    if len(parts) > FACE_NUMBERS:
        names.append("_".join(parts[:-FACE_NUMBERS]))
    return [image.parent / f"{name}{extension}" for name in names]


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        # utf-8-sig is UTF-8 with or without the mark that Windows editors put at the start.
        text = content[:MOST_BYTES].decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise DataError(
            f"caption file {path} is not UTF-8: byte 0x{error.object[error.start]:02x} "
            f"at position {error.start}",
            "save the file as UTF-8",
        ) from error
    except OSError as error:
        raise DataError(
            f"caption file {path} cannot be read: {error.strerror}", "correct its permissions"
        ) from error
    if len(content) > MOST_BYTES:
        raise DataError(
            f"caption file {path} has more than {MOST_BYTES:,} bytes",
            "that is no caption: remove the file, or correct caption_extension",
        )
    if "\0" in text:
        # Latin letters in UTF-16 are UTF-8 too, with a zero byte beside each.
        raise DataError(
            f"caption file {path} is not UTF-8: it has zero bytes, as UTF-16 does",
            "save the file as UTF-8",
        )
    return text
