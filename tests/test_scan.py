"""Looking at pictures again: only those that may have changed are read."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from picture_files import forget_inode_dates
from PIL import Image

from anima_pipe.errors import DataError
from anima_pipe.records import ImageFile
from anima_pipe.source.images import read_image_file
from anima_pipe.source.scan import READING_THREADS, scan_images

LONG_AGO = 1_000_000_000


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    return [draw(folder / f"{number}.png", (number * 40, 0, 0)) for number in range(4)]


def draw(path: Path, colour: tuple[int, int, int], seconds: float = LONG_AGO) -> Path:
    Image.new("RGB", (8, 6), colour).save(path, compress_level=0)
    os.utime(path, (seconds, seconds))
    return path


def scan(pictures: list[Path], cache: Path, *, rehash: bool = False) -> list[ImageFile]:
    found = list(scan_images(pictures, cache, rehash=rehash))
    assert all(isinstance(one, ImageFile) for one in found)
    return found


def put_other_bytes(path: Path) -> None:
    """Change a picture's bytes, but neither size, nor date, nor inode, as `exiftool -P` does."""
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    status = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The pictures that were read, as they are."""
    paths: list[Path] = []

    def noting(path: Path) -> ImageFile:
        paths.append(path)
        return read_image_file(path)

    monkeypatch.setattr("anima_pipe.source.scan.read_image_file", noting)
    return paths


def test_a_second_scan_finds_the_same_and_reads_nothing(pictures, cache, read):
    before = scan(pictures, cache)
    assert sorted(read) == pictures
    read.clear()
    assert scan(pictures, cache) == before
    assert read == []


def test_rehash_reads_every_picture(pictures, cache, read, monkeypatch):
    forget_inode_dates(monkeypatch)
    before = scan(pictures, cache)
    put_other_bytes(pictures[2])
    assert scan(pictures, cache) == before
    read.clear()
    after = scan(pictures, cache, rehash=True)
    assert sorted(read) == pictures
    assert [a.path for a, b in zip(after, before, strict=True) if a != b] == [pictures[2]]
    assert scan(pictures, cache) == after


def resize(path: Path) -> None:
    status = path.stat()
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def touch(path: Path) -> None:
    put_other_bytes(path)
    os.utime(path, (LONG_AGO + 1, LONG_AGO + 1))


def swap_in(path: Path) -> None:
    draw(path.with_name("new.png"), (9, 9, 9)).replace(path)


@pytest.mark.parametrize("change", [resize, touch, swap_in, put_other_bytes])
def test_a_change_is_noticed_whatever_it_leaves_as_it_was(pictures, cache, change):
    before = scan(pictures, cache)
    change(pictures[1])
    after = scan(pictures, cache)
    assert [a.path for a, b in zip(after, before, strict=True) if a != b] == [pictures[1]]


def test_a_picture_written_just_now_is_read_again(pictures, cache):
    pictures[0].touch()
    before = scan(pictures, cache)
    put_other_bytes(pictures[0])
    assert scan(pictures, cache) != before


def test_a_renamed_picture_is_not_read_again(pictures, cache, read):
    before = scan(pictures, cache)
    renamed = pictures[0].rename(pictures[0].with_name("other.png"))
    read.clear()
    for _ in range(2):  # the second time by its own name
        assert scan([renamed], cache)[0].content == before[0].content
    assert read == []


def test_a_picture_is_not_taken_for_a_renamed_one_that_is_still_there(pictures, cache, read):
    scan(pictures, cache)
    linked = pictures[0].with_name("linked.png")
    linked.hardlink_to(pictures[0])
    read.clear()
    scan([linked], cache)
    assert read == [linked]


def test_another_folder_in_its_place_has_no_renamed_pictures(pictures, cache, read):
    scan(pictures, cache)
    folder = pictures[0].parent
    folder.rename(folder.with_name("before"))
    folder.mkdir()
    # What two disks have in common by chance, one disk has by moving.
    moved = Path(folder.with_name("before") / pictures[0].name).rename(folder / "moved.png")
    read.clear()
    scan([moved], cache)
    assert read == [moved]


def test_a_picture_dated_in_the_future_is_remembered(pictures, cache, read):
    os.utime(pictures[0], (time.time() + 9e6, time.time() + 9e6))
    with pytest.MonkeyPatch.context() as clock:
        clock.setattr(time, "time_ns", lambda: int((time.time() + 60) * 1e9))
        before = scan(pictures, cache)
    read.clear()
    assert scan(pictures, cache) == before
    assert read == []


def memory_of(cache: Path) -> Path:
    (memory,) = (cache / "scan").iterdir()
    return memory


def test_pictures_that_are_gone_are_forgotten(pictures, cache):
    scan(pictures, cache)
    gone = pictures.pop()
    gone.unlink()
    pictures.append(draw(gone.with_name("other.png"), (0, 0, 9)))
    scan(pictures, cache)
    assert gone.name not in memory_of(cache).read_text()
    assert "other.png" in memory_of(cache).read_text()


def test_a_scan_of_some_pictures_does_not_forget_the_others(pictures, cache, read):
    before = scan(pictures, cache)
    touch(pictures[0])
    scan(pictures[:2], cache)
    read.clear()
    assert scan(pictures, cache)[1:] == before[1:]
    assert read == []


def test_what_was_seen_before_an_interrupt_is_remembered(pictures, cache, read):
    looked = scan_images(pictures, cache)
    before = next(looked)
    looked.close()
    read.clear()
    assert next(scan_images(pictures[:1], cache)) == before
    assert read == []


def test_pictures_of_several_folders_may_come_in_any_order(pictures, cache, tmp_path, read):
    other = tmp_path / "other"
    other.mkdir()
    mixed = [p for path in pictures for p in (path, draw(other / path.name, (0, 0, 9)))]
    before = scan(mixed, cache)
    assert [image.path for image in before] == mixed
    read.clear()
    assert scan(mixed, cache) == before
    assert read == []


def damages(content: bytes) -> Iterator[bytes]:
    yield b""
    yield content[: len(content) // 2]
    yield content.replace(b"0", b"1")
    yield b"\xff" * len(content)
    yield content.partition(b"\n")[0] + b"\n[]"


@pytest.mark.parametrize("number", range(5))
def test_a_damaged_memory_costs_reading_again_and_no_more(pictures, cache, number):
    before = scan(pictures, cache)
    memory = memory_of(cache)
    whole = memory.read_bytes()
    memory.write_bytes(list(damages(whole))[number])
    assert scan(pictures, cache) == before
    assert memory.read_bytes() == whole


def test_a_memory_that_cannot_be_written_is_done_without(pictures, cache):
    cache.write_text("a file where the folder should be")
    assert scan(pictures, cache) == scan(pictures, cache)


def test_a_picture_that_cannot_be_read_is_looked_at_every_time(pictures, cache):
    pictures[0].write_bytes(b"no picture")
    os.utime(pictures[0], (LONG_AGO, LONG_AGO))
    for _ in range(2):
        found = list(scan_images(pictures, cache))
        assert isinstance(found[0], DataError)
        assert all(isinstance(one, ImageFile) for one in found[1:])
    pictures[0].unlink()
    assert isinstance(next(scan_images(pictures, cache)), DataError)


@pytest.fixture
def many(tmp_path: Path) -> list[Path]:
    """As many pictures as a scan is not done with at once."""
    folder = tmp_path / "many"
    folder.mkdir()
    content = draw(tmp_path / "one.png", (9, 9, 9)).read_bytes()
    paths = [folder / f"{number:05}.png" for number in range(5000)]
    for number, path in enumerate(paths):
        path.write_bytes(content + b"%d" % number)
        os.utime(path, (LONG_AGO, LONG_AGO))
    return paths


SCAN = """
import os, signal, sys
from pathlib import Path
from anima_pipe.runs.interrupts import terminations_raised
from anima_pipe.source.scan import scan_images
folder, cache, number, last = *map(Path, sys.argv[1:3]), *map(int, sys.argv[3:])
with terminations_raised():
    for place, image in enumerate(scan_images(sorted(folder.iterdir()), cache)):
        if place == last:
            os.kill(os.getpid(), number)
