"""Kohya's metadata files: one JSON of pictures with their captions and tags."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from anima_pipe.errors import DataError
from anima_pipe.source.images import find_images


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One picture of a metadata file."""

    path: Path
    """Where it is, or where it should be."""
    caption: str | None
    """Caption and tags; None: the file has neither."""


def read_metadata_file(
    file: Path, folder: Path, *, separator: str, enable_wildcard: bool
) -> list[Described]:
    r"""Read the pictures of a metadata file, in the order of their paths.

    A .json file maps each picture's path to an object with "caption", "tags", or both; a .jsonl
    file holds such an object in each line, with the path as "image_path". A path without suffix,
    or to no file, means the first picture of that stem. Tags follow the caption.

    Args:
        file: The metadata file.
        folder: What relative paths start from.
        separator: Stands between caption and tags.
        enable_wildcard: Every line of a caption is one on its own, and takes the tags.

    Raises:
        DataError: The file cannot be read, or is not of that form.
    """
    entries = dict(_entries(file))
    folders = {path.parent for key in entries if not (path := folder / key).is_file()}
    by_stem = {
        parent / path.stem: path
        for parent in folders
        if parent.is_dir()
        for path in reversed(find_images(parent))
    }
    found: list[Described] = []
    for key, entry in entries.items():
        path = folder / key
        if not path.is_file():
            path = by_stem.get(path, by_stem.get(path.with_suffix(""), path))
        caption = _caption(entry, separator, f"{file}: {key!r}", enable_wildcard=enable_wildcard)
        found.append(Described(path=path, caption=caption))
    if not found:
        raise DataError(f"{file} describes no picture", "add pictures to it, or remove the subset")
    return sorted(found, key=lambda described: described.path)


def _entries(file: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield each picture's path as it is written, and what is said of it."""
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".jsonl":
            lines = [json.loads(line) for line in text.split("\n") if line.strip()]
            entries = [(line["image_path"], line) for line in lines]
        else:
            entries = [*json.loads(text).items()]
    except OSError as error:
        raise DataError(
            f"cannot read {file}: {error.strerror or error}", "correct metadata_file"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8", "save it as UTF-8") from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{file} is not JSON: {error}", "correct that place") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file} is not a metadata file", _FORM) from error
    for key, entry in entries:
        if not isinstance(key, str) or not isinstance(entry, dict):
            raise DataError(f"{file}: {key!r} has no object of its own", _FORM)
        yield key, cast("dict[str, object]", entry)


_FORM = 'write {"picture.png": {"caption": "...", "tags": "a, b"}, ...}'


def _caption(
    entry: Mapping[str, object], separator: str, place: str, *, enable_wildcard: bool
) -> str | None:
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
