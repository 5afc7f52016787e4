"""Leases: who has a cache open, so that nothing is removed that an open run may need.

A lease is a file `<cache_dir>/leases/<encoder's folder>.<host>.<pid>.<random>.lease`. Its holder
keeps a lock on it and touches it every minute. The lock tells on one machine, whatever the
processes see of each other; the heartbeat tells between machines, where locks may not reach.
"""

from __future__ import annotations

import os
import re
import secrets
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from anima_pipe.files import process_exists
from anima_pipe.shards.unfinished import is_locked, lock, own_host

LEASES: Final = "leases"
SUFFIX: Final = ".lease"

HEARTBEAT_SECONDS: Final = 60
STALE_SECONDS: Final = 600
"""After which a lease without a heartbeat counts for nothing, unless it is locked."""


class Lease:
    """Holds an encoder's folder until it is released, collected, or its process ends.

    A cache that cannot be written, such as one on a read-only disk, is read without a lease.

    Args:
        folder: Of the encoder, in the cache folder.
    """

    def __init__(self, folder: Path) -> None:
        path = _leases_of(folder) / (
            f"{folder.name}.{own_host()}.{os.getpid()}.{secrets.token_hex(4)}{SUFFIX}"
        )
        self._end: weakref.finalize[..., Lease] | None = None
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            file = path.open("xb")
            lock(file)
            stop = threading.Event()
            self._end = weakref.finalize(self, _release, path, file, stop, os.getpid())
            threading.Thread(target=_beat, args=(path, stop), name="lease", daemon=True).start()

    def release(self) -> None:
        """Let the folder go; does nothing the second time."""
        if self._end is not None:
            self._end()


def holders(folder: Path) -> list[str]:
    """Return who has an encoder's folder open; leases of the dead are removed.

    Args:
        folder: Of the encoder, in the cache folder.
    """
    held: list[str] = []
    for path in sorted(_leases_of(folder).glob(f"{folder.name}.*{SUFFIX}")):
        match = re.fullmatch(
            r"\.([^.]+)\.(\d+)\.[0-9a-f]+", path.name[len(folder.name) : -len(SUFFIX)]
        )
        if match is None:
            continue
        try:
            is_held = _is_held(path, match[1], int(match[2]))
        except FileNotFoundError:
            continue  # released just now
        except OSError:
            is_held = True  # whoever may not look into a lease respects it
        if is_held:
            held.append(f"process {match[2]} on {match[1]}")
        else:
            with suppress(OSError):
                path.unlink()
    return held


def _is_held(path: Path, host: str, pid: int) -> bool:
    if is_locked(path):
        return True
    if host == own_host() and not process_exists(pid):
        return False
    return _age_seconds(path) < STALE_SECONDS


def _age_seconds(path: Path) -> float:
    """Return how old a heartbeat is, by the clock of the disk that it lies on."""
    probe = path.with_name(f".{own_host()}.{os.getpid()}.{secrets.token_hex(4)}.clock")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _leases_of(folder: Path) -> Path:
    return folder.parent / LEASES


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)


def _release(path: Path, file: BinaryIO, stop: threading.Event, pid: int) -> None:
    if os.getpid() != pid:
        return  # a forked copy: the lease is its parent's
    stop.set()
    with suppress(OSError):
        path.unlink()
    file.close()
