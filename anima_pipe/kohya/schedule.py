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
        lr_scheduler=options.value("lr_scheduler"),
        lr_warmup_steps=options.value("lr_warmup_steps"),
        lr_decay_steps=options.value("lr_decay_steps"),
        lr_scheduler_num_cycles=options.value("lr_scheduler_num_cycles"),
        lr_scheduler_power=options.value("lr_scheduler_power"),
        lr_scheduler_min_lr_ratio=options.value("lr_scheduler_min_lr_ratio", unset=0.0),
        lr_scheduler_timescale=options.value("lr_scheduler_timescale"),
        lr_scheduler_type=options.value("lr_scheduler_type"),
        lr_scheduler_args=options.value("lr_scheduler_args") or {},
    )
