"""Learning-rate schedules against the functions of transformers, diffusers and torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import diffusers.optimization
import pytest
import torch
from commands import anima_pipe, assert_one_error
from torch.optim.lr_scheduler import LRScheduler, StepLR
from transformers import optimization

from anima_pipe.errors import ConfigError
from anima_pipe.kohya.resolve import resolve
from anima_pipe.kohya.table import optimizing as optimizing_table
from anima_pipe.optimizing.schedules import SCHEDULES, ScheduleConfig, create_schedule

STEPS = 40

FUNCTIONS: dict[str, tuple[ScheduleConfig, Callable[..., LRScheduler], dict[str, object]]] = {
    "constant": (
        ScheduleConfig(lr_scheduler="constant"),
        optimization.get_constant_schedule,
        {},
    ),
    "warmup": (
        # 11.6 steps: Kohya leaves the rest out.
        ScheduleConfig(lr_scheduler="constant_with_warmup", lr_warmup_steps=0.29),
        optimization.get_constant_schedule_with_warmup,
        {"num_warmup_steps": 11},
    ),
    "linear": (
        ScheduleConfig(lr_scheduler="linear", lr_warmup_steps=5),
        optimization.get_linear_schedule_with_warmup,
        {"num_warmup_steps": 5, "num_training_steps": STEPS},
    ),
    "cosine": (
        ScheduleConfig(lr_scheduler="cosine", lr_warmup_steps=5),
        optimization.get_cosine_schedule_with_warmup,
        {"num_warmup_steps": 5, "num_training_steps": STEPS},
    ),
    "restarts": (
        ScheduleConfig(
            lr_scheduler="cosine_with_restarts", lr_warmup_steps=5, lr_scheduler_num_cycles=3
        ),
        optimization.get_cosine_with_hard_restarts_schedule_with_warmup,
        {"num_warmup_steps": 5, "num_training_steps": STEPS, "num_cycles": 3},
    ),
    "floor": (
        ScheduleConfig(
            lr_scheduler="cosine_with_min_lr",
            lr_warmup_steps=5,
            lr_scheduler_num_cycles=3,
            lr_scheduler_min_lr_ratio=0.1,
        ),
        optimization.get_cosine_with_min_lr_schedule_with_warmup,
        {
            "num_warmup_steps": 5,
            "num_training_steps": STEPS,
            "num_cycles": 1.5,
            "min_lr_rate": 0.1,
        },
    ),
    "warm floor": (
        ScheduleConfig(
            lr_scheduler="cosine_warmup_with_min_lr",
            lr_warmup_steps=5,
            lr_scheduler_min_lr_ratio=0.1,
            lr_scheduler_args={"warmup_lr_rate": 0.3},
        ),
        optimization.get_cosine_with_min_lr_schedule_with_warmup_lr_rate,
        {
            "num_warmup_steps": 5,
            "num_training_steps": STEPS,
            "min_lr_rate": 0.1,
            "warmup_lr_rate": 0.3,
        },
    ),
    "polynomial": (
        ScheduleConfig(
            lr_scheduler="polynomial", lr_scheduler_power=2.5, lr_scheduler_args={"lr_end": 1e-5}
        ),
        optimization.get_polynomial_decay_schedule_with_warmup,
        {"num_warmup_steps": 0, "num_training_steps": STEPS, "power": 2.5, "lr_end": 1e-5},
    ),
    "root": (
        ScheduleConfig(lr_scheduler="inverse_sqrt", lr_warmup_steps=5, lr_scheduler_timescale=7),
        optimization.get_inverse_sqrt_schedule,
        {"num_warmup_steps": 5, "timescale": 7},
    ),
    "stable": (
        ScheduleConfig(
            lr_scheduler="warmup_stable_decay",
            lr_warmup_steps=5,
            lr_decay_steps=0.25,
            lr_scheduler_min_lr_ratio=0.2,
        ),
        optimization.get_wsd_schedule,
        {
            "num_warmup_steps": 5,
            "num_decay_steps": 10,
            "num_stable_steps": 25,
            "min_lr_ratio": 0.2,
        },
    ),
    "stable, linear": (
        ScheduleConfig(
            lr_scheduler="warmup_stable_decay",
            lr_warmup_steps=5,
            lr_decay_steps=8,
            lr_scheduler_args={"decay_type": "linear"},
        ),
        optimization.get_wsd_schedule,
        {
            "num_warmup_steps": 5,
            "num_decay_steps": 8,
            "num_training_steps": STEPS,
            "decay_type": "linear",
        },
    ),
    "pieces": (
        ScheduleConfig(
            lr_scheduler="piecewise_constant",
            lr_scheduler_args={"step_rules": "1:10,0.1:20,0.01:30,0.005"},
        ),
        diffusers.optimization.get_piecewise_constant_schedule,
        {"step_rules": "1:10,0.1:20,0.01:30,0.005"},
    ),
    "class": (
        ScheduleConfig(
            lr_scheduler_type="StepLR", lr_scheduler_args={"step_size": 7, "gamma": 0.5}
        ),
        StepLR,
        {"step_size": 7, "gamma": 0.5},
    ),
    "class by full path": (
        ScheduleConfig(
            lr_scheduler_type="torch.optim.lr_scheduler.CosineAnnealingLR",
            lr_scheduler_args={"T_max": 13},
        ),
        torch.optim.lr_scheduler.CosineAnnealingLR,
        {"T_max": 13},
    ),
}


def optimizer() -> torch.optim.Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1e-3, 2e-4)]
    return torch.optim.SGD(groups)


def rates(made_for: torch.optim.Optimizer, schedule: LRScheduler) -> list[list[float]]:
    found: list[list[float]] = []
    for _ in range(STEPS):
        found.append([group["lr"] for group in made_for.param_groups])
        made_for.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("config", "function", "arguments"), FUNCTIONS.values(), ids=FUNCTIONS.keys()
)
def test_a_schedule_is_that_of_the_library_it_is_of(config, function, arguments):
    ours, theirs = optimizer(), optimizer()
    found = rates(ours, create_schedule(ours, config, STEPS))
    assert found == rates(theirs, function(theirs, **arguments))


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (
            {"lr_scheduler": "piecewise_constant"},
            "do not fit piecewise_constant: step_rules is missing",
        ),
        (
            {"lr_scheduler": "piecewise_constant", "lr_scheduler_args": {"step_rules": "1:2:3"}},
            "do not fit .*'1:2:3', which is not FACTOR:STEP",
        ),
        (
            {"lr_scheduler": "cosine", "lr_scheduler_args": {"cycles": 2}},
            "do not fit cosine.* no argument cycles",
        ),
        ({"lr_scheduler": "cosine", "lr_scheduler_args": {"cycles": 2}}, "did you mean num_cycles"),
        (
            {"lr_scheduler": "warmup_stable_decay", "lr_warmup_steps": 30, "lr_decay_steps": 20},
            "more than the run's 40",
        ),
        ({"lr_scheduler_type": "StepLR"}, "do not fit lr_scheduler_type StepLR"),
        ({"lr_scheduler_type": "NoSuchLR"}, "lr_scheduler_type NoSuchLR.* has no class NoSuchLR"),
        ({"lr_scheduler_type": "CosineAnealingLR"}, "did you mean CosineAnnealingLR"),
        ({"lr_scheduler_type": "no_such_package.Best"}, "no_such_package"),
        ({"lr_scheduler_type": "ReduceLROnPlateau"}, "follows a validation loss"),
        ({"lr_scheduler": "adafactor"}, "goes with an Adafactor that finds its own steps"),
        ({"lr_scheduler": "greedy"}, "unsupported lr_scheduler 'greedy'"),
        ({"lr_scheduler": "cosin"}, "did you mean cosine"),
    ],
)
def test_what_does_not_fit_a_schedule_is_named(config, complaint):
    with pytest.raises(ConfigError, match=complaint):
        create_schedule(optimizer(), ScheduleConfig(**config), STEPS)


def test_only_schedules_that_end_follow_the_length_of_the_run():
    follow = {name for name, (config, _, _) in FUNCTIONS.items() if config.follows_length}
    assert FUNCTIONS.keys() - follow == {
        "constant",
        "root",
        "pieces",
        "class",
        "class by full path",
    }


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"lr_scheduler": "warmup_stable_decay", "lr_decay_steps": 0.5},
            [1, 1, 1, 1, 0.75, 0.25],
        ),
        (
            {"lr_scheduler": "inverse_sqrt", "lr_scheduler_timescale": 2},
            [1, 0.8165, 0.7071, 0.6325, 0.5774, 0.5345],
        ),
        (
            {"lr_scheduler": "piecewise_constant", "lr_scheduler_args": ["step_rules=1:2,0.5"]},
            [1, 1, 0.5, 0.5, 0.5, 0.5],
        ),
        (
            {"lr_scheduler_type": "StepLR", "lr_scheduler_args": ["step_size=2", "gamma=0.5"]},
            [1, 1, 0.5, 0.5, 0.25, 0.25],
        ),
        (
            {"lr_scheduler": "constant_with_warmup", "lr_warmup_steps": 4},
            [0, 0.25, 0.5, 0.75, 1, 1],
        ),
    ],
)
def test_the_options_reach_the_schedule(
    values: dict[str, object], expected: list[float], cached: dict[str, object], tmp_path: Path
):
    given = {"learning_rate": 1e-3, "max_train_steps": 6, "log_with": "tensorboard"} | values
    logs = tmp_path / "logs"
    anima_pipe("train", output_dir=tmp_path, logging_dir=logs, **cached, **given).ok()
    (file,) = logs.glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    # What is logged with a step is the rate that it was taken with.
    assert [line["lr/linear"] / 1e-3 for line in lines] == pytest.approx(expected, abs=1e-3)


ADAFACTOR = {"optimizer_type": "adafactor", "lr_scheduler": "adafactor"}


@pytest.mark.parametrize(
    "values",
    [ADAFACTOR, {"optimizer_type": "Adafactor", "optimizer_args": ["relative_step=True"]}],
)
def test_adafactor_by_its_own_measure_shows_its_steps(
    values: dict[str, object], cached: dict[str, object], tmp_path: Path
):
    given = {"learning_rate": 0.25, "log_with": "tensorboard", "logging_dir": tmp_path / "logs"}
    ended = anima_pipe("train", output_dir=tmp_path, **cached, **given, **values).ok()
    (file,) = tmp_path.glob("logs/*/metrics.jsonl")
    last = json.loads(file.read_text().splitlines()[-1])
    rates = [value for name, value in last.items() if name.startswith("lr/")]
    # min(1e-2, 1 / sqrt(t)) times the weights' root mean square, which starts far below 1.
    assert rates
    assert all(1e-5 <= rate < 1e-2 for rate in rates)
    assert "learning_rate (command line) has no effect beside Adafactor" in ended.said


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"lr_scheduler": "adafactor"}, "set optimizer_type to Adafactor"),
        (ADAFACTOR | {"optimizer_args": ["relative_step=False"]}, "without relative_step=False"),
        (ADAFACTOR | {"lr_warmup_steps": 5}, "adafactor takes no warmup"),
    ],
)
def test_the_schedule_adafactor_is_that_of_adafactor_alone(
    values: dict[str, object], complaint: str, tmp_path: Path
):
    assert_one_error(anima_pipe("train", output_dir=tmp_path, **values), complaint)


def test_an_adafactor_that_keeps_to_the_rate_is_told_from_kohyas():
    (warning,) = resolve("train", {"optimizer_type": "Adafactor"}).warnings
    assert "Kohya's default lets Adafactor find its own steps" in warning
    quiet = {"optimizer_type": "Adafactor", "optimizer_args": ["relative_step=False"]}
    assert resolve("train", quiet).warnings == ()


def test_the_options_offer_every_learning_rate_schedule_that_there_is():
    assert optimizing_table.SCHEDULES == SCHEDULES
