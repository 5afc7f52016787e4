"""From resolved options to the schedule of the learning rate."""

from __future__ import annotations

from anima_pipe.kohya.resolved import Resolved
from anima_pipe.optimizing.schedules import ScheduleConfig


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
        min_lr_ratio=options.value("lr_scheduler_min_lr_ratio", unset=0.0),
        timescale=options.value("lr_scheduler_timescale"),
        class_name=options.value("lr_scheduler_type"),
        arguments=options.value("lr_scheduler_args") or {},
    )