"""


def scan_until(number: signal.Signals, last: int, folder: Path, cache: Path) -> None:
    """Let another process scan pictures and send itself a signal after some of them."""
    command = [sys.executable, "-c", SCAN, folder, cache, str(int(number)), str(last)]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert number == signal.SIGTERM or ran.returncode == -number, ran.stderr


def test_a_scan_that_is_killed_remembers_all_but_the_last_few_thousand(many, cache, read):
    scan_until(signal.SIGKILL, 4600, many[0].parent, cache)
    after = scan(many, cache)
    assert len(read) <= 2000
    read.clear()
    assert scan(many, cache) == after == list(scan_images(many, None))
    assert len(read) == len(many)  # of the last, which remembers nothing
    assert [file.suffixes for file in (cache / "scan").iterdir()] == [[".tsv"]]


def test_a_scan_that_is_terminated_remembers_all_that_it_saw(many, cache, read):
    scan_until(signal.SIGTERM, 150, many[0].parent, cache)
    scan(many, cache)
    assert len(read) <= len(many) - 150


def test_parts_of_a_killed_scan_that_are_damaged_cost_reading_again(many, cache, read):
    scan_until(signal.SIGKILL, 4600, many[0].parent, cache)
    parts = list((cache / "scan").glob("*.part.tsv"))
    assert len(parts) >= 2
    parts[0].write_bytes(parts[0].read_bytes()[:-20])
    scan(many, cache)
    assert 1500 < len(read) < 5000


def test_whoever_stops_a_scan_waits_for_no_picture_that_was_not_begun(many, cache, monkeypatch):
    may_read, begun = threading.Event(), []

    def slow(path: Path) -> ImageFile:
        begun.append(path)
        if path > many[31]:
            may_read.wait(60)
        return read_image_file(path)

    monkeypatch.setattr("anima_pipe.source.scan.read_image_file", slow)
    found = scan_images(many, cache)
    next(found)
    threading.Timer(0.5, may_read.set).start()
    found.close()
    assert len(begun) <= 32 + READING_THREADS
