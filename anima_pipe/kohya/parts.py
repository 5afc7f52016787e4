"""Arguments of the adapter and of the optimizer, checked by the parts that take them.

Importing this module imports torch; nothing is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

import torch

from anima_pipe.adapters.adapter import read_settings
from anima_pipe.errors import ConfigError
from anima_pipe.kohya.findings import Finding
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.optimizers import (
    OptimizerConfig,
    ParameterGroup,
    create_optimizer,
    find_optimizer,
)
from anima_pipe.schedules import ScheduleConfig

ADAPTER_KINDS = {
    "networks.lora_anima": "lora",
    "networks.lokr_anima": "lokr",
    "networks.lokr": "lokr",
    "networks.loha": "loha",
    "networks.tlora_anima": "tlora",
}
"""network_module by Kohya and the seed, and the kind of adapter that it means."""

KIND_DEFAULTS: dict[str, dict[str, object]] = {"networks.lokr": {"lokr_factor": -1}}
"""Where one of them starts from other settings than its kind's."""


def part_findings(options: Resolved) -> Iterator[Finding]:
    """Yield what the adapter and the optimizer of a training would object to."""
    for check, names in (
        (_check_adapter, ("network_args", "network_module")),
        (_check_optimizer, ("optimizer_args", "optimizer_type")),
        (schedule_config, ("lr_scheduler_type", "lr_scheduler_args", "lr_scheduler")),
    ):
        try:
            check(options)
        except ConfigError as error:
            place = next(filter(None, map(options.given, names)), options.command)
            yield Finding(
                place=place,
                problem=error.problem,
                remedy=error.remedy,
                here_only=check is _check_optimizer and not _is_installed(options),
            )


def _check_adapter(options: Resolved) -> None:
    read_settings(
        ADAPTER_KINDS[options.value("network_module")],
        options.value("network_dim"),
        options.value("network_alpha"),
        options.value("network_args") or {},
    )


def schedule_config(options: Resolved) -> ScheduleConfig:
    """Return how the learning rate moves.

    Raises:
        ConfigError: There is no such schedule.
    """
    return ScheduleConfig(
        kind=options.value("lr_scheduler"),
        warmup=options.value("lr_warmup_steps"),
        decay=options.value("lr_decay_steps"),
        num_cycles=options.value("lr_scheduler_num_cycles"),
        power=options.value("lr_scheduler_power"),
        min_lr_ratio=options.value("lr_scheduler_min_lr_ratio") or 0.0,
        timescale=options.value("lr_scheduler_timescale"),
        class_name=options.value("lr_scheduler_type"),
        arguments=options.value("lr_scheduler_args") or {},
    )


def _check_optimizer(options: Resolved) -> None:
    group = ParameterGroup(
        name="linear",
        parameters=[torch.nn.Parameter(torch.zeros(2, 2))],
        learning_rate=options.value("learning_rate"),
    )
    arguments = options.value("optimizer_args") or {}
    create_optimizer(
        [group], OptimizerConfig(kind=options.value("optimizer_type"), arguments=arguments)
    )


def _is_installed(options: Resolved) -> bool:
    """Tell whether the optimizer's package is there; one of no name is nowhere to be installed."""
    try:
        module = find_optimizer(options.value("optimizer_type")).module
    except ConfigError:
        return True
    return find_spec(module.partition(".")[0]) is not None
