"""The trash of a cache: shards that were removed, kept for a while.

Whoever read the sidecars before a shard went still finds it there, and so does whoever regrets:
moved back into its folder, a shard with its sidecar is what it was.

    <cache_dir>/trash/<encoder's folder>/<shard>.tar and .index.json
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from anima_pipe.shards.leases import holders
from anima_pipe.shards.sidecar import index_path

TRASH: Final = "trash"

GRACE_SECONDS: Final = 24 * 3600
"""For which what was removed stays in the trash."""


def place_in_trash(tar: Path) -> Path:
    """Return where a shard of a cache is once it is removed."""
    return tar.parent.parent / TRASH / tar.parent.name / tar.name


def move_to_trash(tar: Path) -> None:
    """Remove a shard and its sidecar from a cache; what is gone already is no harm.

    Raises:
        FileNotFoundError: The shard is gone.
        OSError: The disk refuses.
    """
    place = place_in_trash(tar)
    place.parent.mkdir(parents=True, exist_ok=True)
    tar.replace(place)
    os.utime(place)
    with suppress(FileNotFoundError):
        index_path(tar).replace(index_path(place))
        os.utime(index_path(place))


def put_back(tar: Path) -> None:
    """Undo `move_to_trash`.

    Raises:
        OSError: The disk refuses.
    """
    place = place_in_trash(tar)
    with suppress(FileNotFoundError):
        index_path(place).replace(index_path(tar))
    place.replace(tar)


def empty_trash(cache_dir: Path, *, now: bool = False) -> None:
    """Delete what has been in the trash for long enough, and nothing of what somebody has open.

    Args:
        cache_dir: The cache folder.
        now: Whether to delete what came a moment ago, too.

    Raises:
        OSError: The disk refuses.
    """
    for folder in _listed(cache_dir / TRASH):
        if holders(cache_dir / folder.name):
            continue
        for file in _listed(folder):
            with suppress(FileNotFoundError):  # another process empties it too
                if now or time.time() - file.stat().st_mtime > GRACE_SECONDS:
                    file.unlink()
        for emptied in (folder, folder.parent):
            with suppress(OSError):
                emptied.rmdir()


def _listed(folder: Path) -> list[Path]:
    """Return what is in a folder; nothing where it is not, or not any more."""
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # another process has emptied it
        return []
