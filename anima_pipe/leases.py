"""Leases: who uses something on a disk, told to other processes and other machines.

A lease is a file `<folder>/<name>.<host>.<pid>.<random>.lease`. Its holder keeps a lock on it and
touches it every minute. The lock tells on one machine, whatever the processes see of each other;
the heartbeat tells between machines, where locks may not reach.
"""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final

from anima_pipe.files import process_exists, remove_left_behind, temporary_name

SUFFIX: Final = ".lease"

HEARTBEAT_SECONDS: Final = 60
STALE_SECONDS: Final = 600
"""After which a lease without a heartbeat counts for nothing, unless it is locked."""


class Lease:
    """Holds something until it is released, collected, or its process ends.

    What lies on a disk that cannot be written is used without a lease.

    Args:
        folder: Where leases on it lie; made if need be, in a folder that is there.
        name: What is held.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        holder = f"{own_host()}.{os.getpid()}.{secrets.token_hex(4)}"
        self._path = folder / f"{name}.{holder}{SUFFIX}"
        self._end: weakref.finalize[..., Lease] | None = None
        with suppress(OSError):
            folder.mkdir(exist_ok=True)
            file = self._path.open("xb")
            lock(file)
            stop = threading.Event()
            self._end = weakref.finalize(self, _release, self._path, file, stop, os.getpid())
            beating = (self._path, stop)
            threading.Thread(target=_beat, args=beating, name="lease", daemon=True).start()

    def others(self) -> list[str]:
        """Return who holds the same too; leases of the dead are removed."""
        return _holders(self._folder, self._name, but=self._path)

    def release(self) -> None:
        """Let it go; does nothing the second time."""
        if self._end is not None:
            self._end()


def holders(folder: Path, name: str) -> list[str]:
    """Return who holds something, as "process 123 on HOST"; leases of the dead are removed.

    Args:
        folder: Where leases on it lie.
        name: What is held.
    """
    return _holders(folder, name)


def _holders(folder: Path, name: str, but: Path | None = None) -> list[str]:
    held: list[str] = []
    for path, host, pid in _leases(folder, name):
        if path == but:
            continue
        try:
            is_held = _is_held(path, host, pid)
        except FileNotFoundError:
            continue  # released just now
        except OSError:
            is_held = True  # whoever may not look into a lease respects it
        if is_held:
            held.append(f"process {pid} on {host}")
        else:
            with suppress(OSError):
                path.unlink()
    remove_left_behind(folder)
    return held


def _leases(folder: Path, name: str) -> list[tuple[Path, str, int]]:
    """Return the leases on something, each with the machine and the process it names."""
    of_it = re.compile(re.escape(name) + r"\.([^.]+)\.(\d+)\.[0-9a-f]+" + re.escape(SUFFIX))
    with suppress(OSError):
        found = [(of_it.fullmatch(path.name), path) for path in sorted(folder.iterdir())]
        return [(path, match[1], int(match[2])) for match, path in found if match]
    return []


def _is_held(path: Path, host: str, pid: int) -> bool:
    if is_locked(path):
        return True
    if host == own_host() and not process_exists(pid):
        return False
    return _age_seconds(path) < STALE_SECONDS


def _age_seconds(path: Path) -> float:
    """Return how old a heartbeat is, by the clock of the disk that it lies on."""
    probe = path.with_name(temporary_name("clock"))
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


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


def own_host() -> str:
    """Return this machine's name, in letters that stand in names of files."""
    return re.sub(r"[^A-Za-z0-9-]", "-", socket.gethostname()) or "unknown"


def lock(file: BinaryIO) -> None:
    """Lock an open file, where the system can, for as long as it is open."""
    if sys.platform == "win32":
        return
    import fcntl

    with suppress(OSError):  # some network filesystems have no locks
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(path: Path) -> bool:
    """Tell whether anybody has a file locked."""
    if sys.platform == "win32":
        return False
    import fcntl

    with path.open("rb") as file:
        try:
            # Shared: two that ask at the same time do not take each other for a holder.
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
