"""Learning-rate schedules by Kohya's names, through transformers and torch.

piecewise_constant, the one of diffusers, is here: factors of the rate, each up to a step. So is
adafactor, which shows the steps that Adafactor takes by its own measure.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from torch.optim import Optimizer, lr_scheduler
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from anima_pipe.errors import ConfigError, check_number, did_you_mean
from anima_pipe.optimizing.arguments import check_arguments, unfit
from anima_pipe.runtime import finite_number

if TYPE_CHECKING:
    import torch

SCHEDULES: Final = (
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "piecewise_constant",
    "adafactor",
)

BY_STEP_ALONE: Final = (
    *("constant", "constant_with_warmup", "inverse_sqrt", "piecewise_constant", "adafactor"),
)
"""Schedules that do not ask how long the run is."""

WITHOUT_WARMUP: Final = ("constant", "adafactor")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate moves over the run.

    Raises:
        ConfigError: There is no such schedule, or a number is out of its range.
    """

    lr_scheduler: str = "constant"
    lr_warmup_steps: float = 0
    """Steps of linear warmup; below 1 a fraction of all steps, as Kohya reads it."""
    lr_decay_steps: float = 0
    """Steps of the decay at the end of warmup_stable_decay; below 1 a fraction of all steps."""
    lr_scheduler_num_cycles: float = 1
    """Restarts of cosine_with_restarts; the other cosines take half of it, as in Kohya."""
    lr_scheduler_power: float = 1.0
    """Exponent of polynomial."""
    lr_scheduler_min_lr_ratio: float = 0.0
    """Floor of the schedules that have one, as a fraction of the learning rate."""
    lr_scheduler_timescale: int | None = None
    """Steps of inverse_sqrt over which the rate falls by the root of two; None: the warmup."""
    lr_scheduler_type: str = ""
    """A class of torch.optim.lr_scheduler, or package.module.Class; it wins over `lr_scheduler`."""
    lr_scheduler_args: Mapping[str, object] = field(default_factory=dict[str, object])
    """Further arguments of the schedule's function or class."""

    def __post_init__(self) -> None:
        for name in ("lr_warmup_steps", "lr_decay_steps", "lr_scheduler_num_cycles"):
            check_number(name, getattr(self, name), least=0)
        check_number("lr_scheduler_min_lr_ratio", self.lr_scheduler_min_lr_ratio, least=0, most=1)
        check_number("lr_scheduler_timescale", self.lr_scheduler_timescale, least=1)
        if self.lr_scheduler_type:
            _find_class(self.lr_scheduler_type)
            return
        if self.lr_scheduler not in SCHEDULES:
            raise ConfigError(
                f"unsupported lr_scheduler {self.lr_scheduler!r}",
                f"{did_you_mean(self.lr_scheduler, SCHEDULES)}use one of {', '.join(SCHEDULES)}",
            )
        warmup, decay = self.lr_warmup_steps, self.lr_decay_steps
        if self.lr_scheduler in WITHOUT_WARMUP and warmup:
            raise ConfigError(
                f"lr_scheduler {self.lr_scheduler} takes no warmup, but lr_warmup_steps is "
                f"{warmup:g}",
                "set lr_warmup_steps to 0, or lr_scheduler to constant_with_warmup",
            )
        are_shares = warmup < 1 and decay < 1
        if self.lr_scheduler == "warmup_stable_decay" and are_shares and warmup + decay > 1:
            raise ConfigError(
                f"lr_warmup_steps {warmup:.0%} and lr_decay_steps {decay:.0%} are more than the "
                "whole run",
                "lower one of them",
            )

    @property
    def follows_length(self) -> bool:
        """Whether the rate depends on how long the run is."""
        if self.lr_scheduler_type:
            return False
        return self.lr_scheduler not in BY_STEP_ALONE or 0 < self.lr_warmup_steps < 1

    def warmup_steps(self, total_steps: int) -> int:
        """Return the warmup in whole steps."""
        return _whole(self.lr_warmup_steps, total_steps)

    def decay_steps(self, total_steps: int) -> int:
        """Return the last decay in whole steps."""
        return _whole(self.lr_decay_steps, total_steps)


def _whole(count_or_share: float, total_steps: int) -> int:
    return int(count_or_share * total_steps if count_or_share < 1 else count_or_share)


def create_schedule(optimizer: Optimizer, config: ScheduleConfig, total_steps: int) -> LRScheduler:
    """Build the schedule; it is stepped once per optimizer step.

    Raises:
        ConfigError: The arguments do not fit the schedule, or the run is shorter than its parts.
    """
    if any(group.get("relative_step") for group in optimizer.param_groups):
        return AdafactorSteps(optimizer)
    if config.lr_scheduler_type:
        build, own = _find_class(config.lr_scheduler_type), {}
    else:
        build, own = _function(config.lr_scheduler), _own_arguments(config, total_steps)
    named = (
        f"lr_scheduler_type {config.lr_scheduler_type}"
        if config.lr_scheduler_type
        else config.lr_scheduler
    )
    problem, arguments = (
        f"lr_scheduler_args do not fit {named}",
        {**own, **config.lr_scheduler_args},
    )
    check_arguments(problem, build, arguments, ours=("optimizer",))
    try:
        return build(optimizer, **arguments)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(unfit(problem, arguments, error), "correct lr_scheduler_args") from error


def step_without_training(schedule: LRScheduler, steps: int = 1) -> None:
    """Step a schedule where the optimizer took no step: in a step passed over, or to catch up."""
    with warnings.catch_warnings():
        # Before the optimizer's first step, torch takes the schedule for misplaced.
        warnings.filterwarnings("ignore", "Detected call of", UserWarning)
        for _ in range(steps):
            schedule.step()


