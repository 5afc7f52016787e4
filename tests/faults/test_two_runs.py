"""Two runs in one output folder: the second is refused, and told who the first one is."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from commands import (
    LAUNCH_TWO,
    MODEL,
    TRAINING,
    anima_pipe,
    assert_one_error,
    files_in,
    options,
    run_apart,
)
from disturbed import SAVING, afresh, all_stages, training
from faults import command, finished, killed, started

LONG = 100_000

pytestmark = pytest.mark.usefixtures("elsewhere")


def wait_for_file(process, folder: Path, pattern: str) -> None:
    while not list(folder.rglob(pattern)):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


@pytest.fixture
def running(cached, tmp_path):
    """A training into the test's folder, which goes on until it is ended."""
    given = {**cached, **SAVING, "max_train_steps": LONG, "save_last_n_steps": 1}
    process = started(command("train", **given, output_dir=tmp_path))
    wait_for_file(process, tmp_path, "*-state")
    yield process
    killed(process)


def test_a_second_training_under_a_name_is_refused_with_the_firsts_process_and_machine(
    cached, running, tmp_path
):
    refused = anima_pipe("train", **cached, output_dir=tmp_path)

    assert_one_error(
        refused, "another run writes", str(tmp_path / "fox"), f"process {running.pid} on "
    )
    assert socket.gethostname() in refused.said
    assert running.poll() is None
    # Under a name of its own it harms nobody.
    anima_pipe("train", **cached, output_dir=tmp_path, output_name="wolf").ok()
    assert (tmp_path / "wolf.safetensors").is_file()


def test_a_training_whose_process_was_killed_holds_its_folder_no_longer(cached, running, tmp_path):
    killed(running)
    assert [name for name in files_in(tmp_path) if name.endswith(".lease")]

    anima_pipe("train", **cached, output_dir=tmp_path).ok()

    assert [name for name in files_in(tmp_path) if name.endswith(".lease")] == []


def test_a_training_on_another_machine_is_respected_as_long_as_it_is_heard_of(
    cached, running, tmp_path
):
    (lease,) = tmp_path.glob(".*.lease")
    name, _, _, number, ending = lease.name.rsplit(".", 4)
    killed(running)
    elsewhere = lease.rename(lease.with_name(f"{name}.elsewhere.7.{number}.{ending}"))

    refused = anima_pipe("train", **cached, output_dir=tmp_path)
    assert_one_error(refused, "process 7 on elsewhere", "10 minutes after its last heartbeat")

    an_hour_ago = time.time() - 3600
    os.utime(elsewhere, (an_hour_ago, an_hour_ago))
    anima_pipe("train", **cached, output_dir=tmp_path).ok()


@pytest.mark.slow
def test_processes_that_are_launched_together_are_refused_together(cached, running, tmp_path):
    given = {**MODEL, **TRAINING, **cached, "device": "cpu", "output_dir": tmp_path}

    refused = run_apart(*LAUNCH_TWO, *options(**given))

    assert refused.code != 0
    assert f"another run writes {tmp_path / 'fox'}: process {running.pid} on " in refused.said
    assert running.poll() is None


def test_all_stages_are_run_once_at_a_time_in_a_folder(dataset, tmp_path):
    folder = tmp_path / "out"
    program = afresh(all_stages(dataset, tmp_path / "train_args.toml").program(folder))
    first = started(program)
    wait_for_file(first, folder, "*.lease")

    second = finished(started([*program, "--output_name", "wolf"]))

    assert second.code == 2
    assert f"another run writes {folder}: process {first.pid} on " in second.said
    killed(first)


@pytest.mark.slow
def test_of_runs_that_start_at_the_same_time_one_at_most_writes(cached, tmp_path):
    program = afresh(training(cached).program(tmp_path))
    both = [started(program) for _ in range(2)]
    ended = [finished(process) for process in both]

    assert {each.code for each in ended} <= {0, 2}
    for each in ended:
        assert each.code == 0 or "another run writes" in each.said, each.said
