"""What a run asks of its optimizer, kept while a state of other wishes is put in.

A state brings along the arguments, the rates and the schedule of the run that it is of. Where those
may differ, what the run itself was given takes their place again.
"""

from __future__ import annotations

import inspect
from typing import Any, Final

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anima_pipe.optimizing.schedules import step_without_training

MOVED_BY_SCHEDULES: Final = ("lr", "initial_lr", "betas", "momentum")
"""What schedules change in a group: rates, and some of torch's the momentum."""


class Configured:
    """The groups of a run's optimizer, freshly made.

    Args:
        optimizer: Before a state is put in, and after a schedule was made for it.
        kind: Its class, where the optimizer itself is wrapped.
    """

    def __init__(self, optimizer: Optimizer, kind: type[Optimizer]) -> None:
        self._optimizer = optimizer
        self._names = set(inspect.signature(kind).parameters) - {"params", "lr"}
        self._groups: list[dict[str, Any]] = [
            {name: value for name, value in group.items() if name != "params"}
            for group in optimizer.param_groups
        ]

    def restore_arguments(self) -> None:
        """Put the optimizer's own arguments back, those left at their defaults too."""
        for group, configured in zip(self._optimizer.param_groups, self._groups, strict=True):
            group.update({name: configured[name] for name in self._names & configured.keys()})

    def restore_rates(self, schedule: LRScheduler, steps: int) -> None:
        """Put the rates back, as they are after so many steps of a schedule freshly made."""
        for group, configured in zip(self._optimizer.param_groups, self._groups, strict=True):
            moved = {name: configured[name] for name in MOVED_BY_SCHEDULES if name in configured}
            group.update({**configured, **group, **moved})
        step_without_training(schedule, steps)
