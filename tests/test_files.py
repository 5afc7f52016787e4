"""Files are whole under their final names, or not there."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from anima_pipe.errors import OutputError
from anima_pipe.files import make_folder, published, sync_folder, write_atomically


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_written_file_is_there_and_nothing_else_is(tmp_path):
    write_atomically(tmp_path / "new" / "file.bin", b"content")
    assert (tmp_path / "new" / "file.bin").read_bytes() == b"content"
    assert names_in(tmp_path / "new") == ["file.bin"]


def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    target = tmp_path / "file.bin"
    target.write_bytes(b"old")

    def write_and_fail():
        with published(target) as temporary:
            temporary.write_bytes(b"half of the n")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == ["file.bin"]


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from anima_pipe.files import write_atomically
number = 0
while True:
    write_atomically(Path(sys.argv[1]), bytes([65 + number % 26]) * 2_000_000)
    number += 1
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path):
    target = tmp_path / "file.bin"
    for writes in (1, 2, 5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, str(target)], stdout=subprocess.PIPE
        )
        assert writer.stdout
        for _ in range(writes):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        content = target.read_bytes()
        assert len(content) == 2_000_000
        assert len(set(content)) == 1


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path):
    script = (
        "import signal, sys; from pathlib import Path;"
        "from anima_pipe.files import write_atomically;"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "write_atomically(Path(sys.argv[1]), bytes(1_000_000))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "file.bin")],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert "OutputError" in ended.stderr
    assert "File too large" in ended.stderr
    assert names_in(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file/results"):
        make_folder(tmp_path / "file" / "results")


def test_a_folder_is_left_as_empty_as_it_was(tmp_path):
    make_folder(tmp_path / "a" / "b")
    assert names_in(tmp_path / "a" / "b") == []


def refusing_folders(number):
    """Return an fsync of a filesystem that answers so for folders."""
    flush = os.fsync

    def refuse(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        flush(handle)

    return refuse


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EBADF])
def test_a_filesystem_that_cannot_flush_folders_takes_files(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refusing_folders(number))
    write_atomically(tmp_path / "file.bin", b"content")
    assert (tmp_path / "file.bin").read_bytes() == b"content"


def test_a_disk_that_fails_to_flush_a_folder_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refusing_folders(errno.EIO))
    with pytest.raises(OutputError, match="Input/output error"):
        write_atomically(tmp_path / "file.bin", b"content")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_a_real_folder_that_cannot_be_flushed_counts_as_flushed():
    handle = os.open("/proc", os.O_RDONLY)
    with pytest.raises(OSError, match="Invalid argument"):
        os.fsync(handle)
    os.close(handle)
    sync_folder(Path("/proc"))
