"""Whether an optimizer and a schedule can be made as they are configured, found out in no time."""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from typing import Final

import torch
from torch.optim import Optimizer

from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
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
