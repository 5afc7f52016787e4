"""A file of a repository as the hub describes it before it is fetched, and what it then must be."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anima_pipe.hub.sources import Source

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_GIT: Final = re.compile(r"[0-9a-f]{40}")
_CHUNK_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """What a hub says of a file before it is fetched."""

    source: Source
    path: str
    """In the repository."""
    size: int
    """Bytes."""
    checksum: str | None
    """SHA-256, or git's name of the content; None where the hub tells neither."""
    cached: Path | None = None
    """The file in the client's cache, where it has it already."""


def content_matches(path: Path, checksum: str | None) -> bool:
    """Compare a file with its SHA-256 or with git's name of it; without either it matches."""
    if checksum and _SHA256.fullmatch(checksum):
        digest = hashlib.sha256()
    elif checksum and _GIT.fullmatch(checksum):
        # git's name of a file, which is what hubs tell of files outside of large-file storage.
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == checksum
