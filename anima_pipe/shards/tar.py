"""The bytes of a shard: a plain tar of `<key>.json` and `<key>.safetensors`, as webdataset has it.

The only module that imports webdataset.
"""

from __future__ import annotations

import errno
import io
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

BLOCK: Final = 512
"""Tar headers take one block, contents are padded to whole blocks."""

END_OF_ARCHIVE: Final = bytes(2 * BLOCK)


@dataclass(frozen=True, slots=True)
class Span:
    """Where some bytes lie."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.offset + self.length

    def moved(self, distance: int) -> Span:
        """Return the same bytes' place behind `distance` others."""
        return Span(self.offset + distance, self.length)


def tar_sample(key: str, members: Mapping[str, bytes]) -> tuple[memoryview, dict[str, Span]]:
    """Return the tar bytes of one sample, and where in them each member's content lies.

    The bytes depend on the arguments alone: no clock, no user, no machine.

    Args:
        key: At most 80 letters, digits, hyphens and underscores, so that a header is one block.
        members: Content by extension, without its dot.
    """
    from webdataset.writer import TarWriter

    buffer = io.BytesIO()
    with TarWriter(buffer, user="", group="", mtime=0, encoder=False) as writer:
        writer.write({"__key__": key, **members})
    spans: dict[str, Span] = {}
    end = 0
    for extension in sorted(members):  # the order in which webdataset writes them
        spans[extension] = Span(end + BLOCK, len(members[extension]))
        end = padded(spans[extension].end)
    # What lies behind is the end-of-archive mark, which only the last sample of a shard is given.
    return buffer.getbuffer()[:end], spans


def read_members(path: Path) -> Iterator[tuple[str, Span]]:
    """Yield name and place of each whole member, up to the end or to the first damaged header.

    Raises:
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        for info in _headers(file):
            span = Span(info.offset_data, info.size)
            if info.isfile() and 0 <= span.length <= size - span.offset:
                yield info.name, span


def _headers(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of a tar's members, up to the first that tells what cannot be."""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            yield from tar
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place that no file has
            raise
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, MemoryError):
        # Sizes of thousands of digits, below zero, beyond any disk; headers of headers.
        return


def padded(length: int) -> int:
    """Return what a content of so many bytes takes in a tar, its header left out."""
    return -(-length // BLOCK) * BLOCK
