"""The losses of a run, smoothed: part of its state, so that they go on where it is resumed."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, Final

from anima_pipe.records import Moment

SMOOTHING: Final = 0.98
"""Share of the past in the smoothed loss."""


class SmoothedLoss:
    """An exponential mean of a loss, free of the bias of its start."""

    def __init__(self, total: float = 0.0, weight: float = 0.0) -> None:
        self.total = total
        self.weight = weight

    def add(self, loss: float) -> None:
        """Take in one step's loss, if it is a number."""
        if math.isfinite(loss):
            self.total = SMOOTHING * self.total + (1 - SMOOTHING) * loss
            self.weight = SMOOTHING * self.weight + (1 - SMOOTHING)

    @property
    def value(self) -> float:
        """The mean; NaN before the first loss."""
        return self.total / self.weight if self.weight else math.nan


class SmoothedLosses:
    """The hook that smooths the loss, and the losses by noise level, for those who show them."""

    reads_weights = False

    def __init__(self) -> None:
        self.average = SmoothedLoss()
        self.by_sigma: defaultdict[str, SmoothedLoss] = defaultdict(SmoothedLoss)

    def due(self, moment: Moment) -> bool:
        """Tell whether there was a step."""
        return moment.after_step

    def at(self, moment: Moment) -> None:
        """Take in its losses."""
        assert moment.loss is not None
        self.average.add(moment.loss)
        for name, loss in moment.sigma_losses.items():
            self.by_sigma[name].add(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the sum and the weight of each mean; "" is the name of the one over all."""
        means = {"": self.average, **self.by_sigma}
        return {name: (mean.total, mean.weight) for name, mean in means.items()}

    def load_state_dict(self, state_dict: dict[str, tuple[float, float]], /) -> None:
        """Take them back."""
        for name, (total, weight) in state_dict.items():
            if name:
                self.by_sigma[name] = SmoothedLoss(total, weight)
            else:
                self.average = SmoothedLoss(total, weight)
