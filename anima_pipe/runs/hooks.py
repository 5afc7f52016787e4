"""What happens besides the steps of a run, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from anima_pipe.adapters.files import warn_of_unread_norms
from anima_pipe.hooks.alarms import LossAlarm, MemoryAlarm, TimeLeft
from anima_pipe.hooks.board import start_board
from anima_pipe.hooks.ema import Ema
from anima_pipe.hooks.previews import DrawingAlong
from anima_pipe.hooks.run_log import MetricsFile, RunLog
from anima_pipe.hooks.saving import Saver
from anima_pipe.hooks.smoothing import SmoothedLosses
from anima_pipe.hooks.tracking import ProgressBar, StepNumbers
from anima_pipe.hooks.train_state import StateSaver
from anima_pipe.hooks.validation import HeldOut, ModelInUse, Report, Validation
from anima_pipe.runtime import Rank, say, warn
from anima_pipe.trainer import Trackers, sum_over_processes

if TYPE_CHECKING:
    import torch

    from anima_pipe.adapters import Adapter
    from anima_pipe.hooks.previews import Previews
    from anima_pipe.runs.settings.training import TrainSettings
    from anima_pipe.shards import Cache
    from anima_pipe.trainer import Hook, Trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHooks:
    """The parts of a run that hooks look at, and which hooks they make."""

    settings: TrainSettings
    trainer: Trainer
    adapter: Adapter
    cache: Cache
    module: torch.nn.Module
    """The model with its adapter, not wrapped for several processes."""
    previews: Previews | None
    ema: Ema | None
    losses: SmoothedLosses
    states: StateSaver
    steps_done: int
    """Where the run begins."""
    is_sharded: bool
    """Whether each process holds a part of the model, so that all of them must run it."""

    def in_order(self) -> list[Hook]:
        """Return this process's hooks.

        What is part of the state comes first, so that what is measured or saved in a step includes
        that step, and a state is whole whatever goes wrong behind;
        what is said, drawn and saved is the first process's business.
        """
        settings, trainer = self.settings, self.trainer
        is_first = trainer.accelerator.is_main_process
        log = self._log() if is_first else RunLog()
        hooks: list[Hook] = [self.ema] if self.ema else []
        if is_first:
            hooks.append(self.losses)
        hooks += self._validations(log.numbers)
        if not is_first:
            along = [DrawingAlong(self.previews)] if self.previews and self.is_sharded else []
            return [*hooks, *along]
        if self.ema:
            beside = replace(settings.save, name=f"{settings.save.name}-ema")
            hooks.append(Saver(self.adapter, beside, self.ema.in_place))
        hooks.append(Saver(self.adapter, settings.save))
        warn_of_unread_norms(self.adapter.deltas, settings.save.style)
        device, memory = trainer.accelerator.device, settings.logs.memory
        hooks.append(StepNumbers(log, self.losses, device, memory=memory))
        if self.previews:
            self.previews.show = log.pictures
            hooks.append(self.previews)
        steps, alarms = trainer.config.max_train_steps, settings.logs.alarms
        hooks += [ProgressBar(steps, self.losses), TimeLeft(steps), self.states]
        end = trainer.end_with
        return [*hooks, LossAlarm(alarms, end), MemoryAlarm(alarms, device, end)]

    def _log(self) -> RunLog:
        """Return where numbers and pictures go, and start what shows them."""
        logs = self.settings.logs
        if logs.trackers is None:
            return RunLog()
        if logs.board:
            start_board(logs.board)
        say(f"log       {logs.trackers.folder}")
        metrics = MetricsFile(logs.trackers.folder, self.steps_done)
        return RunLog([metrics, Trackers(self.trainer.accelerator, logs.trackers, self.steps_done)])

    def _validations(self, report: Report) -> list[Validation]:
        """Return what measures the loss on pictures held out: of the weights, and their average."""
        trainer = self.trainer
        plan, accelerator = trainer.batches.plan, trainer.accelerator
        if self.settings.validation.max_batches == 0:
            return []
        if not plan.held_out:
            if any(s.validation_split for d in self.settings.data.datasets for s in d.subsets):
                warn("validation_split holds out no picture: there are too few for such a share")
            return []
        total = partial(sum_over_processes, accelerator)
        rank = Rank(number=accelerator.process_index, processes=accelerator.num_processes)
        held_out = HeldOut(plan, self.cache, self.settings.validation, rank, total)
        model = ModelInUse(
            module=self.module, device=accelerator.device, dtype=trainer.config.dtype
        )
        measure = partial(Validation, model, held_out, self.settings.validation, report)
        of_average = [measure("validation_ema", self.ema.in_place)] if self.ema else []
        return [measure(), *of_average]
