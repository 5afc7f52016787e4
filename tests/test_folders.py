"""Folders are whole under their final names, whatever ends their writer, or given back to them."""

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from worker_tasks import SOURCES

from anima_pipe.errors import OutputError
from anima_pipe.folders import published_folder, remove_folder, repair_folder, repair_folders

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGKILL")

EXCHANGES = sys.platform in ("linux", "darwin")


def publish(folder, content):
    with published_folder(folder) as unfinished:
        for name in ("one", "two"):
            (unfinished / name).write_text(content)


def content_of(folder):
    """Return what all files of a folder hold; it is the same, or the folder is not whole."""
    (content,) = {(folder / name).read_text() for name in ("one", "two")}
    return content


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


PUBLISH = """
import sys
from pathlib import Path
import faulty_disk
from anima_pipe.folders import published_folder

folder = Path(sys.argv[1])
with published_folder(folder) as unfinished:
    for name in ("one", "two"):
        (unfinished / name).write_text("new")
    {fault}
"""
"""The fault begins where all is written."""


def apart(folder, program):
    """Run a program on a folder in a process of its own; return its status and its errors."""
    ended = subprocess.run(
        [sys.executable, "-c", program, folder],
        env=os.environ | {"PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
    )
    return ended.returncode, ended.stderr


def test_a_folder_takes_the_place_of_another_and_nothing_else_is_left(tmp_path):
    for content in ("old", "new"):
        publish(tmp_path / "a" / "state", content)
        assert content_of(tmp_path / "a" / "state") == content
        assert names_in(tmp_path / "a") == ["state"]


def test_an_error_while_writing_leaves_the_old_folder(tmp_path):
    publish(tmp_path / "state", "old")

    def write_and_fail():
        with published_folder(tmp_path / "state") as unfinished:
            (unfinished / "one").write_text("half")
            raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError):
        write_and_fail()
    assert content_of(tmp_path / "state") == "old"
    assert names_in(tmp_path) == ["state"]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_kill_at_any_moment_leaves_one_whole_folder_that_is_found(tmp_path, in_one_step):
    found, hidden = [], 0
    for number in itertools.count():
        folder = tmp_path / str(number) / "state"
        publish(folder, "old")
        status, said = apart(folder, PUBLISH.format(fault=kill(number, in_one_step=in_one_step)))
        hidden += not folder.exists()
        repair_folders(folder.parent)
        found.append(content_of(folder))
        publish(folder, "later")
        assert names_in(folder.parent) == ["state"], number
        if status == 0:
            break
        assert status == -signal.SIGKILL, said
    assert found == sorted(found, reverse=True)  # old ones, then new ones
    assert set(found) == {"old", "new"}
    assert len(found) > 5
    # Where names are exchanged in one step, it is under its name at every moment.
    assert hidden == (0 if in_one_step and EXCHANGES else 1)


def kill(number, *, in_one_step):
    fault = f"faulty_disk.die_at({number})"
    return fault if in_one_step else f"faulty_disk.exchange_nothing(); {fault}"


@pytest.mark.parametrize("refused", [{0}, {1}])
def test_a_rename_that_is_refused_is_an_error_and_leaves_the_old_folder(tmp_path, refused):
    publish(tmp_path / "state", "old")
    fault = f"faulty_disk.exchange_nothing(); faulty_disk.fail_at('os.rename', {refused})"
    status, said = apart(tmp_path / "state", PUBLISH.format(fault=fault))
    assert status == 1
    assert f"OutputError: cannot write {tmp_path / 'state'}: Read-only file system" in said
    assert content_of(tmp_path / "state") == "old"
    assert names_in(tmp_path) == ["state"]


def test_what_cannot_even_be_given_back_is_named_and_repaired_later(tmp_path):
    publish(tmp_path / "state", "old")
    fault = "faulty_disk.exchange_nothing(); faulty_disk.fail_at('os.rename', {1, 2})"
    status, said = apart(tmp_path / "state", PUBLISH.format(fault=fault))
    assert status == 1
    (aside,) = tmp_path.iterdir()
    assert f"what was there lies in {aside}" in said
    repair_folder(tmp_path / "state")
    assert content_of(tmp_path / "state") == "old"
    assert names_in(tmp_path) == ["state"]


def test_a_folder_that_nothing_can_be_written_into_is_an_error_and_keeps_the_old_one(tmp_path):
    publish(tmp_path / "state", "old")
    refusing = "faulty_disk.fail_at('os.mkdir', {0})\nfolder = "
    program = PUBLISH.format(fault="pass").replace("folder = ", refusing)
    status, said = apart(tmp_path / "state", program)
    assert status == 1
    assert f"OutputError: cannot write {tmp_path / 'state'}: Read-only file system" in said
    assert content_of(tmp_path / "state") == "old"
    with pytest.raises(OutputError, match="/proc/state"):
        publish(Path("/proc/state"), "new")


def test_a_kill_while_a_folder_is_removed_leaves_it_whole_or_gone(tmp_path):
    outcomes = set()
    for number in itertools.count():
        folder = tmp_path / str(number) / "state"
        publish(folder, "old")
        program = (
            "import sys; from pathlib import Path; import faulty_disk;"
            "from anima_pipe.folders import remove_folder;"
            f"faulty_disk.die_at({number}); remove_folder(Path(sys.argv[1]))"
        )
        status, _ = apart(folder, program)
        repair_folders(folder.parent)
        outcomes.add(content_of(folder) if folder.exists() else "gone")
        if status == 0:
            break
    assert outcomes == {"old", "gone"}


def test_what_a_living_writer_has_is_left_alone(tmp_path):
    with published_folder(tmp_path / "first") as unfinished:
        (unfinished / "one").write_text("new")
        publish(tmp_path / "second", "other")
        assert (unfinished / "one").exists()
    assert names_in(tmp_path) == ["first", "second"]


def test_names_that_look_like_patterns_are_names(tmp_path):
    folder = tmp_path / "[ab]*"
    publish(folder, "old")
    fault = "faulty_disk.exchange_nothing(); faulty_disk.fail_at('os.rename', {1, 2})"
    apart(folder, PUBLISH.format(fault=fault))
    repair_folder(tmp_path / "a")
    repair_folder(folder)
    assert names_in(tmp_path) == ["[ab]*"]


def test_there_is_nothing_to_repair_where_there_is_nothing(tmp_path):
    repair_folder(tmp_path / "none" / "state")
    repair_folders(tmp_path / "none")
    with pytest.raises(OutputError, match="none"):
        remove_folder(tmp_path / "none")
    assert names_in(tmp_path) == []
