"""A run says when something goes wrong, and how long it will take."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from commands import Ended, anima_pipe, assert_one_error

from anima_pipe.errors import PipeError
from anima_pipe.hooks.alarms import AlarmConfig, LossAlarm, TimeLeft
from anima_pipe.progress import duration
from anima_pipe.records import Moment, StepResult

Cached = dict[str, object]


def moment(step: int, loss: float | None, seconds: float = 0.0) -> Moment:
    result = StepResult(loss=loss, grad_norm=1.0, learning_rates={}, samples=1, seconds=seconds)
    return Moment(step=step, epoch=1, ends_epoch=False, is_last=False, result=result)


def warnings_of(
    losses: list[float | None], config: AlarmConfig, caplog: pytest.LogCaptureFixture
) -> int:
    ended: list[PipeError] = []
    alarm = LossAlarm(config, ended.append)
    with caplog.at_level(logging.WARNING):
        for step, loss in enumerate(losses):
            if alarm.due(now := moment(step, loss)):
                alarm.at(now)
    assert not ended
    return sum("the loss rises" in message for message in caplog.messages)


@pytest.mark.parametrize(
    ("losses", "told"),
    [
        ([1.0] * 40, 0),
        ([1.0] * 30 + [50.0, 60.0] + [1.0] * 10, 0),
        ([1.0] * 30 + [4.0] * 10, 1),
        ([1.0] * 30 + [4.0] * 10 + [1.0] * 60 + [4.0] * 10, 2),
        ([1.0] * 30 + [None] * 10, 0),
        ([1.0] * 5 + [4.0] * 10, 0),
    ],
)
def test_a_loss_that_stays_high_is_told_once_and_a_single_step_never(
    losses: list[float | None], told: int, caplog: pytest.LogCaptureFixture
):
    assert warnings_of(losses, AlarmConfig(), caplog) == told


def train(cached: Cached, folder: Path, **values: object) -> Ended:
    return anima_pipe("train", output_dir=folder, **cached, **values)


def test_anima_monitor_loss_spike_ratio_is_the_rise_that_is_told(cached: Cached, tmp_path: Path):
    """A ratio so low that any loss is above it; with 0 none is."""
    low = train(cached, tmp_path, max_train_steps=25, anima_monitor_loss_spike_ratio=1e-6).ok()
    none = train(cached, tmp_path, max_train_steps=25, anima_monitor_loss_spike_ratio=0).ok()

    assert low.said.count("the loss rises") == 1
    assert low.said.count("time left") == 1
    assert "the loss rises" not in none.said


def test_anima_monitor_memory_warn_ratio_is_the_share_that_is_told(cached: Cached, tmp_path: Path):
    low = train(cached, tmp_path, anima_monitor_memory_warn_ratio=0).ok()
    high = train(cached, tmp_path, anima_monitor_memory_warn_ratio=1).ok()

    assert low.said.count("of the memory is in use") == 1
    assert "of the memory is in use" not in high.said


def test_anima_monitor_alert_policy_ends_the_run_or_warns(cached: Cached, tmp_path: Path):
    given = {"anima_monitor_memory_warn_ratio": 0, "max_train_steps": 4}
    ended = train(cached, tmp_path, **given, anima_monitor_alert_policy="raise")

    assert_one_error(ended, "step 1", "of the memory is in use", "anima_monitor_alert_policy")
    # What it ends is the step behind the one that it looked at.
    assert (tmp_path / "fox-step00000002-state").is_dir()
    assert not (tmp_path / "fox.safetensors").exists()
    assert "warning: step 1" in train(cached, tmp_path, **given).ok().said


def test_an_alarm_at_the_last_step_leaves_the_adapter_and_the_state(cached: Cached, tmp_path: Path):
    given = {"anima_monitor_memory_warn_ratio": 0, "max_train_steps": 1}
    ended = train(cached, tmp_path, **given, anima_monitor_alert_policy="raise")

    assert_one_error(ended, "step 1", "of the memory is in use")
    assert (tmp_path / "fox.safetensors").exists()
    assert (tmp_path / "fox-state").is_dir()


def test_the_time_left_is_told_once_from_the_steps_behind_the_first(
    caplog: pytest.LogCaptureFixture,
):
    hook = TimeLeft(104)
    with caplog.at_level(logging.INFO):
        for step, seconds in enumerate([60.0, 2.0, 2.0, 2.0, 9.0, 9.0], start=1):
            if hook.due(now := moment(step, 1.0, seconds)):
                hook.at(now)

    (told,) = [message for message in caplog.messages if "time left" in message]
    assert "3 min for 100 steps of 2 s" in told


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40 s"), (720, "12 min"), (11_100, "3 h 05 min")]
)
def test_times_read_as_people_say_them(seconds: float, text: str):
    assert duration(seconds) == text


def test_the_file_is_the_same_whatever_the_number_of_loader_workers(dataset: Path, tmp_path: Path):
    files = []
    for workers in (0, 2):
        folder = tmp_path / str(workers)
        given = {"dataset_config": dataset, "cache_dir": folder / "cache"}
        train(given, folder, max_data_loader_n_workers=workers).ok()
        files.append((folder / "fox.safetensors").read_bytes())

    assert files[0] == files[1]
