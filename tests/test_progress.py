"""A bar in a terminal, a line now and then in a file, and the loss that they show."""

from __future__ import annotations

import io
import json
import math
import random
import re
import sys
from pathlib import Path

import pytest
from commands import anima_pipe

from anima_pipe.hooks.smoothing import EpochLoss
from anima_pipe.progress import ProgressLines, progress_bar

Cached = dict[str, object]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines_of(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("step ")]


def test_a_run_of_many_steps_writes_a_line_now_and_then_into_a_file(cached: Cached, tmp_path: Path):
    ended = anima_pipe("train", output_dir=tmp_path, max_train_steps=60, **cached).ok()
    lines = lines_of(ended.said)
    assert 1 <= len(lines) < 20
    assert re.fullmatch(r"step 60/60 \(100%\), \S+ s each, epoch 15, loss \d+\.\d{4}", lines[-1])
    assert "\r" not in ended.said


def test_the_line_of_a_resumed_run_begins_where_the_run_stands(cached: Cached, tmp_path: Path):
    given = {"output_dir": tmp_path, "save_state": True, **cached}
    anima_pipe("train", **given, max_train_steps=3).ok()
    resumed = anima_pipe("train", **given, max_train_steps=5, resume="latest").ok()
    assert lines_of(resumed.said)[-1].startswith("step 5/5 (100%)")


def test_what_is_left_is_reckoned_by_the_steps_of_this_run(capsys: pytest.CaptureFixture[str]):
    seconds = 0.0
    lines = ProgressLines(60, "step", done=20, clock=lambda: seconds)
    for number in range(1, 11):
        seconds += 15
        lines.tell(loss=f"0.{number}")
        lines.update()
    seconds += 1
    lines.close()
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "step 22/60 (37%), 15 s each, 10 min left, loss 0.2"
    assert told[-1] == "step 30/60 (50%), 15 s each, 8 min left, loss 0.10"
    # One in thirty seconds, and where it closes nothing new.
    assert len(told) == 5


def test_a_bar_in_a_terminal_begins_where_the_run_stands(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(40, "step", done=10) as bar:
        for _ in range(30):
            bar.tell(loss="0.5")
            bar.update()
    shown = terminal.getvalue().split("\r")
    assert "10/40" in next(filter(None, shown))
    assert "40/40" in shown[-1]
    assert "loss=0.5" in shown[-1]


def test_the_loss_shown_is_the_mean_over_an_epochs_batches_as_kohya_reckons_it(
    cached: Cached, tmp_path: Path
):
    # Four batches of two in an epoch; of three for a step, its second step has one.
    given = {"gradient_accumulation_steps": 3, "max_train_steps": 7, **cached}
    run = {"output_dir": tmp_path, "logging_dir": tmp_path / "logs", "log_with": "tensorboard"}
    ended = anima_pipe("train", **given, **run).ok()
    (log,) = (tmp_path / "logs").iterdir()
    steps = [json.loads(line) for line in (log / "metrics.jsonl").read_text().splitlines()]
    # Kohya keeps a loss for each batch of an epoch, and puts the next epoch's in its place.
    kept: dict[int, float] = {}
    for number, step in enumerate(steps):
        for batch in [3] if number % 2 else [0, 1, 2]:
            kept[batch] = step["loss/current"]
        expected = sum(kept.values()) / len(kept)
        assert step["loss/epoch_average"] == pytest.approx(expected, rel=1e-6)
    assert lines_of(ended.said)[-1].endswith(f"loss {expected:.4f}")


def test_a_mean_over_many_steps_does_not_drift_and_goes_on_from_a_state():
    rng = random.Random(0)
    losses = [10 ** rng.uniform(-3, 12) for _ in range(1000)] + [rng.random() for _ in range(70)]
    whole, first, second = EpochLoss(7), EpochLoss(7), EpochLoss(7)
    for loss in losses:
        whole.add(loss, 2)
    for loss in losses[:500]:
        first.add(loss, 2)
    second.load_state_dict(first.state_dict())
    for loss in losses[500:]:
        second.add(loss, 2)
    assert second.value == whole.value == pytest.approx(math.fsum(losses[-7:]) / 7, rel=1e-9)


def test_a_loss_that_is_no_number_leaves_the_mean_alone():
    mean = EpochLoss(2)
    for loss in (1.0, math.nan, 3.0, math.inf, 5.0):
        mean.add(loss, 1)
    assert mean.value == 4.0


@pytest.mark.parametrize("windows", [2, 5])
def test_epochs_of_another_length_begin_with_the_latest_losses(windows: int):
    before = EpochLoss(3)
    for loss in (1.0, 2.0, 3.0, 4.0):
        before.add(loss, 1)
    after = EpochLoss(windows)
    after.load_state_dict(before.state_dict())
    assert after.value == {2: 3.5, 5: 3.0}[windows]
