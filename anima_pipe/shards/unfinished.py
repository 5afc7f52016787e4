"""Shards that are being written, and those that dead writers left behind.

A shard in progress lies beside the finished ones as `<shard>.tar.<host>.<pid>.unfinished`, a name
that no reader takes for a shard. Its writer holds a lock on it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Final

from anima_pipe.files import (
    ABANDONED_AFTER_SECONDS,
    process_exists,
    refusals_named,
    remove_left_behind,
    sync_folder,
)
from anima_pipe.leases import is_locked, lock, own_host

SUFFIX: Final = ".unfinished"

LOCKED_AFTER_SECONDS: Final = 60
"""A file this old without a lock is no one's, though its writer's number is another process's now:
between its creation and its lock there are no seconds."""


class UnfinishedFile:
    """A file under a temporary name, until it is published or discarded.

    It is whole after every piece: what ends it is written behind each, and written over by the
    next. So a disk that is full has room for the end of what it took.

    Args:
        final: The path it will have.
        end: What stands behind the last piece.

    Raises:
        OutputError: It cannot be created.
    """

    def __init__(self, final: Path, end: bytes = b"") -> None:
        self.final = final
        self.path = final.with_name(f"{final.name}.{own_host()}.{os.getpid()}{SUFFIX}")
        """Where it is until it is published."""
        self._end = end
        with refusals_named(final):
            # Open for longer than a block: closed by publish or discard. Without a buffer, so that
            # what the disk refuses is refused to the piece that it is of.
            self._file: FileIO = self.path.open("xb", buffering=0)
        lock(self._file)
        self.length = 0
        """Bytes of whole pieces; the file may be longer where a write was interrupted."""
        self.is_published = False

    def append(self, piece: bytes | memoryview) -> None:
        """Write a piece behind the whole ones; interrupted, it leaves nothing that counts.

        Raises:
            OutputError: The disk refuses it.
        """
        with refusals_named(self.final):
            self._write(self.length, piece, self._end)
        self.length += len(piece)

    def publish(self) -> None:
        """Flush it to the disk and give it its final name.

        Raises:
            OutputError: The disk refuses it. It can be tried again, cut to fewer pieces.
        """
        with refusals_named(self.final):
            # First this: it gives back what an interrupted piece took.
            self._file.truncate(self.length + len(self._end))
            self._write(self.length, self._end)
            os.fsync(self._file.fileno())
            if sys.platform == "win32":
                self._file.close()  # what is open has no other name given there
            self.path.replace(self.final)
            self.is_published = True
            with suppress(OSError):  # it is on the disk already
                self._file.close()
            sync_folder(self.final.parent)

    def forget_unwritten(self) -> None:
        """Let what is read of it come from the disk, where the system can do that.

        After a flush that failed, the system's memory holds what the disk has not.
        """
        if hasattr(os, "posix_fadvise"):
            with suppress(OSError):
                os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def discard(self) -> None:
        """Remove it; does nothing once it is published."""
        with suppress(OSError):
            self._file.close()
        with suppress(OSError):
            self.path.unlink()

    def _write(self, offset: int, *pieces: bytes | memoryview) -> None:
        self._file.seek(offset)
        for piece in pieces:
            rest = memoryview(piece)
            while rest:  # a disk may take a part, and refuse the next
                rest = rest[self._file.write(rest) :]


def remove_abandoned(folder: Path) -> None:
    """Remove what dead writers left in a folder; what may still be written to is left alone."""
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError):
            if _is_abandoned(path):
                path.unlink()
    remove_left_behind(folder)


def _is_abandoned(path: Path) -> bool:
    if _age_seconds(path) > ABANDONED_AFTER_SECONDS:
        return True
    match = re.search(r"\.([^.]+)\.(\d+)$", path.name.removesuffix(SUFFIX))
    if match is None or match[1] != own_host():
        return False
    # Two containers can share a host name and not see each other's processes: the lock tells.
    alive = process_exists(int(match[2])) and _age_seconds(path) < LOCKED_AFTER_SECONDS
    return not alive and not is_locked(path)


def _age_seconds(path: Path) -> float:
    return time.time() - path.stat().st_mtime
