"""Learning-rate schedules by Kohya's names, through transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anima_pipe.errors import ConfigError

SCHEDULES: Final = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
    "inverse_sqrt",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves over the run."""

    kind: str = "constant"
    warmup: float = 0
    """Steps of linear warmup; below 1 a fraction of all steps, as Kohya reads it."""
    num_cycles: float = 1
    """Restarts of cosine_with_restarts; cosine_with_min_lr takes half of it, as in Kohya."""
    power: float = 1.0
    """Exponent of polynomial."""
    min_lr_ratio: float = 0.0
    """Floor of cosine_with_min_lr, as a fraction of the learning rate."""

    def __post_init__(self) -> None:
        if self.kind not in SCHEDULES:
            raise ConfigError(
                f"unsupported lr_scheduler {self.kind!r}", f"use one of {', '.join(SCHEDULES)}"
            )
        if self.kind == "constant" and self.warmup:
            raise ConfigError(
                f"lr_scheduler constant takes no warmup, but lr_warmup_steps is {self.warmup:g}",
                "set lr_warmup_steps to 0, or lr_scheduler to constant_with_warmup",
            )

    @property
    def follows_length(self) -> bool:
        """Whether the rate depends on how long the run is."""
        by_kind = self.kind not in ("constant", "constant_with_warmup", "inverse_sqrt")
        return by_kind or 0 < self.warmup < 1

    def warmup_steps(self, total_steps: int) -> int:
        """Return the warmup in whole steps."""
        return int(self.warmup * total_steps) if self.warmup < 1 else int(self.warmup)


def create_schedule(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LRScheduler:
    """Build the schedule; it is stepped once per optimizer step."""
    from transformers.optimization import get_scheduler

    return get_scheduler(
        config.kind,
        optimizer,
        num_warmup_steps=config.warmup_steps(total_steps),
        num_training_steps=total_steps,
        scheduler_specific_kwargs=_specific_arguments(config),
    )


def _specific_arguments(config: ScheduleConfig) -> dict[str, Any]:
    match config.kind:
        case "cosine_with_restarts":
            return {"num_cycles": int(config.num_cycles)}
        case "cosine_with_min_lr":
            return {"num_cycles": config.num_cycles / 2, "min_lr_rate": config.min_lr_ratio}
        case "polynomial":
            return {"power": config.power}
        case _:
            return {}
