"""What earlier scans found: one file per folder of pictures, `<cache_dir>/scan/<folder>.tsv`.

It is a memory, not the truth: lost, damaged or out of date, it costs reading the pictures again.
The first line holds a checksum of the others. Each of those is a picture, in the order of their
names: the name in JSON, a tab, and what a scan saw, in numbers and a hash. So it is kept as the
bytes that it is, and searched by bisection: as objects, pictures would take five times the room.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Final, TypeAlias

from anima_pipe.errors import OutputError
from anima_pipe.files import write_atomically

SCAN_VERSION: Final = 2
"""Raised when a picture's size or hash comes to be read otherwise: all are then read again."""

Stamp: TypeAlias = tuple[int, int, int]
"""Bytes, nanoseconds of the last change, inode: one of them changes whenever the file does."""


def stamp_of(path: Path) -> Stamp | None:
    """Return a file's stamp; None if there is no such file, which reading it will say."""
    try:
        status = os.stat(path)  # noqa: PTH116 - Path.stat takes twice as long
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One picture as a scan found it."""

    stamp: Stamp
    size: tuple[int, int]
    content: str

    def line(self, name: str) -> bytes:
        """Return the picture's line in the memory."""
        facts = _joined((*self.stamp, *self.size, self.content))
        return b"%b\t%b\n" % (_written(name), facts)

    @classmethod
    def parse(cls, facts: bytes) -> Seen:
        """Read what stands behind the name in a line."""
        length, changed, inode, width, height, content = facts.decode().split(" ")
        return cls(
            stamp=(int(length), int(changed), int(inode)),
            size=(int(width), int(height)),
            content=content,
        )


class ScanMemory:
    """What is known of one folder's pictures.

    Args:
        cache_dir: Where the memory is.
        folder: Of the pictures.
    """

    def __init__(self, cache_dir: Path, folder: Path) -> None:
        # Of the absolute path: `pictures` means another folder from elsewhere.
        name = hashlib.blake2b(os.fsencode(folder.absolute()), digest_size=8).hexdigest()
        self._file = cache_dir / "scan" / f"{name}.tsv"
        self._folder = folder
        self._content = _read_content(self._file)
        self._starts = array("Q", _starts(self._content))
        self._by_stamp: array[int] | None = None
        self._news = bytearray()

    def recall(self, name: str, stamp: Stamp | None) -> Seen | None:
        """Return what an earlier scan found, if the file is still the same or only renamed."""
        known = self._known(name)
        if known and known.stamp == stamp:
            return known
        renamed = self._stamped(stamp) if stamp else None
        if renamed:
            self.note(name, renamed)
        return renamed

    def note(self, name: str, seen: Seen) -> None:
        """Remember a picture; several threads may do so."""
        if self._known(name) != seen:
            self._news.extend(seen.line(name))

    def save(self) -> None:
        """Write it down if there is anything new, without pictures that are gone.

        Of two processes that do so at once, either one's memory is good.
        """
        if self._news:
            # A cache on a read-only disk can be trained from: it only takes longer to look again.
            with contextlib.suppress(OutputError):
                body = b"".join(self._lines_to_keep())
                write_atomically(self._file, _head(body) + body)

    def _known(self, name: str) -> Seen | None:
        return self._search(self._starts, _written(name), _name_at)

    def _stamped(self, stamp: Stamp) -> Seen | None:
        if self._by_stamp is None:  # only now: mostly nothing is renamed
            starts = sorted(self._starts, key=lambda start: _stamp_at(self._content, start))
            self._by_stamp = array("Q", starts)
        return self._search(self._by_stamp, _joined(stamp), _stamp_at)

    def _search(
        self, starts: Sequence[int], wanted: bytes, part_at: Callable[[bytes, int], bytes]
    ) -> Seen | None:
        """Return the picture of whose line a part is `wanted`, in lines sorted by that part."""
        content = self._content
        place = bisect_left(starts, wanted, key=lambda start: part_at(content, start))
        if place == len(starts) or part_at(content, starts[place]) != wanted:
            return None
        facts = content.index(b"\t", starts[place]) + 1
        return Seen.parse(content[facts : content.index(b"\n", facts)])

    def _lines_to_keep(self) -> Iterator[bytes]:
        """Yield the newest line of each picture that is there, in the order of their names."""
        _, *known = self._content.splitlines(keepends=True) or [b""]
        lines = [*known, *bytes(self._news).splitlines(keepends=True)]
        lines.sort(key=_name)  # stable: of two lines of a picture the newer stays behind
        for name, of_one in groupby(lines, key=_name):
            *_, newest = of_one
            if stamp_of(self._folder / json.loads(name)):
                yield newest


def _read_content(file: Path) -> bytes:
    """Return the whole file: nothing if the memory is missing or damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return b""
    with memoryview(content) as whole:
        body = content.find(b"\n") + 1
        return content if bytes(whole[:body]) == _head(whole[body:]) else b""


def _head(body: bytes | memoryview) -> bytes:
    return f"anima-pipe scan {SCAN_VERSION}, crc32 {zlib.crc32(body):08x}\n".encode()


def _starts(content: bytes) -> Iterator[int]:
    """Yield where the line of each picture begins."""
    end = content.find(b"\n")
    while 0 <= end < len(content) - 1:
        yield end + 1
        end = content.index(b"\n", end + 1)


def _written(name: str) -> bytes:
    """Return a file's name as it stands in a line: in ASCII, without tabs and line ends."""
    return json.dumps(name).encode()


def _name(line: bytes) -> bytes:
    return _name_at(line, 0)


def _name_at(lines: bytes, start: int) -> bytes:
    return lines[start : lines.index(b"\t", start)]


def _joined(facts: Iterable[object]) -> bytes:
    return " ".join(map(str, facts)).encode()


def _stamp_at(lines: bytes, start: int) -> bytes:
    """Return the first three of a line's facts."""
    facts = lines.index(b"\t", start) + 1
    end = facts
    for _ in range(3):
        end = lines.index(b" ", end) + 1
    return lines[facts : end - 1]
