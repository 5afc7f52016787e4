"""Killed, interrupted and resumed runs of the real command."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import MODEL, ROOT, TRAINING, anima_pipe, options

STEPS = 8


def arguments(cached: dict[str, object], folder: Path, **values: object) -> dict[str, object]:
    return {
        **cached,
        "output_dir": folder,
        "max_train_steps": STEPS,
        "network_dropout": 0.1,
        "save_state": True,
        "save_every_n_steps": 2,
        **values,
    }


def started(given: dict[str, object]) -> subprocess.Popen[str]:
    """Start `anima-pipe train` in a process of its own."""
    given = {**MODEL, **TRAINING, "device": "cpu", "max_data_loader_n_workers": 0, **given}
    return subprocess.Popen(
        [sys.executable, "-m", "anima_pipe.cli", "train", *options(**given)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def whole(cached: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The adapter of a run in one go."""
    folder = tmp_path_factory.mktemp("whole")
    ended = anima_pipe("train", **arguments(cached, folder)).ok()
    assert "state saved" in ended.said
    return (folder / "fox.safetensors").read_bytes()


def test_a_killed_run_resumes_to_the_bytes_of_one_in_one_go(cached, whole, tmp_path):
    process = started(arguments(cached, tmp_path))
    wait_for(tmp_path / "fox-step00000002-state", process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "fox.safetensors").exists()

    given = arguments(cached, tmp_path, resume="latest")
    resumed = anima_pipe("train", tmp_path / "summary.json", **given).ok()
    assert "resumed" in resumed.said
    assert resumed.summary is not None
    assert resumed.summary["steps"] == STEPS
    assert (tmp_path / "fox.safetensors").read_bytes() == whole


def test_a_terminated_run_finishes_its_step_and_says_how_to_go_on(cached, whole, tmp_path):
    process = started(arguments(cached, tmp_path, save_state=False, save_every_n_steps=1))
    wait_for(tmp_path / "fox-step00000001.safetensors", process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate()
    assert process.returncode == 0, said
    states = [path for path in tmp_path.iterdir() if path.name.endswith("-state")]
    assert len(states) == 1
    assert f"--resume {states[0]}" in said

    given = arguments(cached, tmp_path, save_state=False, resume=states[0])
    anima_pipe("train", **given).ok()
    # save_every_n_steps is not part of the mathematics, and may differ.
    assert (tmp_path / "fox.safetensors").read_bytes() == whole


def test_a_state_of_other_options_is_refused_by_their_names(cached, whole, tmp_path):
    anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2)).ok()
    given = arguments(cached, tmp_path, resume="latest", learning_rate=1e-3)
    refused = anima_pipe("train", **given)
    assert refused.code == 2
    assert "learning_rate: 0.002 then, 0.001 now" in refused.said
    assert "--resume_allow learning_rate" in refused.said
    allowed = anima_pipe("train", **given, resume_allow=["learning_rate"]).ok()
    assert "resumed" in allowed.said
    assert (tmp_path / "fox.safetensors").read_bytes() != whole


def test_a_run_that_is_done_has_nothing_to_resume(cached, tmp_path):
    anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2)).ok()
    done = anima_pipe("train", **arguments(cached, tmp_path, max_train_steps=2, resume="latest"))
    assert done.code == 2
    assert "raise max_train_steps" in done.said


def test_an_average_is_saved_beside_the_adapter_and_survives_a_resumption(cached, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    anima_pipe("train", **arguments(cached, whole, ema_decay=0.9)).ok()
    anima_pipe("train", **arguments(cached, parts, ema_decay=0.9, save_every_n_steps=3)).ok()
    shutil.rmtree(parts / "fox-state")
    (parts / "fox-ema.safetensors").unlink()
    anima_pipe("train", **arguments(cached, parts, ema_decay=0.9, resume="latest")).ok()
    average = (whole / "fox-ema.safetensors").read_bytes()
    assert average != (whole / "fox.safetensors").read_bytes()
    assert (parts / "fox-ema.safetensors").read_bytes() == average
