"""A file of a repository as the hub describes it before it is fetched, and what it then must be."""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anima_pipe.hub.causes import SourceError
from anima_pipe.hub.sources import Source

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

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


class Bounded(io.BufferedWriter):
    """A file that takes no more bytes than a hub said it has: a server may send without end.

    Args:
        part: The file on the disk, of which a beginning may be there.
        file: What it is to be.
    """

    def __init__(self, part: Path, file: RemoteFile) -> None:
        super().__init__(io.FileIO(part, "ab"))
        self._file = file

    def write(self, buffer: ReadableBuffer, /) -> int:
        """Write a piece.

        Raises:
            SourceError: The file goes on behind its end.
        """
        if 0 < self._file.size < self.tell() + memoryview(buffer).nbytes:
            announced = f"{self._file.size:,} bytes that were announced"
            raise SourceError(
                f"{self._file.path} has more than the {announced}",
                "run the command again; if it comes so again, look at what answers in between",
            )
        return super().write(buffer)


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
