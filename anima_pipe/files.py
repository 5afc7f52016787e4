"""Writing files so that a final name only ever holds a whole file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import sys
import time
import uuid
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from anima_pipe.errors import OutputError
from anima_pipe.plain_text import in_utf8

ABANDONED_AFTER_SECONDS: Final = 24 * 3600
"""A temporary file of another host that nobody wrote to for this long is taken for left behind."""

MOST_SMALL_BYTES: Final = 4 * 2**20
"""Of a file of settings: a dataset of ten thousand folders has one of 1 MiB."""

NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
"""What systems answer where a disk, or a user's share of it, is full."""

_FOLDERS_NOT_OPENED: Final = (errno.EISDIR, errno.EACCES)
_FOLDERS_NOT_FLUSHED: Final = (errno.EINVAL, errno.EBADF)
"""What systems answer that can do neither; anything else is the disk's failure."""


@contextmanager
def refusals_named(path: Path) -> Generator[None]:
    """Turn what the disk refuses while `path` is written into an error that says so.

    Raises:
        OutputError: The folder cannot be made or written, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}", _remedy_of(error, path)
        ) from error


def _remedy_of(error: OSError, path: Path) -> str:
    """Return what is to be done about a disk that refused to write a path."""
    if error.errno == errno.EIO:
        return "check the disk, whose failures the system's log names"
    if error.errno not in NO_ROOM:
        return "check that the folder can be written and that the disk has room"
    place = path.absolute()
    while not place.exists() or not (place.is_mount() or place == place.parent):
        place = place.parent
    with suppress(OSError):
        disk = shutil.disk_usage(place)
        room = f"{disk.free / 1e6:,.0f} MB of {disk.total / 1e9:,.1f} GB are free"
        return f"make room on the disk at {place} ({room}), or have its quota raised"
    return f"make room on the disk at {place}"


@contextmanager
def published(path: Path) -> Generator[Path]:
    """Lend a temporary path beside the final one; on success flush it to disk and rename it.

    A kill, a full disk or an exception leaves what was there before under the final name. What a
    kill leaves beside it is removed by whoever writes in that folder next.

    Raises:
        OutputError: The folder cannot be made or written, or the disk is full.
    """
    temporary = path.with_name(temporary_name(path.name))
    try:
        with refusals_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            put_in_place(temporary, path)
    finally:
        # Where the folder itself was refused, there is nothing to remove and nothing more to say.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    remove_left_behind(path.parent)


def temporary_name(name: str) -> str:
    """Return a name for a file that is being written, which says by whom; see `is_left_behind`."""
    return f".{name}.{_writer()}.{uuid.uuid4().hex[:8]}.tmp"


def remove_left_behind(folder: Path) -> None:
    """Remove what killed writers of small files left in a folder, not what may still be written."""
    with suppress(OSError):  # it may be gone, or not to be listed
        for path in list(folder.glob(".*.tmp")):
            with suppress(OSError):
                if is_left_behind(path):
                    path.unlink()


def is_left_behind(path: Path) -> bool:
    """Tell whether the writer of something temporary is dead: by its name, else by its age."""
    writer = re.search(r"\.([0-9a-f]{6})-(\d+)\.[0-9a-f]{8}\.(tmp|old)$", path.name)
    if writer is None:
        return False  # somebody else's
    if time.time() - path.stat().st_mtime > ABANDONED_AFTER_SECONDS:
        return True
    return writer[1] == _host_mark() and not process_exists(int(writer[2]))


def process_exists(pid: int) -> bool:
    """Tell whether a process of this host is alive."""
    if sys.platform == "win32":
        return False  # signal 0 would kill there; an open file cannot be removed there anyway
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _writer() -> str:
    return f"{_host_mark()}-{os.getpid()}"


def _host_mark() -> str:
    return hashlib.blake2b(socket.gethostname().encode(), digest_size=3).hexdigest()


def put_in_place(temporary: Path, path: Path) -> None:
    """Flush a finished file to disk, and only then give it its name in the same folder or another.

    Raises:
        OSError: The disk refuses.
    """
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def read_small(path: Path, most: int = MOST_SMALL_BYTES) -> bytes:
    """Read a file of settings or facts, which nobody makes large.

    Raises:
        OSError: It cannot be read, is a pipe or a device, which may have no end, or is large.
    """
    refuse_endless(path)
    if (size := path.stat().st_size) > most:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than {most:,}")
    return path.read_bytes()


def refuse_endless(path: Path) -> None:
    """Check that a path is no pipe or device, opening or reading which may have no end.

    Raises:
        OSError: It is one, or there is nothing.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise OSError(errno.EINVAL, "it is no file, but a pipe or a device")


def write_atomically(path: Path, content: bytes, *, private: bool = False) -> None:
    """Write a whole small file, or leave what was there.

    Args:
        path: Its name.
        content: What is in it.
        private: Whether only the user who runs this may read it.

    Raises:
        OutputError: It cannot be written.
    """
    with published(path) as temporary:
        if private:
            temporary.touch(0o600)
        temporary.write_bytes(content)


def require_readable_name(path: Path, remedy: str) -> None:
    """Check that other programs can read a file of weights by its name.

    The safetensors library opens no path that is not UTF-8, and so does no program with it.

    Raises:
        OutputError: The path is not UTF-8.
    """
    if in_utf8(str(path)) != str(path):
        raise OutputError(f"no reader of safetensors opens {path}: the name is not UTF-8", remedy)


def rehearse(path: Path) -> None:
    """Find out, before the work, that a file can be written under its name; make its folder.

    Raises:
        OutputError: It cannot: the folder, the name, the disk, or a folder of that name.
    """
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder", "give the file another name")
    temporary = path.with_name(temporary_name(path.name))
    with refusals_named(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        temporary.unlink()


def with_sorted_header(content: bytes) -> bytes:
    """Return a safetensors file with the entries of its header in order.

    The library writes metadata in an order of its own each time; without that, the same tensors
    and metadata are the same bytes. The tensors' places in the file do not change.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    if "__metadata__" in header:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(dict(sorted(header.items())), separators=(",", ":"), ensure_ascii=False)
    data = content[8 + length :]
    # Spaces behind the header keep the tensors aligned to 8 bytes, as the format wants them.
    padded = text.encode().ljust(-(-len(text.encode()) // 8) * 8)
    return len(padded).to_bytes(8, "little") + padded + data


def sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system can do that for folders.

    Some filesystems cannot flush a folder, or not let it be opened for that; there, it counts as
    flushed, as PostgreSQL has it.

    Raises:
        OSError: The disk refuses.
    """
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _FOLDERS_NOT_OPENED:
            return
        raise
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _FOLDERS_NOT_FLUSHED:
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path) -> None:
    """Make a folder for results, and find out now rather than hours later whether it can be used.

    Raises:
        OutputError: It cannot be made, or nothing can be written into it.
    """
    with refusals_named(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / temporary_name("probe")
        probe.touch()
        probe.unlink()
