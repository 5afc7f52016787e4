"""Hooks that look out for a loss that runs away and memory that runs short, and tell the time left.

A loss runs away where the median of the last 5 steps is above `ratio` times the median of the up to
100 before (at least 20): one step alone says nothing, for its noise levels are drawn. Each such
stretch is told once.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch

from anima_pipe.errors import PipeError, check_above_zero, check_number
from anima_pipe.hooks.memory import memory_use
from anima_pipe.progress import duration
from anima_pipe.records import Moment
from anima_pipe.runtime import counted, say, warn

RECENT: Final = 5
BEFORE: Final = 100
FEWEST: Final = 20
TIMED_STEPS: Final = 4
"""Steps until the time left is told; the first is slower than the others and not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmConfig:
    """What is told, and whether it ends the run.

    Raises:
        ConfigError: A ratio or a share is none.
    """

    stops: bool = False
    """End the run with an error, instead of a warning."""
    loss_ratio: float | None = 3.0
    """Rise of the loss that is told; None: none."""
    memory_share: float | None = 0.95
    """Share of all memory in use that is told; None: none."""

    def __post_init__(self) -> None:
        check_above_zero("loss_ratio", self.loss_ratio)
        check_number("memory_share", self.memory_share, least=0, most=1)


End = Callable[[PipeError], None]
"""Ends the run after the next step, with an error."""


class LossAlarm:
    """The hook that tells where the loss runs away.

    Args:
        config: From which rise on, and whether it ends the run.
        end: How the run is ended.
    """

    reads_weights = False

    def __init__(self, config: AlarmConfig, end: End) -> None:
        self._config = config
        self._end = end
        self._losses: deque[float] = deque(maxlen=BEFORE + RECENT)
        self._told = False

    def due(self, moment: Moment) -> bool:
        """Tell whether there is a loss to look at."""
        return moment.step_taken

    def at(self, moment: Moment) -> None:
        """Compare the last steps with those before."""
        assert moment.result is not None
        assert moment.result.loss is not None
        self._losses.append(moment.result.loss)
        losses = [*self._losses]
        before, recent = losses[:-RECENT], losses[-RECENT:]
        ratio = self._config.loss_ratio
        if len(before) < FEWEST or ratio is None:
            return
        usual = statistics.median(before)
        now = statistics.median(recent)
        runs_away = now > ratio * usual
        if runs_away and not self._told:
            problem = f"step {moment.step}: the loss rises, {now:.4f} where {usual:.4f} was usual"
            remedy = "lower learning_rate, or go on from an earlier state"
            _tell(self._config, self._end, problem, remedy)
        self._told = runs_away


class MemoryAlarm:
    """The hook that tells where memory runs short.

    Args:
        config: From which share on, and whether it ends the run.
        device: Whose memory.
        end: How the run is ended.
    """

    reads_weights = False

    def __init__(self, config: AlarmConfig, device: torch.device, end: End) -> None:
        self._config = config
        self._device = device
        self._end = end
        self._told = False

    def due(self, moment: Moment) -> bool:
        """Tell whether a step was done, and nothing is told yet."""
        return moment.after_step and not self._told and self._config.memory_share is not None

    def at(self, moment: Moment) -> None:
        """Look at the memory in use by everyone."""
        share = memory_use(self._device).used_share
        if self._config.memory_share is not None and share >= self._config.memory_share:
            self._told = True
            problem = f"step {moment.step}: {share:.0%} of the memory is in use"
            remedy = "use gradient_checkpointing, or a smaller batch_size"
            _tell(self._config, self._end, problem, remedy)


class TimeLeft:
    """The hook that tells once, after a few steps, how long the run will take.

    Args:
        total_steps: Of the run.
    """

    reads_weights = False

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._seconds: list[float] = []

    def due(self, moment: Moment) -> bool:
        """Tell whether it is still to be told."""
        return moment.after_step and len(self._seconds) < TIMED_STEPS

    def at(self, moment: Moment) -> None:
        """Take a step's time; tell when there are enough of them."""
        assert moment.result is not None
        self._seconds.append(moment.result.seconds + moment.result.waited_seconds)
        steps_left = self._total_steps - moment.step
        if len(self._seconds) == TIMED_STEPS and steps_left:
            each = statistics.fmean(self._seconds[1:])
            end = time.strftime("%H:%M", time.localtime(time.time() + each * steps_left))
            left = duration(each * steps_left)
            steps = counted(steps_left, "step")
            say(f"time left {left} for {steps} of {each:.2g} s: until about {end}")


def _tell(config: AlarmConfig, end: End, problem: str, remedy: str) -> None:
    if config.stops:
        end(PipeError(problem, f"{remedy}; anima_monitor_alert_policy warn goes on regardless"))
    else:
        warn(f"{problem}; {remedy}")