def _function(kind: str) -> Callable[..., LRScheduler]:
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION
    from transformers.trainer_utils import SchedulerType

    if kind == "piecewise_constant":
        return piecewise_constant
    if kind == "adafactor":
        raise ConfigError(
            "lr_scheduler adafactor goes with an Adafactor that finds its own steps",
            "set optimizer_type to Adafactor and optimizer_args to relative_step=True",
        )
    return TYPE_TO_SCHEDULER_FUNCTION[SchedulerType(kind)]


def _own_arguments(config: ScheduleConfig, total_steps: int) -> dict[str, Any]:
    """Return what Kohya hands to a schedule's function."""
    if config.lr_scheduler in ("constant", "piecewise_constant"):
        return {}
    warmup = {"num_warmup_steps": config.warmup_steps(total_steps)}
    timed = {**warmup, "num_training_steps": total_steps}
    match config.lr_scheduler:
        case "constant_with_warmup":
            return warmup
        case "inverse_sqrt":
            return {**warmup, "timescale": config.lr_scheduler_timescale}
        case "cosine_with_restarts":
            return {**timed, "num_cycles": int(config.lr_scheduler_num_cycles)}
        case "cosine_with_min_lr" | "cosine_warmup_with_min_lr":
            cycles = {"num_cycles": config.lr_scheduler_num_cycles / 2}
            floor = "min_lr" not in config.lr_scheduler_args
            return {
                **timed,
                **cycles,
                **({"min_lr_rate": config.lr_scheduler_min_lr_ratio} if floor else {}),
            }
        case "polynomial":
            return {**timed, "power": config.lr_scheduler_power}
        case "warmup_stable_decay":
            return _stable_decay(config, total_steps)
        case _:
            return timed


def _stable_decay(config: ScheduleConfig, total_steps: int) -> dict[str, Any]:
    warmup, decay = config.warmup_steps(total_steps), config.decay_steps(total_steps)
    if warmup + decay > total_steps:
        raise ConfigError(
            f"lr_warmup_steps {warmup} and lr_decay_steps {decay} are more than the run's "
            f"{total_steps} steps",
            "lower one of them",
        )
    return {
        "num_warmup_steps": warmup,
        "num_stable_steps": total_steps - warmup - decay,
        "num_decay_steps": decay,
        "num_cycles": config.lr_scheduler_num_cycles / 2,
        "min_lr_ratio": config.lr_scheduler_min_lr_ratio,
    }


def piecewise_constant(optimizer: Optimizer, step_rules: str) -> LambdaLR:
    """Return a schedule of constant pieces.

    Args:
        optimizer: Its rates are multiplied.
        step_rules: `FACTOR:STEP,...,FACTOR`: the first factor holds up to its step, the next one
            up to its own, the last one from there on.

    Raises:
        ValueError: The text is not of that form.
    """
    *pieces, last = str(step_rules).split(",")
    try:
        pairs = [piece.split(":") for piece in pieces]
        until = {int(step): finite_number(factor) for factor, step in pairs}
        rest = finite_number(last)
    except ValueError as error:
        raise ValueError(
            f"step_rules is {step_rules!r}, which is not FACTOR:STEP,...,FACTOR"
        ) from error
    ends = sorted(until)

    def factor(step: int) -> float:
        end = next((end for end in ends if step < end), None)
        return rest if end is None else until[end]

    return LambdaLR(optimizer, factor)


class AdafactorSteps(LRScheduler):
    """No schedule: it shows in each group the size of the last step that Adafactor took there.

    (Shazeer and Stern, arXiv:1804.04235: min(1e-2, 1 / sqrt(t)), times the root mean square of the
    tensor with scale_parameter; of the group's first tensor that has been trained.)
    """

    def get_lr(self) -> list[float | torch.Tensor]:
        """Return the size of each group's step; before the first its learning rate."""
        return [
            self._size(group, base)
            for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True)
        ]

    def _size(self, group: Mapping[str, Any], base: float | torch.Tensor) -> float | torch.Tensor:
        states = (self.optimizer.state.get(parameter) for parameter in group["params"])
        state = next(filter(None, states), None)
        if state is None:
            return base
        largest = 1e-6 * state["step"] if group["warmup_init"] else 1e-2
        scale = max(group["eps"][1], float(state["RMS"])) if group["scale_parameter"] else 1.0
        return min(largest, state["step"] ** -0.5) * scale


def _find_class(name: str) -> Callable[..., LRScheduler]:
    """Return the class of a schedule by its name.

    Raises:
        ConfigError: There is none, or it follows a measurement that training does not make.
    """
    module, _, plain = name.rpartition(".")
    home = module or lr_scheduler.__name__
    found: Callable[..., LRScheduler] | None
    try:
        found = getattr(importlib.import_module(home), plain, None)
    except ImportError as error:
        raise ConfigError(
            f"lr_scheduler_type {name}: {home} cannot be imported: {error}",
            "install its package in this environment, or name a class of torch.optim.lr_scheduler",
        ) from error
    if found is None:
        raise ConfigError(
            f"lr_scheduler_type {name}: {home} has no class {plain}",
            f"{did_you_mean(plain, _of_torch())}name a class of torch.optim.lr_scheduler, or "
            "package.module.Class of one installed",
        )
    if "metrics" in inspect.signature(getattr(found, "step", found)).parameters:
        raise ConfigError(
            f"lr_scheduler_type {name} follows a validation loss after every step",
            "use a schedule that follows the steps alone",
        )
    return found


def _of_torch() -> list[str]:
    """Return the names of torch's schedules."""
    found = vars(lr_scheduler).items()
    return [
        name for name, kind in found if isinstance(kind, type) and issubclass(kind, LRScheduler)
    ]
