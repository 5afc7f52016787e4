"""Reading a shard by position, so that bytes that cannot be had are an error that names the sample.

A mapped file has no way to say so: where it was cut off, or its disk fails, the process is killed.
"""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from anima_pipe.errors import CacheError
from anima_pipe.shards.index import ShardIndex
from anima_pipe.shards.sample import METADATA, PAYLOAD, quick_hash
from anima_pipe.shards.tar import BLOCK, Span

CUT_OFF: Final = "run the same command again: its sidecar is then rebuilt from what is left"

_positions_lock = threading.Lock()


class ShardReader:
    """One shard, open; several threads may read it.

    Args:
        tar: Where it is.
        index: What lies in it, and where.

    Raises:
        CacheError: It cannot be opened, or has not the size that its sidecar says.
    """

    def __init__(self, tar: Path, index: ShardIndex) -> None:
        self.index = index
        self._tar = tar
        try:
            self._handle = os.open(tar, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise CacheError(
                f"{tar} cannot be opened: {error.strerror}", "check the disk, or encode again"
            ) from error
        weakref.finalize(self, os.close, self._handle)
        if (size := os.fstat(self._handle).st_size) != index.tar_bytes:
            raise CacheError(
                f"{tar} has {size} bytes, not {index.tar_bytes}: it was changed or cut off", CUT_OFF
            )

    def payload(self, row: int) -> memoryview | None:
        """Return the safetensors bytes of a sample; None where they are not what was written.

        Raises:
            CacheError: They cannot be read.
        """
        content = memoryview(bytearray(BLOCK + self.index.payloads.length[row]))
        return content[BLOCK:] if self.read_payload(row, content) else None

    def read_payload(self, row: int, *parts: memoryview) -> bool:
        """Read the tar header and the safetensors bytes of a sample into memory of the caller's.

        Args:
            row: Of the sample.
            parts: What is filled in turn; the first begins with the header, of one block.

        Returns:
            Whether they are what was written: the sample's name, and the checksum.

        Raises:
            CacheError: They cannot be read.
        """
        index = self.index
        self._fill(row, index.payloads.offset[row] - BLOCK, parts)
        head, *others = parts
        name = f"{index.keys[row]}.{PAYLOAD}".encode()
        if bytes(head[: len(name)]) != name:
            return False
        if index.payload_hashes:
            return quick_hash(head[BLOCK:], *others) == index.payload_hashes[row]
        return _crc32(head[BLOCK:], *others) == index.payloads.crc32[row]

    def noted(self, row: int) -> bytes | None:
        """Return the JSON member of a sample; None where it is not what was written.

        Raises:
            CacheError: It cannot be read.
        """
        content = bytes(self._read(row, self.index.metadata.span(row)))
        return content if zlib.crc32(content) == self.index.metadata.crc32[row] else None

    def members(self, row: int) -> dict[str, bytes] | None:
        """Return both members of a sample; None where either has not its CRC-32.

        Raises:
            CacheError: They cannot be read.
        """
        payload, noted = self.payload(row), self.noted(row)
        if payload is None or noted is None:
            return None
        if zlib.crc32(payload) != self.index.payloads.crc32[row]:
            return None
        return {PAYLOAD: bytes(payload), METADATA: noted}

    def _read(self, row: int, span: Span) -> memoryview:
        content = memoryview(bytearray(span.length))
        self._fill(row, span.offset, [content])
        return content

    def _fill(self, row: int, offset: int, parts: Sequence[memoryview]) -> None:
        """Fill memory with what lies in the shard.

        Raises:
            CacheError: The disk fails, or the shard has become shorter.
        """
        sample = f"sample {self.index.keys[row]} in {self._tar}"
        try:
            count = read_at(self._handle, offset, parts)
        except OSError as error:
            raise CacheError(
                f"{sample} cannot be read: {error.strerror}",
                "check the disk, whose failures the system's log names; what the shard holds is "
                "encoded anew once it is removed",
            ) from error
        if count < (wanted := sum(map(len, parts))):
            size = os.fstat(self._handle).st_size
            raise CacheError(
                f"{sample} cannot be read: it goes to byte {offset + wanted}, and the shard "
                f"was cut off at {size}",
                CUT_OFF,
            )


def read_at(handle: int, offset: int, parts: Sequence[memoryview]) -> int:
    """Fill parts of memory in turn from a place in an open file; return how many bytes it had.

    Raises:
        OSError: The disk fails.
    """
    count = 0
    remaining = [part for part in parts if part]
    while remaining:
        got = _read_some(handle, offset + count, remaining)
        if not got:
            break
        count += got
        while remaining and got >= len(remaining[0]):
            got -= len(remaining.pop(0))
        if remaining:
            remaining[0] = remaining[0][got:]
    return count


def _read_some(handle: int, offset: int, parts: Sequence[memoryview]) -> int:
    if hasattr(os, "preadv"):
        return os.preadv(handle, parts, offset)
    with _positions_lock:  # a file has one position, whichever thread reads
        os.lseek(handle, offset, os.SEEK_SET)
        content = os.read(handle, len(parts[0]))
    parts[0][: len(content)] = content
    return len(content)


def _crc32(*parts: memoryview) -> int:
    checksum = 0
    for part in parts:
        checksum = zlib.crc32(part, checksum)
    return checksum
