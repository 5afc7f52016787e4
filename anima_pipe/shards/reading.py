"""Reading a shard by position, so that bytes that cannot be had are an error that names the sample.

A mapped file has no way to say so: where it was cut off, or its disk fails, the process is killed.
"""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from anima_pipe.errors import CacheError
from anima_pipe.shards.fitness import DAMAGED, WrongSampleError, refuse_differences
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

    def payload(self, row: int) -> memoryview:
        """Return the safetensors bytes of a sample.

        Raises:
            CacheError: They cannot be read.
            WrongSampleError: They are not what was written.
        """
        content = memoryview(bytearray(BLOCK + self.index.payloads.length[row]))
        self.read_payload(row, content)
        return content[BLOCK:]

    def read_payload(self, row: int, *parts: memoryview) -> None:
        """Read the tar header and the safetensors bytes of a sample into memory of the caller's.

        Args:
            row: Of the sample.
            parts: What is filled in turn; the first begins with the header, of one block.

        Raises:
            CacheError: They cannot be read.
            WrongSampleError: They are not what was written: another name, another checksum.
        """
        index = self.index
        self._fill(row, index.payloads.offset[row] - BLOCK, parts)
        head, *others = parts
        name = f"{index.keys[row]}.{PAYLOAD}".encode()
        if index.payload_hashes:
            is_whole = quick_hash(head[BLOCK:], *others) == index.payload_hashes[row]
        else:
            is_whole = _crc32(head[BLOCK:], *others) == index.payloads.crc32[row]
        if not is_whole or bytes(head[: len(name)]) != name:
            raise WrongSampleError(DAMAGED)

    def noted(self, row: int) -> bytes:
        """Return the JSON member of a sample.

        Raises:
            CacheError: It cannot be read.
            WrongSampleError: It is not what was written.
        """
        content = bytes(self._read(row, self.index.metadata.span(row)))
        if zlib.crc32(content) != self.index.metadata.crc32[row]:
            raise WrongSampleError(DAMAGED)
        return content

    def compared(self, row: int) -> memoryview:
        """Return the safetensors bytes of a sample of which all is compared that is known of it.

        Raises:
            CacheError: They cannot be read.
            WrongSampleError: They or its JSON are not what was written, or they are not what the
                sidecar says, or not what is trained on.
        """
        payload = self.payload(row)
        self.noted(row)
        refuse_differences(self.index, row, payload)
        return payload

    def members(self, row: int) -> dict[str, bytes]:
        """Return both members of a sample, as `compared`, and by their CRC-32 too.

        Raises:
            CacheError: They cannot be read.
            WrongSampleError: See `compared`.
        """
        payload, noted = self.payload(row), self.noted(row)
        refuse_differences(self.index, row, payload)
        if zlib.crc32(payload) != self.index.payloads.crc32[row]:
            raise WrongSampleError(DAMAGED)
        return {PAYLOAD: bytes(payload), METADATA: noted}

    def wrong(self) -> Iterator[tuple[str, str]]:
        """Yield the keys of samples that are not as `members` wants them, and why.

        Raises:
            CacheError: Something cannot be read.
        """
        for row, key in enumerate(self.index.keys):
            try:
                self.members(row)
            except WrongSampleError as error:
                yield key, str(error)

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
