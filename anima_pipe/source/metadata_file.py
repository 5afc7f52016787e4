"""Kohya's metadata files: one JSON of pictures with their captions and tags."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TextIO, cast

from anima_pipe.errors import DataError
from anima_pipe.plain_text import parsed_json
from anima_pipe.source.boundary import one_item, reason_of
from anima_pipe.source.images import find_images

MOST_BYTES: Final = 2**30
"""Of a .json file, which is read as a whole and takes several times as much memory."""

MOST_LETTERS_OF_LINE: Final = 2**20
"""Of a .jsonl file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One picture of a metadata file."""

    path: Path
    """Where it is, or where it should be."""
    caption: str | None = None
    """Caption and tags; None: the file has neither."""
    refused: str | None = None
    """Why what the file says of it cannot be used."""


def read_metadata_file(
    file: Path, folder: Path, *, separator: str, enable_wildcard: bool
) -> list[Described]:
    r"""Read the pictures of a metadata file, in the order of their paths.

    A .json file maps each picture's path to an object with "caption", "tags", or both; a .jsonl
    file holds such an object in each line, with the path as "image_path". A path without suffix,
    or to no file, means the first picture of that stem. Tags follow the caption. What is wrong with
    one entry is said of its picture, or of its line.

    Args:
        file: The metadata file.
        folder: What relative paths start from.
        separator: Stands between caption and tags.
        enable_wildcard: Every line of a caption is one on its own, and takes the tags.

    Raises:
        DataError: The file cannot be read, or is not of that form.
    """
    entries = dict(_entries(file))
    folders = {(folder / key).parent for key in entries if not _is_file(folder / key)}
    by_stem = {
        parent / path.stem: path
        for parent in folders
        if os.path.isdir(parent)  # noqa: PTH112 - Path's method raises where it cannot look
        for path in reversed(find_images(parent))
    }
    found: list[Described] = []
    for key, entry in entries.items():
        path = folder / key
        if not _is_file(path):
            path = by_stem.get(path, by_stem.get(path.parent / path.stem, path))
        place = f"{file}: {key!r}"
        try:
            with one_item(place, _FORM):
                caption = _caption(entry, separator, place, enable_wildcard=enable_wildcard)
        except DataError as error:
            found.append(Described(path=path, refused=error.problem))
        else:
            found.append(Described(path=path, caption=caption))
    if not found:
        raise DataError(f"{file} describes no picture", "add pictures to it, or remove the subset")
    return sorted(found, key=lambda described: described.path)


def _is_file(path: Path) -> bool:
    # A path that is too long, or may not be looked at, is found out when the picture is read.
    return os.path.isfile(path)  # noqa: PTH113 - Path's method raises


def _entries(file: Path) -> Iterator[tuple[str, object]]:
    """Yield each picture's path as it is written, and what is said of it, or why that is nothing.

    Raises:
        DataError: The file cannot be read, or is not of either form.
    """
    remedy = "correct metadata_file"
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise DataError(f"{file} is no file, but a folder, a pipe or a device", remedy)
        yield from _by_line(file) if file.suffix.lower() == ".jsonl" else _of_object(file)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}", remedy) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8", "save it as UTF-8") from error


def _of_object(file: Path) -> Iterator[tuple[str, object]]:
    if (size := file.stat().st_size) > MOST_BYTES:
        raise DataError(
            f"{file} has {size:,} bytes, more than {MOST_BYTES:,}",
            "split it, or write it as .jsonl, an object a line",
        )
    text = file.read_text(encoding="utf-8-sig")
    try:
        entries: object = parsed_json(text)
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {reason_of(error)}", "correct that place") from error
    if not isinstance(entries, dict):
        raise DataError(f"{file} is not a metadata file", _FORM)
    yield from cast("dict[str, object]", entries).items()


def _by_line(file: Path) -> Iterator[tuple[str, object]]:
    with file.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(_lines(stream), 1):
            if line.strip():
                yield _entry_of(line, f"{file.name} line {number}")


def _lines(stream: TextIO) -> Iterator[str]:
    """Yield a file's lines, of each no more than shows that it is too long."""
    while line := stream.readline(MOST_LETTERS_OF_LINE):
        yield line
        while len(line) == MOST_LETTERS_OF_LINE and not line.endswith("\n"):
            line = stream.readline(MOST_LETTERS_OF_LINE)


def _entry_of(line: str, place: str) -> tuple[str, object]:
    """Return the picture's path and the object of a line, or the place and what is wrong there."""
    if len(line) == MOST_LETTERS_OF_LINE:
        return place, DataError(f"{place} has more than {MOST_LETTERS_OF_LINE:,} letters", _FORM)
    try:
        entry = parsed_json(line)
    except ValueError as error:
        return place, DataError(f"{place} is not JSON: {reason_of(error)}", _FORM)
    if not isinstance(entry, dict) or not isinstance(entry.get("image_path"), str):
        return place, DataError(f"{place} has no object with an image_path", _FORM)
    return entry["image_path"], entry


_FORM = 'write {"picture.png": {"caption": "...", "tags": "a, b"}, ...}'


def _caption(found: object, separator: str, place: str, *, enable_wildcard: bool) -> str | None:
    """Return the caption of an entry, tags behind it; None where it has neither.

    Raises:
        DataError: It is none, or something in it is of another type.
    """
    if isinstance(found, DataError):
        raise found
    if not isinstance(found, dict):
        raise DataError(f"{place} has no object of its own", _FORM)
    entry = cast("dict[str, object]", found)
    caption = _text(entry.get("caption"), "\n", f"{place}: caption")
    tags = _text(entry.get("tags"), separator, f"{place}: tags")
    if caption is None or tags is None:
        return tags if caption is None else caption
    if not enable_wildcard:
        return f"{caption}{separator}{tags}"
    tags = tags.replace("\n", separator)
    return "\n".join(f"{line}{separator}{tags}" for line in caption.split("\n"))


def _text(value: object, separator: str, place: str) -> str | None:
    """Return a text, or a list of texts as one; None where nothing stands in it.

    Raises:
        DataError: It is of another type.
    """
    texts = cast("list[object]", value) if isinstance(value, list) else [value]
    if value is not None and not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place} is {value!r}, not a text or a list of texts", _FORM)
    lines = separator.join(cast("list[str]", texts)).split("\n") if value is not None else []
    return "\n".join(line.strip() for line in lines if line.strip()) or None
