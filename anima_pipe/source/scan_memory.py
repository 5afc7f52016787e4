"""What earlier scans found: one file per folder of pictures, `<cache_dir>/scan/<folder>.tsv`.

It is a memory, not the truth: lost, damaged or out of date, it costs reading the pictures again.
The first line holds a checksum of the others, and which folder they are of. Each of those is a
picture, in the order of their names: the name in JSON, a tab, and what a scan saw, in numbers and a
hash. So it is kept as the bytes that it is, and searched by bisection: as objects, pictures would
take five times the room.

What a scan finds is put beside it while the scan goes on, in parts of the same form called
`<folder>.<hash>.part.tsv`, for a scan may be killed; the next memory that is saved takes them in.
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
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Final

from anima_pipe.errors import OutputError
from anima_pipe.files import write_atomically
from anima_pipe.plain_text import parsed_json
from anima_pipe.stamps import Stamp, stamp_of

SCAN_VERSION: Final = 3
"""Raised when a picture comes to be read otherwise, or this file: all are then read again."""

FACTS_OF_CONTENT: Final = 3
"""The first ones of a stamp, which renaming leaves alone; it changes the inode's date."""


def stamp_if_there(path: Path) -> Stamp | None:
    """Return a file's stamp; None if there is no such file, which reading it will say."""
    with contextlib.suppress(OSError):
        return stamp_of(path)
    return None


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
        *stamp, width, height, content = facts.decode().split(" ")
        return cls(stamp=Stamp(*map(int, stamp)), size=(int(width), int(height)), content=content)


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
        self._identity = _identity(folder)
        self._content, self._parts = self._read()
        self._starts = array("Q", _starts(self._content))
        self._by_stamp: array[int] | None = None
        self._news = bytearray()
        # Bytes of the news that are in parts.
        self._in_parts = 0

    def recall(self, name: str, stamp: Stamp | None) -> Seen | None:
        """Return what an earlier scan found, if the file is still the same or only renamed."""
        known = self._known(name)
        if known is None and stamp and (other := self._renamed(stamp)):
            renamed = replace(other, stamp=stamp)
            self.note(name, renamed)
            return renamed
        return known if known and known.stamp == stamp else None

    def note(self, name: str, seen: Seen) -> None:
        """Remember a picture; several threads may do so."""
        if self._known(name) != seen:
            self._news.extend(seen.line(name))

    def checkpoint(self) -> None:
        """Write down what is new since the last time; see the module."""
        news = bytes(self._news[self._in_parts :])
        if news:
            name = hashlib.blake2b(news, digest_size=8).hexdigest()
            part = self._file.with_name(f"{self._file.stem}.{name}.part.tsv")
            if self._write(part, b"".join(sorted(news.splitlines(keepends=True)))):
                self._parts.append(part)
                self._in_parts += len(news)

    def save(self) -> None:
        """Write it down if there is anything new, without pictures that are gone.

        Of two processes that do so at once, either one's memory is good.
        """
        if not self._news and not self._parts:
            return
        if self._write(self._file, b"".join(self._lines_to_keep())):
            for part in self._parts:
                with contextlib.suppress(OSError):
                    part.unlink()
            self._parts = []

    def _read(self) -> tuple[bytes, list[Path]]:
        """Return the memory, what killed scans found in it, and the files that they left."""
        whole = _read_content(self._file)
        parts = sorted(self._file.parent.glob(f"{self._file.stem}.*.part.tsv"))
        contents = [whole, *map(_read_content, parts)] if parts else []
        if not any(contents[1:]):
            return whole, parts
        lines = [line for content in contents for line in _lines(content)]
        is_here = all(_is_of(content, self._identity) for content in contents if content)
        body = b"".join(_newest(lines))
        return b"%b%b\n%b" % (_head(body), self._identity if is_here else b"", body), parts

    def _write(self, file: Path, body: bytes) -> bool:
        """Write lines to a file; tell whether that could be done."""
        # A cache on a read-only disk can be trained from: it only takes longer to look again.
        with contextlib.suppress(OutputError):
            write_atomically(file, b"%b%b\n%b" % (_head(body), self._identity, body))
            return True
        return False

    def _known(self, name: str) -> Seen | None:
        start = self._search(self._starts, _written(name), _name_at)
        return None if start is None else self._seen_at(start)

    def _renamed(self, stamp: Stamp) -> Seen | None:
        """Return the picture that had a file's bytes, date and inode under a name that is gone."""
        if self._by_stamp is None:  # only now: mostly nothing is renamed
            # Another folder in the same place, of another disk, may have the same inodes.
            starts = self._starts if _is_of(self._content, self._identity) else ()
            self._by_stamp = array("Q", sorted(starts, key=partial(_stamp_at, self._content)))
        start = self._search(self._by_stamp, _joined(stamp[:FACTS_OF_CONTENT]), _stamp_at)
        if start is None:
            return None
        former = self._folder / parsed_json(_name_at(self._content, start))
        return None if stamp_if_there(former) else self._seen_at(start)

    def _seen_at(self, start: int) -> Seen:
        facts = self._content.index(b"\t", start) + 1
        return Seen.parse(self._content[facts : self._content.index(b"\n", facts)])

    def _search(
        self, starts: Sequence[int], wanted: bytes, part_at: Callable[[bytes, int], bytes]
    ) -> int | None:
        """Return the start of the line of which a part is `wanted`, in lines sorted by it."""
        content = self._content
        place = bisect_left(starts, wanted, key=lambda start: part_at(content, start))
        if place == len(starts) or part_at(content, starts[place]) != wanted:
            return None
        return starts[place]

    def _lines_to_keep(self) -> Iterator[bytes]:
        """Yield the newest line of each picture that is there, in the order of their names."""
        lines = [*_lines(self._content), *bytes(self._news).splitlines(keepends=True)]
        for line in _newest(lines):
            if stamp_if_there(self._folder / parsed_json(_name(line))):
                yield line


def _lines(content: bytes) -> list[bytes]:
    """Return the line of each picture in a file."""
    _, *lines = content.splitlines(keepends=True) or [b""]
    return lines


def _newest(lines: list[bytes]) -> Iterator[bytes]:
    """Yield the last line of each picture, in the order of their names."""
    lines.sort(key=_name)  # stable: of two lines of a picture the newer stays behind
    for _, of_one in groupby(lines, key=_name):
        *_, newest = of_one
        yield newest


def _is_of(content: bytes, identity: bytes) -> bool:
    """Tell whether a file says that it is of a folder."""
    head, _, _ = content.partition(b"\n")
    return head.endswith(identity)


def _read_content(file: Path) -> bytes:
    """Return the whole file: nothing if the memory is missing or damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return b""
    with memoryview(content) as whole:
        body = content.find(b"\n") + 1
        return content if bytes(whole[:body]).startswith(_head(whole[body:])) else b""


def _head(body: bytes | memoryview) -> bytes:
    """Return how the first line begins; the folder's identity stands behind it."""
    return f"anima-pipe scan {SCAN_VERSION}, crc32 {zlib.crc32(body):08x}".encode()


def _identity(folder: Path) -> bytes:
    """Return what tells a folder from another one in its place."""
    with contextlib.suppress(OSError):
        status = folder.stat()
        return b", folder %d %d" % (status.st_dev, status.st_ino)
    return b""


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
    """Return the part of a line's stamp that a picture keeps when it is renamed."""
    facts = lines.index(b"\t", start) + 1
    end = facts
    for _ in range(FACTS_OF_CONTENT):
        end = lines.index(b" ", end) + 1
    return lines[facts : end - 1]
