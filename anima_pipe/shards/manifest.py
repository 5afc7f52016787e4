"""What lies at a cache's address: names, sizes and versions of its files, by folder.

`shards.json` holds it for those that reach the cache by a protocol that cannot list: http.

    {"version": 2, "folders": {"latents-3fa1c2d4e5f6-fp16": {
        "cache.json": {"bytes": 212, "tag": "9c07e1..."}, "x-000000.tar": {"bytes": 268000256}, ...
    }}, "checksum": "0f3a51c2"}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, cast

from anima_pipe.plain_text import parsed_json
from anima_pipe.shards.checksum import has_its_checksum, with_checksum
from anima_pipe.shards.leases import LEASES
from anima_pipe.shards.trash import TRASH

MANIFEST: Final = "shards.json"
MANIFEST_VERSION: Final = 2

_TAGS: Final = ("ETag", "etag", "blob_id", "generation", "mtime", "modified", "LastModified")
"""Under these names file systems say what changes when a file's content does."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One file that is there."""

    length: int
    """In bytes."""
    tag: str = ""
    """Changes when the content does; empty for shards, which never change, and where the storage
    has none."""


Listing: TypeAlias = dict[str, dict[str, Listed]]
"""The files by folder and name."""


def listing_of(entries: Iterable[tuple[str, Mapping[str, Any]]]) -> Listing:
    """Return the files of a cache among everything that is there.

    Args:
        entries: Paths, relative to the cache, and what their file system says of them.
    """
    listing: Listing = {}
    for path, entry in entries:
        folder, _, name = path.partition("/")
        if folder not in (LEASES, TRASH) and _is_plain(folder) and _is_plain(name):
            tag = "" if name.endswith(".tar") else _tag(entry)
            listing.setdefault(folder, {})[name] = Listed(int(entry["size"] or 0), tag)
    return listing


def listing_text(listing: Listing) -> bytes:
    """Return a listing as JSON that carries its checksum."""
    folders = {
        folder: {
            name: {"bytes": file.length, "tag": file.tag} if file.tag else {"bytes": file.length}
            for name, file in sorted(files.items())
        }
        for folder, files in sorted(listing.items())
    }
    fields = {"version": MANIFEST_VERSION, "folders": folders}
    return with_checksum(json.dumps(fields, indent=1).encode())


def read_listing(content: bytes) -> Listing:
    """Return what a text lists; names that would lead out of the cache are left out.

    Raises:
        ValueError: It is damaged, or of another version; says so.
    """
    try:
        fields = parsed_json(content)
        version = fields["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError("is damaged") from error
    if version != MANIFEST_VERSION:
        raise ValueError(f"has version {version}, and this version reads {MANIFEST_VERSION}")
    if not has_its_checksum(content):
        raise ValueError("is damaged: it does not have its checksum")
    try:
        return {
            folder: {
                name: Listed(int(file["bytes"]), str(file.get("tag", "")))
                for name, file in files.items()
                if _is_plain(name)
            }
            for folder, files in cast("dict[str, Any]", fields["folders"]).items()
            if _is_plain(folder)
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("is damaged") from error


def _tag(entry: Mapping[str, Any]) -> str:
    return next((str(entry[name]).strip('"') for name in _TAGS if entry.get(name)), "")


def _is_plain(name: str) -> bool:
    """Tell whether a name from elsewhere names something in the folder it is put into."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) is not None
