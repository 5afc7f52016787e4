"""Whether an optimizer and a schedule can be made as they are configured, found out in no time."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Final

import torch
from torch.optim import Optimizer

from anima_pipe.errors import ConfigError
from anima_pipe.optimizing.optimizers import (
    OptimizerConfig,
    ParameterGroup,
    create_optimizer,
    find_optimizer,
)
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule

LONG_RUN: Final = 10**9
"""Optimizer steps of a run that is long enough for all parts of any schedule."""


def check_optimizer(config: OptimizerConfig, learning_rate: float) -> Optimizer:
    """Return the optimizer, of a tensor that nobody trains.

    Raises:
        ConfigError: There is none such, or its arguments do not fit it.
    """
    nothing = torch.nn.Parameter(torch.zeros(2, 2))
    group = ParameterGroup(name="linear", parameters=[nothing], learning_rate=learning_rate)
    # Prodigy prints what kind of decay it has.
    with redirect_stdout(StringIO()):
        return create_optimizer([group], config)


def check_schedule(config: ScheduleConfig, optimizer: Optimizer) -> None:
    """Check that a schedule fits an optimizer.

    Raises:
        ConfigError: It does not, or its arguments do not fit it.
    """
    create_schedule(optimizer, config, LONG_RUN)


def refuse_two_averages(ema_decay: float | None, optimizer_type: str) -> None:
    """Check that weights are not averaged which the optimizer averages by itself.

    Args:
        ema_decay: Of the average; None: there is none.
        optimizer_type: One of Kohya's names, or package.module.Class.

    Raises:
        ConfigError: They would be, or there is no such optimizer.
    """
    if ema_decay is not None and find_optimizer(optimizer_type).averages:
        raise ConfigError(
            f"ema_decay beside {optimizer_type}, which averages by itself",
            "remove ema_decay; what is saved is the optimizer's average",
        )


def refuse_schedule_beside_average(optimizer_type: str, schedule: ScheduleConfig) -> None:
    """Check that the rate stays as it is under an optimizer that averages the weights instead.

    Args:
        optimizer_type: One of Kohya's names, or package.module.Class.
        schedule: Of its rate.

    Raises:
        ConfigError: It does not, or there is no such optimizer.
    """
    moves = schedule.lr_scheduler_type or schedule.lr_scheduler
    if moves != "constant" and find_optimizer(optimizer_type).averages:
        raise ConfigError(
            f"{optimizer_type} takes no schedule, but lr_scheduler is {moves}",
            "set lr_scheduler to constant; warmup is an argument of AdamWScheduleFree and "
            "SGDScheduleFree (optimizer_args warmup_steps=100)",
        )
