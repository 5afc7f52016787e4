"""Folders that are whole under their final names, or not there.

A folder is written under a temporary name and then takes the place of the old one in one step,
where the system can exchange two names. Where it cannot, the old one is put aside for a moment; a
kill within it leaves the old one aside, and `repair_folder` gives it its name back.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from anima_pipe.errors import OutputError
from anima_pipe.files import is_left_behind, refusals_named, sync_folder, temporary_name

_ASIDE: Final = re.compile(r"\.(.+)\.[0-9a-f]{6}-\d+\.[0-9a-f]{8}\.old")
"""The name of a folder that was put aside: `temporary_name` with another ending."""

_SETTLING_SECONDS: Final = 1.0
"""A writer that lives leaves nothing aside for that long."""

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2
"""From Linux' fcntl.h: a path is relative to the current folder; both names are exchanged."""

_RENAME_SWAP: Final = 2
"""The latter from macOS' stdio.h."""


@contextmanager
def published_folder(folder: Path) -> Generator[Path]:
    """Lend a temporary folder beside the final one; on success flush it to disk and rename it.

    A folder that is there already is replaced, and only then removed. A kill, a full disk or an
    exception leaves it as it was, under its name or where `repair_folder` finds it.

    Raises:
        OutputError: It cannot be made or written, or the disk is full.
    """
    temporary = folder.with_name(temporary_name(folder.name))
    with refusals_named(folder):
        temporary.mkdir(parents=True)
    try:
        with refusals_named(folder):
            yield temporary
            for path in temporary.rglob("*"):
                _flush(path)
            sync_folder(temporary)
            _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_left_behind(folder.parent)


def _flush(path: Path) -> None:
    """Flush a file, or the names that a folder holds, to disk."""
    if path.is_dir():
        sync_folder(path)
        return
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def repair_folder(folder: Path) -> None:
    """Give a folder its name back, if a kill came while it was put aside for its successor.

    Raises:
        OutputError: It cannot be renamed.
    """
    if folder.exists() or not _asides_of(folder):
        return
    time.sleep(_SETTLING_SECONDS)
    with refusals_named(folder), suppress(FileNotFoundError):  # another process was faster
        if not folder.exists() and (left := _asides_of(folder)):
            max(left, key=lambda path: path.stat().st_mtime).rename(folder)
            sync_folder(folder.parent)


def repair_folders(parent: Path) -> None:
    """Give all folders in one their names back; see `repair_folder`.

    Raises:
        OutputError: One cannot be renamed.
    """
    for name in {name for name, _ in _asides(parent)}:
        repair_folder(parent / name)


def remove_folder(folder: Path) -> None:
    """Remove a folder; a kill leaves none under its name that is not whole.

    Raises:
        OutputError: It cannot be removed.
    """
    removed = folder.with_name(temporary_name(folder.name))
    with refusals_named(folder):
        folder.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def _put_in_place(whole: Path, folder: Path) -> None:
    """Rename a finished folder; what was there before has the temporary name then."""
    if not folder.exists():
        whole.rename(folder)
    elif not _exchanged(whole, folder):
        _replace_in_steps(whole, folder)
    sync_folder(folder.parent)


def _replace_in_steps(whole: Path, folder: Path) -> None:
    aside = whole.with_suffix(".old")
    try:
        folder.rename(aside)
        whole.rename(folder)
    except BaseException:
        if aside.exists() and not folder.exists():
            _restore(aside, folder)
        raise
    # Under this name nobody takes it for a folder to be given back, however much of it is left.
    aside.rename(whole)


def _restore(aside: Path, folder: Path) -> None:
    try:
        aside.rename(folder)
    except OSError as error:
        raise OutputError(
            f"cannot write {folder}: {error.strerror or error}; what was there lies in {aside}",
            f"once the disk can be written again, rename {aside.name} to {folder.name}",
        ) from error


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one step; tell whether system and filesystem can."""
    if sys.platform == "linux":
        exchange = getattr(ctypes.CDLL(None), "renameat2", None)
        names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    elif sys.platform == "darwin":
        exchange = getattr(ctypes.CDLL(None), "renamex_np", None)
        names = (os.fsencode(first), os.fsencode(second), _RENAME_SWAP)
    else:
        return False
    # Whatever refused it, the renames that follow say what is wrong.
    return exchange is not None and exchange(*names) == 0


def _asides(parent: Path) -> list[tuple[str, Path]]:
    """Return what lies aside in a folder, each with the name it had."""
    with suppress(OSError):
        found = [(_ASIDE.fullmatch(path.name), path) for path in parent.iterdir()]
        return [(match[1], path) for match, path in found if match]
    return []


def _asides_of(folder: Path) -> list[Path]:
    """Return what lies aside of one folder."""
    return [path for name, path in _asides(folder.parent) if name == folder.name]


def _remove_left_behind(parent: Path) -> None:
    """Remove what killed writers of folders left, but nothing that can be given back its name."""
    for name, aside in _asides(parent):
        with suppress(OSError):
            if (parent / name).exists() and is_left_behind(aside):
                aside.rename(aside.with_suffix(".tmp"))
    for path in parent.glob(".*.tmp"):
        with suppress(OSError):
            if path.is_dir() and is_left_behind(path):
                shutil.rmtree(path)
