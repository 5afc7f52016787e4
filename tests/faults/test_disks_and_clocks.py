"""Disks that fill up, fail or become read-only amid the work, clocks that jump, workers that die.

What a command cannot do it says in one error; the next run comes to what an undisturbed one does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from disturbed import Stage, Undisturbed, is_done, left_in_progress
from faults import TRIES, Fault, Finished
from small_disks import resize, small_disk

EVERY = ["cache-latents", "encode-text", "train", "export-comfy"]
TEN_YEARS = 3650 * 24 * 3600.0
ROOM = 64 * 2**20

PICTURES = 6

pytestmark = pytest.mark.slow


def drawn(stage: Stage, number: int, subject: str) -> random.Random:
    return random.Random(f"{stage.name} {number} {subject}")


def assert_one_error_of_ours(ended: Finished, *words: str) -> None:
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said, ended.said
    assert "\n  Fix: " in ended.said
    assert [word for word in words if word not in ended.said] == [], ended.said


def assert_the_next_run_comes_to_the_same(stage: Stage, whole: Undisturbed, folder: Path) -> None:
    ended = stage.run(folder)
    assert is_done(ended), ended.said
    assert ended.code or left_in_progress(folder) == []
    assert stage.result(folder) == whole.result


@pytest.mark.parametrize("stage", EVERY, indirect=True)
def test_a_disk_that_is_full_at_some_byte_is_one_error_and_no_loss(stage, whole, tmp_path):
    for number in range(TRIES):
        size = drawn(stage, number, "disk").randrange(whole(stage).total_bytes)
        with small_disk(tmp_path / f"disk{number}", size) as folder:
            ended = stage.run(folder)
            if ended.code:
                assert_one_error_of_ours(ended, "room")
            resize(folder, ROOM)
            assert_the_next_run_comes_to_the_same(stage, whole(stage), folder)


@pytest.mark.parametrize("stage", EVERY, indirect=True)
def test_a_file_that_may_grow_no_further_at_some_byte_is_one_error_and_no_loss(
    stage, whole, tmp_path
):
    for number in range(TRIES):
        largest = whole(stage).extents[stage.name].largest_bytes
        limit = drawn(stage, number, "file").randrange(largest)
        folder = tmp_path / str(number)
        folder.mkdir()
        ended = stage.run(folder, Fault(kind="full", of=stage.name, bytes=limit))
        if ended.code:
            assert_one_error_of_ours(ended, "room")
        assert_the_next_run_comes_to_the_same(stage, whole(stage), folder)


@pytest.mark.parametrize("stage", ["cache-latents", "encode-text"], indirect=True)
def test_a_cache_that_becomes_read_only_amid_the_work_is_one_error_and_no_loss(
    stage, whole, tmp_path
):
    for number, folder, touches in moments(stage, whole(stage), tmp_path, "read-only"):
        fault = Fault(kind="read-only", of=stage.name, within=str(folder), touches=touches)
        ended = stage.run(folder, fault)
        if ended.code:
            assert_one_error_of_ours(ended, "Read-only file system")
        assert_the_next_run_comes_to_the_same(stage, whole(stage), folder)
        assert number < TRIES


def moments(
    stage: Stage, whole: Undisturbed, parent: Path, subject: str
) -> Iterator[tuple[int, Path, int]]:
    """Yield tries, each with a new folder and after how many touches of files there it fails."""
    for number in range(TRIES):
        folder = parent / str(number)
        folder.mkdir()
        touches = whole.extents[stage.name].touches
        yield number, folder, drawn(stage, number, subject).randrange(touches)


@pytest.mark.parametrize("stage", ["train"], indirect=True)
def test_a_training_goes_on_with_a_cache_that_becomes_read_only(stage, whole, cached, tmp_path):
    for number in range(TRIES):
        folder, within = tmp_path / str(number), str(cached["cache_dir"])
        touches = drawn(stage, number, "cache").randrange(20)
        stage.run(folder, Fault(kind="read-only", of="train", within=within, touches=touches)).ok()
        assert stage.result(folder) == whole(stage).result


@pytest.mark.parametrize("stage", ["train"], indirect=True)
def test_a_shard_that_cannot_be_read_amid_a_training_is_named_and_no_loss(
    stage, whole, cached, tmp_path
):
    for number in range(TRIES):
        folder, within = tmp_path / str(number), str(cached["cache_dir"])
        touches = drawn(stage, number, "shard").randrange(2)
        fault = Fault(kind="unreadable", of="train", within=within, part=".tar", touches=touches)
        ended = stage.run(folder, fault)
        assert_one_error_of_ours(ended, ".tar", "Input/output error")
        assert_the_next_run_comes_to_the_same(stage, whole(stage), folder)


@pytest.mark.parametrize("stage", ["cache-latents", "encode-text"], indirect=True)
def test_pictures_and_captions_that_cannot_be_read_for_once_are_named_and_no_loss(
    stage, whole, pictures, tmp_path
):
    for number in range(TRIES):
        folder = tmp_path / str(number)
        touches = drawn(stage, number, "picture").randrange(PICTURES)
        fault = Fault(kind="unreadable", within=str(pictures), touches=touches)
        ended = stage.run(folder, fault)
        assert "Traceback" not in ended.said, ended.said
        assert "Input/output error" in ended.said
        assert_the_next_run_comes_to_the_same(stage, whole(stage), folder)


@pytest.mark.parametrize("seconds", [TEN_YEARS, -TEN_YEARS])
@pytest.mark.parametrize("stage", ["cache-latents", "train"], indirect=True)
def test_a_clock_that_jumps_by_years_changes_nothing(stage, whole, tmp_path, seconds):
    for number in range(TRIES):
        folder = tmp_path / str(number)
        asked = drawn(stage, number, f"clock {seconds}").randrange(20)
        stage.run(folder, Fault(kind="clock", touches=asked, seconds=seconds)).ok()
        assert stage.result(folder) == whole(stage).result
        stage.run(folder)
        assert stage.result(folder) == whole(stage).result


@pytest.mark.parametrize("stage", ["cache-latents"], indirect=True)
def test_a_decoder_that_dies_at_some_picture_is_no_loss(stage, whole, pictures, tmp_path):
    for number in range(TRIES):
        folder = tmp_path / str(number)
        touches = drawn(stage, number, "worker").randrange(PICTURES)
        note = tmp_path / f"note{number}"
        note.mkdir()
        death = Fault(kind="die", of="worker", within=str(pictures), touches=touches)
        stage.run(folder, replace(death, once=str(note / "taken"), note=str(note))).ok()
        assert (note / "struck").exists()
        assert stage.result(folder) == whole(stage).result
