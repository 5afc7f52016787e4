"""Sidecars made anew in place of wrong ones at an address: kept in the mirror until they are sent.

Whoever only reads a cache writes nothing at its address. What a reader finds out about a shard
lies in its mirror, `mended/<version>/<folder>/<sidecar>`, of which later readers hear, and the next
caching run sends it. Each is of a version of the sidecar at the address: once another one lies
there, that one counts.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from anima_pipe.files import write_atomically
from anima_pipe.shards.index import ShardIndex
from anima_pipe.shards.manifest import Listed, Listing
from anima_pipe.shards.sidecar import UnfitIndexError, index_path, read_index

MENDED: Final = "mended"


def keep_mended(mirror: Path, tar: Path, listed: Listed) -> None:
    """Keep the sidecar that lies beside a shard in the mirror.

    Args:
        mirror: Its folder.
        tar: The shard in it.
        listed: What lies at the address in the place of the sidecar.

    Raises:
        OutputError: The mirror cannot be written.
    """
    write_atomically(index_path(_place(mirror, tar, listed)), index_path(tar).read_bytes())


def read_mended(mirror: Path, tar: Path, listed: Listed, tar_bytes: int) -> ShardIndex | None:
    """Return the sidecar that stands in for the one at the address; None: there is none.

    Args:
        mirror: Its folder.
        tar: The shard in it; it need not be there.
        listed: What lies at the address in the place of the sidecar.
        tar_bytes: The shard's size.
    """
    try:
        return read_index(_place(mirror, tar, listed), tar_bytes)
    except UnfitIndexError:
        return None


def mended_sidecars(mirror: Path, listing: Listing) -> Iterator[Path]:
    """Yield the sidecars that stand in for what lies at the address now."""
    for path in sorted((mirror / MENDED).glob("*/*/*.json")):
        listed = listing.get(path.parent.name, {}).get(path.name)
        if listed and path.parent.parent.name == _version(listed):
            yield path


def forget_mended(mirror: Path) -> None:
    """Remove them all, those too that stand in for nothing any more."""
    shutil.rmtree(mirror / MENDED, ignore_errors=True)


def _place(mirror: Path, tar: Path, listed: Listed) -> Path:
    """Return the path beside which a shard's sidecar is kept."""
    return mirror / MENDED / _version(listed) / tar.parent.name / tar.name


def _version(listed: Listed) -> str:
    text = f"{listed.length} {listed.tag}"
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
