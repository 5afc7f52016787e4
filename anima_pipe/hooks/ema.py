"""An exponential moving average of what trains, saved beside it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch

from anima_pipe import foreach
from anima_pipe.errors import ConfigError
from anima_pipe.foreach import copied_together
from anima_pipe.records import Moment
from anima_pipe.trained import Trained

PIECE_NUMBERS: Final = 2**26
"""Weights that are kept in bf16 are averaged at most so many at once, of which there is a copy."""


class Ema:
    """The hook that keeps the average: after every step, a + (1 - decay) (weights - a).

    Over the first steps the decay is lower, (1 + n) / (10 + n) in step n, so that the start, where
    nothing is learned yet, does not weigh on a short run's average.

    Args:
        trained: What is averaged.
        decay: In [0, 1); 0.99 to 0.9999 by the length of the run.
    """

    reads_weights = False

    def __init__(self, trained: Trained, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ConfigError(f"ema_decay is {decay}", "use 0.99 to 0.9999, and less than 1")
        self.trained = trained
        self.decay = decay
        # In fp32 even of weights in bf16: what a step adds to an average is small.
        self.averages = {name: value.float() for name, value in _copied(trained).items()}
        self._pieces = pieces(self.averages, PIECE_NUMBERS)

    def due(self, moment: Moment) -> bool:
        """Tell whether a step changed the weights."""
        return moment.step_taken

    def at(self, moment: Moment) -> None:
        """Take in the weights after a step."""
        decay = min(self.decay, (1 + moment.step) / (10 + moment.step))
        values = self.trained.state_dict()
        for names in self._pieces:
            wide = [values[name] for name in names]
            if any(value.dtype != torch.float32 for value in wide):
                wide = copied_together(wide, torch.float32)
            averages = [self.averages[name] for name in names]
            foreach.interpolate_(averages, wide, 1 - decay)

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Put the average in the place of the weights for a while."""
        kept = _copied(self.trained)
        self.trained.load_state_dict(self.averages)
        try:
            yield
        finally:
            self.trained.load_state_dict(kept)

    def state_dict(self) -> dict[str, Any]:
        """Return the averages by the tensors' names."""
        return dict(self.averages)

    def load_state_dict(self, state_dict: dict[str, torch.Tensor], /) -> None:
        """Take the averages back."""
        for name, average in self.averages.items():
            average.copy_(state_dict[name])


def pieces(tensors: Mapping[str, torch.Tensor], largest: int) -> list[list[str]]:
    """Return the names of tensors in lists that have no more numbers each, but for large ones."""
    lists: list[list[str]] = [[]]
    room = largest
    for name, tensor in tensors.items():
        if tensor.numel() > room and lists[-1]:
            lists.append([])
            room = largest
        lists[-1].append(name)
        room -= tensor.numel()
    return lists


def _copied(trained: Trained) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trained.state_dict().items()}
