"""One fetching process at a time for each target."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from anima_pipe.files import refusals_named
from anima_pipe.runtime import say


@contextmanager
def locked(target: Path) -> Generator[None]:
    """Hold the lock of a file or folder that is about to be fetched.

    The system lets go of it when a process ends, however that ends; the empty file stays.

    Raises:
        OutputError: The folder around the target cannot be written.
    """
    with refusals_named(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.with_name(f".{target.name}.lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say(f"waiting for another process that fetches {target}")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()
