"""What a run shows of each step while it trains: a progress bar, and numbers for its log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anima_pipe.hooks.memory import GIB, MemoryUse, memory_use
from anima_pipe.hooks.run_log import RunLog
from anima_pipe.hooks.smoothing import SmoothedLosses
from anima_pipe.progress import Progress, progress_bar
from anima_pipe.records import Moment, StepResult

if TYPE_CHECKING:
    import torch


class ProgressBar:
    """Steps, speed, time left and the mean loss over an epoch's length, on one line.

    Its clock starts before the first step, once the hooks before it have acted.
    """

    reads_weights = False

    def __init__(self, total_steps: int, losses: SmoothedLosses) -> None:
        self._total_steps = total_steps
        self._bar: Progress | None = None
        self._losses = losses

    def due(self, moment: Moment) -> bool:  # noqa: ARG002 - at every moment alike
        """Tell that it always is."""
        return True

    def at(self, moment: Moment) -> None:
        """Begin where the run stands, then move on by a step."""
        if self._bar is None:
            self._bar = progress_bar(self._total_steps, "step", done=moment.step)
        if moment.after_step:
            self._bar.tell(epoch=moment.epoch, loss=f"{self._losses.of_epoch.value:.4f}")
            self._bar.update()

    def close(self) -> None:
        """Leave the bar as it stands, and what follows to the next line."""
        if self._bar is not None:
            self._bar.close()


def loss_ends(losses: Sequence[float], steps: int = 10) -> tuple[float, float] | None:
    """Return the mean loss over the first and over the last few steps, at most half of all."""
    if not losses:
        return None
    steps = max(1, min(steps, len(losses) // 2))
    return sum(losses[:steps]) / steps, sum(losses[-steps:]) / steps


class StepNumbers:
    """The hook that logs the numbers of every step.

    Args:
        log: Where they go.
        losses: Smoothed, this step's included.
        device: Whose memory is looked at.
        memory: Whether memory is looked at.
    """

    reads_weights = False

    def __init__(
        self, log: RunLog, losses: SmoothedLosses, device: torch.device, *, memory: bool
    ) -> None:
        self._log = log
        self._losses = losses
        self._device = device
        self._memory = memory

    def due(self, moment: Moment) -> bool:
        """Tell whether there is a step to write of."""
        return moment.after_step

    def at(self, moment: Moment) -> None:
        """Log this step."""
        assert moment.result is not None
        numbers = {
            **self._losses_told(moment.result),
            "epoch": moment.epoch,
            "skipped_steps": moment.skipped_steps,
            **_rates(moment.result),
            **_speeds(moment.result),
        }
        if self._memory:
            numbers |= _memory(memory_use(self._device))
        self._log.numbers(moment.step, numbers)

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def _losses_told(self, result: StepResult) -> dict[str, float]:
        """Return the step's loss, NaN where it was passed over, and the smoothed ones."""
        smoothed = {
            f"loss/sigma_{name}": self._losses.by_sigma[name].value for name in result.sigma_losses
        }
        return {
            "loss/current": math.nan if result.loss is None else result.loss,
            "loss/average": self._losses.average.value,
            "loss/epoch_average": self._losses.of_epoch.value,
            **smoothed,
        }


def _rates(result: StepResult) -> dict[str, float]:
    return {
        "grad_norm": result.grad_norm,
        **{f"grad_norm/{group}": norm for group, norm in result.grad_norms.items()},
        **{f"weight_norm/{group}": norm for group, norm in result.weight_norms.items()},
        **{f"lr/{group}": rate for group, rate in result.learning_rates.items()},
    }


def _speeds(result: StepResult) -> dict[str, float]:
    whole = result.seconds + result.waited_seconds
    return {
        "speed/samples_per_second": result.samples / whole if whole else math.nan,
        "speed/step_seconds": result.seconds,
        "speed/data_wait_seconds": result.waited_seconds,
    }


def _memory(use: MemoryUse) -> dict[str, float]:
    numbers = {"memory/resident_gib": use.resident / GIB, "memory/used_share": use.used_share}
    if use.allocated is not None:
        numbers["memory/gpu_allocated_gib"] = use.allocated / GIB
    return numbers
