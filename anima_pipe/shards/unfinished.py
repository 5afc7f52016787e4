"""Shards that are being written, and those that dead writers left behind.

A shard in progress lies beside the finished ones as `<shard>.tar.<host>.<pid>.unfinished`, a name
that no reader takes for a shard. Its writer holds a lock on it.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

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

    Args:
        final: The path it will have.

    Raises:
        OutputError: It cannot be created.
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self._path = final.with_name(f"{final.name}.{own_host()}.{os.getpid()}{SUFFIX}")
        with refusals_named(final):
            # Open for longer than a block: closed by publish or discard.
            self._file: BinaryIO = self._path.open("xb")
        lock(self._file)
        self.length = 0
        """Bytes of whole pieces; the file may be longer where a write was interrupted."""

    def append(self, piece: bytes | memoryview) -> None:
        """Write a piece behind the whole ones; interrupted, it leaves nothing that counts.

        Raises:
            OutputError: The disk refuses it.
        """
        with refusals_named(self.final):
            self._file.seek(self.length)
            self._file.write(piece)
        self.length += len(piece)

    def publish(self) -> None:
        """Flush it to the disk and give it its final name.

        Raises:
            OutputError: The disk refuses it; then nothing is published.
        """
        with refusals_named(self.final):
            self._file.truncate(self.length)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._path.replace(self.final)
            sync_folder(self.final.parent)

    def discard(self) -> None:
        """Remove it; does nothing once it is published."""
        with suppress(OSError):
            self._file.close()  # flushes, so a full disk refuses it again
        with suppress(OSError):
            self._path.unlink()


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
