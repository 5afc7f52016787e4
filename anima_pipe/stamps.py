"""What tells whether a file has changed since it was read, without reading it again."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final, NamedTuple

SETTLED_SECONDS: Final = 2.0
"""A file this young may change again within its time stamp, whose steps may be as coarse."""


class Stamp(NamedTuple):
    """Facts of a file, of which one changes whenever the file does.

    Programs that put new bytes into a file and its old date back cannot set the last one.
    """

    length: int
    """In bytes."""
    changed: int
    """When the content was changed, in nanoseconds; anybody may set it."""
    inode: int
    inode_changed: int
    """When one of these facts or the name was changed, in nanoseconds, by the disk's clock."""


def stamp_of(path: Path) -> Stamp:
    """Return a file's stamp.

    Raises:
        OSError: There is no such file, or it cannot be looked at.
    """
    status = os.stat(path)  # noqa: PTH116 - Path.stat takes twice as long
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns)


def is_settled(stamp: Stamp) -> bool:
    """Whether a file is old enough that changing it again would change its stamp."""
    now, changed = time.time_ns(), stamp.changed
    if changed > now:
        # Its date was set, or the clock of the disk is ahead, which its other date tells.
        changed = stamp.inode_changed
    return now - changed > SETTLED_SECONDS * 1e9
