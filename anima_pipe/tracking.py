"""What a run shows while it trains: a progress bar, and scalars for TensorBoard."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.utils.tensorboard import SummaryWriter

from anima_pipe.records import Moment
from anima_pipe.runtime import progress_bar

if TYPE_CHECKING:
    from tqdm import tqdm

SMOOTHING = 0.98
"""Share of the past in the smoothed loss."""


class SmoothedLoss:
    """An exponential mean of a loss, free of the bias of its start."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._weight = 0.0

    def add(self, loss: float) -> float:
        """Take in one step's loss, if it is a number; return the smoothed one."""
        if not math.isfinite(loss):
            return self._sum / self._weight if self._weight else loss
        self._sum = SMOOTHING * self._sum + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)
        return self._sum / self._weight


class ProgressBar:
    """Steps, speed, time left and the smoothed loss, on one line.

    Its clock starts before the first step, behind the hooks that come before it.
    """

    reads_weights = False

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._bar: tqdm[Any] | None = None
        self._loss = SmoothedLoss()

    def due(self, moment: Moment) -> bool:  # noqa: ARG002 - at every moment alike
        """Tell that it always is."""
        return True

    def at(self, moment: Moment) -> None:
        """Move on by a step."""
        if self._bar is None:
            self._bar = progress_bar(self._total_steps, "step")
        if moment.loss is not None:
            self._bar.set_postfix(epoch=moment.epoch, loss=f"{self._loss.add(moment.loss):.4f}")
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


def unheard(step: int, numbers: Mapping[str, float]) -> None:
    """Take numbers that nobody wants to see."""


class TensorBoardLog:
    """Writes each step's scalars under a folder of the run's own.

    Args:
        folder: Where TensorBoard will look for the run.
        settings: The run's resolved options, shown under "text".
    """

    reads_weights = False

    def __init__(self, folder: Path, settings: str) -> None:
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("settings", settings)
        self._loss = SmoothedLoss()

    def due(self, moment: Moment) -> bool:
        """Tell whether there is a step to write of."""
        return moment.loss is not None

    def at(self, moment: Moment) -> None:
        """Write this step's loss, gradient norm and learning rates."""
        assert moment.loss is not None
        add = self._writer.add_scalar
        add("loss/current", moment.loss, moment.step)
        add("loss/average", self._loss.add(moment.loss), moment.step)
        add("grad_norm", moment.grad_norm, moment.step)
        add("epoch", moment.epoch, moment.step)
        for group, rate in moment.learning_rates.items():
            add(f"lr/{group}", rate, moment.step)

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Write what others measured."""
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is still held back."""
        self._writer.close()
