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
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
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

TASKS_AHEAD: Final = 32
"""Looked at, or being looked at, before the caller takes what they found."""

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
    paths: Iterable[Path], cache_dir: Path | None, *, rehash: bool = False
) -> Iterator[ImageFile | DataError]:
    """Yield size and hash of each picture, in order, or what is wrong with it.

    Args:
        paths: The pictures; taken as they are needed.
        cache_dir: Where the memory of earlier scans is; None: nothing is remembered.
        rehash: Read every picture, even where nothing about the file has changed.
    """
    memories: dict[Path, _Memory] = {}
    ahead: deque[Future[list[ImageFile | DataError]]] = deque()
    try:
        with ThreadPoolExecutor(READING_THREADS) as threads:
            for task in _tasks(paths, memories, cache_dir):
                ahead.append(threads.submit(_look_at_all, task, memories, rehash))
                if len(ahead) > TASKS_AHEAD:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
    finally:
        # Also when interrupted: hashing a large dataset again would take long.
        for memory in memories.values():
            memory.save()


class _Memory:
    """What is known of one folder's pictures."""

    def __init__(self, cache_dir: Path, folder: Path) -> None:
        # Of the absolute path: `pictures` means another folder from elsewhere.
        name = hashlib.blake2b(os.fsencode(folder.absolute()), digest_size=8).hexdigest()
        self._file = cache_dir / "scan" / f"{name}.json"
        self._folder = folder
        self._known = _read_memory(self._file)
        self._by_stamp = {seen.stamp: seen for seen in self._known.values()}
        self._news: dict[str, Seen] = {}

    def recall(self, name: str, stamp: Stamp | None) -> Seen | None:
        """Return what an earlier scan found, if the file is still the same or only renamed."""
        known = self._known.get(name)
        if known and known.stamp == stamp:
            return known
        renamed = self._by_stamp.get(stamp) if stamp else None
        if renamed:
            self.note(name, renamed)
        return renamed

    def note(self, name: str, seen: Seen) -> None:
        """Remember a picture; several threads may do so."""
        if self._known.get(name) != seen:
            self._news[name] = seen

    def save(self) -> None:
        """Write it down if there is anything new, without pictures that are gone."""
        if self._news:
            whole = self._known | self._news
            there = {name: seen for name, seen in whole.items() if _stamp(self._folder / name)}
            _write_memory(self._file, there)


def _look_at_all(
    paths: Iterable[Path], memories: Mapping[Path, _Memory], rehash: bool
) -> list[ImageFile | DataError]:
    return [_look(path, memories.get(path.parent), rehash) for path in paths]


def _look(path: Path, memory: _Memory | None, rehash: bool) -> ImageFile | DataError:
    before = _stamp(path)
    known = memory.recall(path.name, before) if memory and not rehash else None
    if known:
        return ImageFile(path=path, size=known.size, content=known.content)
    try:
        image = read_image_file(path)
    except DataError as error:
        return error
    if memory and before and _is_settled(path, before) and _stamp(path) == before:
        memory.note(path.name, Seen(before, image.size, image.content))
    return image


def _stamp(path: Path) -> Stamp | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - Path.stat takes twice as long
    except OSError:
        return None  # reading it will say why
    return status.st_size, status.st_mtime_ns, status.st_ino


def _is_settled(path: Path, stamp: Stamp) -> bool:
    now, changed = time.time_ns(), stamp[1]
    if changed > now:
        # Its date was set, or the clock of the disk is ahead, which this other date tells: it is
        # the disk's own, and nobody can set it.
        changed = path.stat().st_ctime_ns
    return now - changed > SETTLED_SECONDS * 1e9


def _tasks(
    paths: Iterable[Path], memories: dict[Path, _Memory], cache_dir: Path | None
) -> Iterator[list[Path]]:
    """Yield so many pictures at a time, their folders' memories read."""
    remaining = iter(paths)
    while task := list(islice(remaining, PICTURES_PER_TASK)):
        if cache_dir:
            for folder in {path.parent for path in task} - memories.keys():
                memories[folder] = _Memory(cache_dir, folder)
        yield task


def _read_memory(file: Path) -> dict[str, Seen]:
    """Return what is remembered, by file name: nothing if the memory is missing or damaged."""
    try:
        head, _, body = file.read_bytes().partition(b"\n")
        if head != _head(body):
            return {}
        # Many pictures share a size: one object for each size, which outlives this memory.
        sizes: dict[tuple[int, int], tuple[int, int]] = {}
        return {
            name: Seen(
                (length, changed, inode),
                sizes.setdefault((width, height), (width, height)),
                content,
            )
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
