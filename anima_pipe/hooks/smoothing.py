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


class EpochLoss:
    """The mean loss of the last batches, as many as an epoch has; as Kohya's moving average.

    Args:
        windows: Steps of an epoch.
    """

    def __init__(self, windows: int) -> None:
        self._windows = windows
        self._losses: list[tuple[float, int]] = []
        """The mean loss and the batches of each of the last steps, in a ring."""
        self._taken = 0
        """Steps so far."""
        self._total, self._batches = 0.0, 0

    def add(self, loss: float, batches: int) -> None:
        """Take in one step's mean loss over so many batches, if it is a number."""
        if not math.isfinite(loss):
            return
        place = self._taken % self._windows
        if self._taken >= self._windows:
            self._total -= math.prod(self._losses[place])
            self._batches -= self._losses[place][1]
            self._losses[place] = loss, batches
        else:
            self._losses.append((loss, batches))
        self._total += loss * batches
        self._batches += batches
        self._taken += 1
        if self._taken % self._windows == 0:
            # Once in a while anew: what is added and taken away again leaves its rounding behind.
            self._total = math.fsum(math.prod(step) for step in self._losses)

    @property
    def value(self) -> float:
        """The mean; NaN before the first loss."""
        return self._total / self._batches if self._batches else math.nan

    def state_dict(self) -> dict[str, Any]:
        """Return the ring of losses, and the sums kept over it."""
        return {
            "windows": self._windows,
            "losses": self._losses,
            "taken": self._taken,
            "total": self._total,
        }

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take them back; where epochs are of another length now, as many as fit."""
        windows, losses, taken = (state_dict[name] for name in ("windows", "losses", "taken"))
        if windows != self._windows:
            for loss, batches in losses[taken % windows :] + losses[: taken % windows]:
                self.add(loss, batches)
            return
        self._losses, self._taken, self._total = list(losses), taken, state_dict["total"]
        self._batches = sum(batches for _, batches in losses)


OF_EPOCH: Final = "epoch"
"""Where the state has it; the others are called by their noise levels."""


class SmoothedLosses:
    """The hook that smooths the loss, and the losses by noise level, for those who show them.

    Args:
        windows: Steps of an epoch.
    """

    reads_weights = False

    def __init__(self, windows: int) -> None:
        self.average = SmoothedLoss()
        self.of_epoch = EpochLoss(windows)
        self.by_sigma: defaultdict[str, SmoothedLoss] = defaultdict(SmoothedLoss)

    def due(self, moment: Moment) -> bool:
        """Tell whether a step was taken, and not passed over."""
        return moment.step_taken

    def at(self, moment: Moment) -> None:
        """Take in its losses."""
        assert moment.result is not None
        assert moment.result.loss is not None
        self.average.add(moment.result.loss)
        self.of_epoch.add(moment.result.loss, moment.result.batches)
        for name, loss in moment.result.sigma_losses.items():
            self.by_sigma[name].add(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the sum and the weight of each mean; "" is the name of the one over all."""
        means = {"": self.average, **self.by_sigma}
        state: dict[str, Any] = {name: (mean.total, mean.weight) for name, mean in means.items()}
        return {**state, OF_EPOCH: self.of_epoch.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take them back."""
        means = dict(state_dict)
        if (of_epoch := means.pop(OF_EPOCH, None)) is not None:
            self.of_epoch.load_state_dict(of_epoch)
        self.average = SmoothedLoss(*means.pop(""))
        self.by_sigma.update({name: SmoothedLoss(*mean) for name, mean in means.items()})
