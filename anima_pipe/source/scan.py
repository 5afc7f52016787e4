"""Looking at many pictures, without reading again those that have not changed since the last scan.

What a scan finds is kept in one file per folder of pictures, `<cache_dir>/scan/<folder>.json`. It
is a memory, not the truth: lost, damaged or out of date, it costs reading the pictures again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, TypeAlias

from anima_pipe.errors import DataError, OutputError
from anima_pipe.files import write_atomically
from anima_pipe.records import ImageFile
from anima_pipe.source.images import read_image_file

SCAN_VERSION: Final = 1
"""Raised when a picture's size or hash comes to be read otherwise: all are then read again."""

READING_THREADS: Final = 8
"""Threads that read and hash picture files; hashing releases the interpreter lock."""

PICTURES_PER_TASK: Final = 32
"""Looked at by a thread at a time: one by one, handing them out would take longer than looking."""

SETTLED_SECONDS: Final = 2.0
"""A file this young may change again within its time stamp, whose steps may be as coarse."""

Stamp: TypeAlias = tuple[int, int, int]
"""Bytes, nanoseconds of the last change, inode: one of them changes whenever the file does."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One picture as a scan found it."""

    stamp: Stamp
    size: tuple[int, int]
    content: str


def scan_images(
    paths: Sequence[Path], cache_dir: Path | None, *, rehash: bool = False
) -> Iterator[ImageFile | DataError]:
    """Yield size and hash of each picture, in order, or what is wrong with it.

    Args:
        paths: The pictures, those of a folder one after the other.
        cache_dir: Where the memory of earlier scans is; None: nothing is remembered.
        rehash: Read every picture, even where nothing about the file has changed.
    """
    with ThreadPoolExecutor(READING_THREADS) as threads:
        for folder, members in groupby(paths, key=lambda path: path.parent):
            memory = _memory_file(cache_dir, folder) if cache_dir else None
            known = _read_memory(memory) if memory and not rehash else {}
            seen: dict[str, Seen] = {}
            tasks = list(_chunks(list(members)))
            looked = threads.map(_look_at_all, tasks, [known] * len(tasks))
            for path, found, stamp in (one for task in looked for one in task):
                if isinstance(found, ImageFile) and stamp is not None:
                    seen[path.name] = Seen(stamp, found.size, found.content)
                yield found
            if memory and seen != known:
                _write_memory(memory, seen)


_Look: TypeAlias = tuple[Path, ImageFile | DataError, Stamp | None]
"""A picture, what it is, and the stamp to remember it by; None: not to be remembered."""


def _look_at_all(paths: Iterable[Path], known: dict[str, Seen]) -> list[_Look]:
    return [_look(path, known.get(path.name)) for path in paths]


def _look(path: Path, known: Seen | None) -> _Look:
    before = _stamp(path)
    if known and known.stamp == before:
        return path, ImageFile(path=path, size=known.size, content=known.content), before
    try:
        image = read_image_file(path)
    except DataError as error:
        return path, error, None
    return path, image, before if _is_settled(before) and _stamp(path) == before else None


def _stamp(path: Path) -> Stamp | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - Path.stat takes twice as long
    except OSError:
        return None  # reading it will say why
    return status.st_size, status.st_mtime_ns, status.st_ino


def _is_settled(stamp: Stamp | None) -> bool:
    return stamp is not None and time.time_ns() - stamp[1] > SETTLED_SECONDS * 1e9


def _chunks(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for start in range(0, len(paths), PICTURES_PER_TASK):
        yield paths[start : start + PICTURES_PER_TASK]


def _memory_file(cache_dir: Path, folder: Path) -> Path:
    # Of the absolute path: `pictures` means another folder from elsewhere.
    name = hashlib.blake2b(os.fsencode(folder.absolute()), digest_size=8).hexdigest()
    return cache_dir / "scan" / f"{name}.json"


def _read_memory(file: Path) -> dict[str, Seen]:
    """Return what is remembered, by file name: nothing if the memory is missing or damaged."""
    try:
        head, _, body = file.read_bytes().partition(b"\n")
        if head != _head(body):
            return {}
        return {
            name: Seen((length, changed, inode), (width, height), content)
            for name, (length, changed, inode, width, height, content) in json.loads(body).items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write_memory(file: Path, seen: dict[str, Seen]) -> None:
    """Replace the memory of a folder; of two processes that do so at once, either one's is good."""
    pictures = {name: [*one.stamp, *one.size, one.content] for name, one in seen.items()}
    body = json.dumps(pictures, separators=(",", ":")).encode()
    # A cache on a read-only disk can be trained from: it only takes longer to look at the pictures.
    with contextlib.suppress(OutputError):
        write_atomically(file, _head(body) + b"\n" + body)


def _head(body: bytes) -> bytes:
    return f"anima-pipe scan {SCAN_VERSION}, crc32 {zlib.crc32(body):08x}".encode()
