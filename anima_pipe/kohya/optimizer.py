"""From resolved options to the optimizer."""

from __future__ import annotations

from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rules import adafactor_sizes_steps
from anima_pipe.optimizing.optimizers import OptimizerConfig


def optimizer_config(options: Resolved) -> OptimizerConfig:
    """Return which optimizer, and its arguments; lr_scheduler adafactor is one of them."""
    arguments: dict[str, object] = dict(options.value("optimizer_args") or {})
    if adafactor_sizes_steps(options):
        arguments["relative_step"] = True
    return OptimizerConfig(optimizer_type=options.value("optimizer_type"), optimizer_args=arguments)
