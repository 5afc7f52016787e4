"""Copies of a remote cache's files: descriptions and sidecars, never stale, and whole shards.

`copies.json` says of each copy which version of the file it is of (what the storage calls it: an
ETag, a generation, a time), and the copy's own checksum. So a file that changes where it comes
from, and a copy that changes here, is fetched again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anima_pipe.errors import CacheError
from anima_pipe.files import write_atomically
from anima_pipe.plain_text import parsed_json
from anima_pipe.shards.checksum import has_its_checksum
from anima_pipe.shards.index import ShardIndex
from anima_pipe.shards.manifest import Listed, Listing
from anima_pipe.shards.reading import ShardReader
from anima_pipe.shards.remote import MoreThanPromisedError, Remote

COPIES: Final = "copies.json"

_TRANSFERS: Final = 8
"""Files that are fetched at the same time."""


MOST_BYTES: Final = 2**28
"""Of a sidecar: that of a shard of a million samples."""


@dataclass(frozen=True, slots=True)
class Copy:
    """What a file was when it came."""

    tag: str
    """Of the version that lay there."""
    crc32: int


def update_copies(remote: Remote, listing: Listing, folder: Path) -> None:
    """Make sure that the small files in a mirror are those that lie there now.

    Args:
        remote: Where they come from.
        listing: What is there now.
        folder: The mirror; one process at a time does this.

    Raises:
        CacheError: The storage does not answer.
        OutputError: The mirror cannot be written.
    """
    known = _noted(folder)
    small = {
        f"{name}/{file}": listed
        for name, files in listing.items()
        for file, listed in files.items()
        if file.endswith(".json")
    }

    def update(place: str) -> Copy | None:
        copy = known.get(place)
        if copy and _is_current(folder / place, copy, small[place]):
            return copy
        return _fetch(remote, place, folder / place, small[place])

    with ThreadPoolExecutor(_TRANSFERS) as threads:
        copies = dict(zip(small, threads.map(update, small), strict=True))
    right = {place: copy for place, copy in copies.items() if copy}
    if right != known:
        content = {place: [copy.tag, copy.crc32] for place, copy in right.items()}
        write_atomically(folder / COPIES, json.dumps(content).encode())


def is_whole_copy(path: Path, shard: ShardIndex) -> bool:
    """Tell whether a copy of a shard has its sidecar's size, and nothing is wrong in it."""
    if path.stat().st_size != shard.tar_bytes:
        return False
    try:
        reader = ShardReader(path, shard)
        return not any(reader.wrong())
    except CacheError:
        return False


def _noted(folder: Path) -> Mapping[str, Copy]:
    try:
        noted = parsed_json((folder / COPIES).read_bytes())
        return {place: Copy(*copy) for place, copy in noted.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # all are fetched again


def _is_current(path: Path, copy: Copy, listed: Listed) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    return (copy.tag, copy.crc32, len(content)) == (
        listed.tag,
        zlib.crc32(content),
        listed.length,
    )


def _fetch(remote: Remote, place: str, path: Path, listed: Listed) -> Copy | None:
    """Copy a file; None: it is gone, or is not what was listed, and is fetched again next time."""
    for _ in range(2):  # what was damaged on the way comes whole the second time
        try:
            content = remote.read(place, min(listed.length, MOST_BYTES))
        except FileNotFoundError:
            return None
        except MoreThanPromisedError:
            continue  # another version of it lies there by now
        write_atomically(path, content)
        if len(content) == listed.length and has_its_checksum(content):
            return Copy(listed.tag, zlib.crc32(content))
    return None
