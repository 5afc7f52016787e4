"""Looking at many pictures, without reading again those that have not changed since the last scan.

What a scan finds is remembered, see `anima_pipe.source.scan_memory`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from anima_pipe.errors import DataError
from anima_pipe.records import ImageFile
from anima_pipe.source.boundary import one_item
from anima_pipe.source.images import REMEDY, read_image_file
from anima_pipe.source.links import Bounds
from anima_pipe.source.scan_memory import ScanMemory, Seen, stamp_if_there
from anima_pipe.stamps import is_settled

READING_THREADS: Final = 8
"""Threads that read and hash picture files; hashing releases the interpreter lock."""

PICTURES_PER_TASK: Final = 32
"""Looked at by a thread at a time: one by one, handing them out would take longer than looking."""

TASKS_AHEAD: Final = 32
"""Looked at, or being looked at, before the caller takes what they found."""

TASKS_AT_RISK: Final = 64
"""After so many, about two thousand pictures, what was found is written down."""


def scan_images(
    paths: Iterable[Path],
    cache_dir: Path | None,
    *,
    rehash: bool = False,
    bounds: Bounds | None = None,
) -> Generator[ImageFile | DataError]:
    """Yield size and hash of each picture, in order, or what is wrong with it.

    Args:
        paths: The pictures; taken as they are needed.
        cache_dir: Where the memory of earlier scans is; None: nothing is remembered.
        rehash: Read every picture, even where nothing about the file has changed.
        bounds: Pictures beyond them are not opened; None: all are.
    """
    memories: dict[Path, ScanMemory] = {}
    ahead: deque[Future[list[ImageFile | DataError]]] = deque()
    ended = threading.Event()
    look_at_all = partial(_look_at_all, bounds or Bounds(), ended, rehash=rehash)
    try:
        with ThreadPoolExecutor(READING_THREADS) as threads, _set_at_the_end(ended):
            for number, task in enumerate(_tasks(paths, memories, cache_dir), 1):
                ahead.append(threads.submit(look_at_all, task, memories))
                if len(ahead) > TASKS_AHEAD:
                    yield from ahead.popleft().result()
                if number % TASKS_AT_RISK == 0:
                    for memory in memories.values():
                        memory.checkpoint()
            while ahead:
                yield from ahead.popleft().result()
    finally:
        # Also when interrupted: hashing a large dataset again would take long.
        for memory in memories.values():
            memory.save()


@contextmanager
def _set_at_the_end(ended: threading.Event) -> Generator[None]:
    try:
        yield
    finally:
        ended.set()


def _look_at_all(
    bounds: Bounds,
    ended: threading.Event,
    paths: Iterable[Path],
    memories: Mapping[Path, ScanMemory],
    *,
    rehash: bool,
) -> list[ImageFile | DataError]:
    found: list[ImageFile | DataError] = []
    for path in paths:
        if ended.is_set():  # by an error, a signal, or a caller who wants no more
            break
        found.append(_look(bounds, path, memories.get(path.parent), rehash))
    return found


def _look(
    bounds: Bounds, path: Path, memory: ScanMemory | None, rehash: bool
) -> ImageFile | DataError:
    try:
        with one_item(path, REMEDY):
            bounds.admit(path)
            return _seen(path, memory, rehash)
    except DataError as error:
        return error


def _seen(path: Path, memory: ScanMemory | None, rehash: bool) -> ImageFile:
    before = stamp_if_there(path)
    known = memory.recall(path.name, before) if memory and not rehash else None
    if known:
        return ImageFile(path=path, size=known.size, content=known.content)
    image = read_image_file(path)
    if memory and before and is_settled(before) and stamp_if_there(path) == before:
        memory.note(path.name, Seen(stamp=before, size=image.size, content=image.content))
    return image


def _tasks(
    paths: Iterable[Path], memories: dict[Path, ScanMemory], cache_dir: Path | None
) -> Iterator[list[Path]]:
    """Yield so many pictures at a time, their folders' memories read."""
    remaining = iter(paths)
    while task := list(islice(remaining, PICTURES_PER_TASK)):
        if cache_dir:
            for folder in {path.parent for path in task} - memories.keys():
                memories[folder] = ScanMemory(cache_dir, folder)
        yield task
