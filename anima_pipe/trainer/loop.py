"""The training loop: plan, loop over batches, step, hooks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol, runtime_checkable

from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anima_pipe.dataset.batches import Batches, Window
from anima_pipe.optimizing.optimizers import averaged_weights, learning_rates
from anima_pipe.records import Moment
from anima_pipe.trainer.measures import Outcome
from anima_pipe.trainer.prefetch import Prefetched
from anima_pipe.trainer.processes import prepared
from anima_pipe.trainer.step import TrainerConfig, TrainStep


class Hook(Protocol):
    """Something that happens besides the steps: saving, previews, tracking."""

    reads_weights: bool
    """Whether it looks at the adapter; it is then shown the weights that are worth saving."""

    def due(self, moment: Moment) -> bool:
        """Tell whether it acts at this moment."""
        ...

    def at(self, moment: Moment) -> None:
        """Act; called when it is due."""


@runtime_checkable
class Closing(Protocol):
    """A hook that has something to put away when the run ends, be it by an error."""

    def close(self) -> None:
        """Put it away."""
        ...


class Trainer:
    """Rectified-flow training of whatever in the module requires gradients.

    Args:
        accelerator: From `start_accelerate`.
        module: forward(latents, sigmas, qwen_hidden, t5_ids, qwen_mask, t5_mask) -> velocity.
        optimizer: Over the module's trainable parameters.
        schedule: Of the learning rates; stepped once per optimizer step.
        batches: The supply of data, of this process.
        config: The numbers.
        hooks: What else happens on this process, in this order. One that talks to the other
            processes is a hook of all of them.
        should_stop: Asked after every step; the run ends there if any process says yes.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler,
        batches: Batches,
        config: TrainerConfig,
        hooks: list[Hook],
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.accelerator = accelerator
        self.module = prepared(accelerator, module)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.plain_optimizer = optimizer
        self.schedule = schedule
        self.batches = batches
        self.config = config
        self.hooks = hooks
        self.should_stop = should_stop
        self.losses: list[float] = []
        """Mean loss of every step that this trainer took."""
        self.skipped_steps = 0
        """Steps of the run passed over, for their loss or gradient was not finite."""
        self.moment: Moment | None = None
        """What the hooks were told last; None before the run."""
        self.ending: Exception | None = None
        """Why the run ends behind the next step, where it does not end as planned."""
        self.is_whole = True
        """Whether weights, optimizer and schedule are all those of the last moment."""
        optimizer.register_step_pre_hook(lambda *_: self._begin_change())

    def run(self, steps_done: int = 0) -> Moment:
        """Train on to the planned number of steps, or until stopped; return where that ended."""
        try:
            return self._run(steps_done)
        finally:
            for hook in self.hooks:
                if isinstance(hook, Closing):
                    hook.close()

    def _run(self, steps_done: int) -> Moment:
        self.module.train()
        train_step = TrainStep(
            self.accelerator, self.module, self.optimizer, self.schedule, self.config
        )
        moment = self._tell(self._start(steps_done))
        windows = Prefetched(self.batches.starting_at(steps_done))
        upcoming = None if moment.is_last else next(windows)
        while upcoming is not None and not moment.stopping:
            window, waited = upcoming
            upcoming = self._read_ahead(windows, moment.step + 1)
            began = time.monotonic()
            stop = self.should_stop() or self.ending is not None
            outcome = train_step(moment.step, window, stop=stop)
            seconds = time.monotonic() - began
            moment = self._tell(self._after(moment.step, window, outcome, waited, seconds))
        if moment.stopping:
            # None leaves before the first one has saved.
            self.accelerator.wait_for_everyone()
        if self.ending is not None:
            raise self.ending
        return moment

    def end_with(self, error: Exception) -> None:
        """End the run behind the next step, on all processes and with its state saved; then raise.

        To raise at once would leave the others waiting for this process.
        """
        self.ending = self.ending or error

    def _read_ahead(self, windows: Prefetched, step: int) -> tuple[Window, float] | None:
        """Return the window of a step to come, and how long it took; None: there is none.

        It is read before it is needed, so that where it cannot be, the step before still tells all
        processes that the run ends.
        """
        if step >= self.config.max_train_steps:
            return None
        try:
            return next(windows)
        except Exception as error:  # noqa: BLE001 - raised in the end, whatever it is
            self.end_with(error)
            return None

    def _begin_change(self) -> None:
        self.is_whole = False

    def state_dict(self) -> dict[str, Any]:
        """Return what it counts over the whole of a run."""
        return {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Count on from a state."""
        self.skipped_steps = state_dict["skipped_steps"]

    def _start(self, steps_done: int) -> Moment:
        return Moment(
            step=steps_done,
            epoch=0,
            ends_epoch=False,
            is_last=steps_done == self.config.max_train_steps,
            loss=None,
            learning_rates=learning_rates(self.optimizer),
            grad_norm=None,
            samples=0,
            skipped_steps=self.skipped_steps,
        )

    def _after(
        self, steps_done: int, window: Window, outcome: Outcome, waited: float, seconds: float
    ) -> Moment:
        """Return the moment after a step."""
        if outcome.taken:
            self.losses.append(outcome.loss)
        self.skipped_steps += not outcome.taken
        return Moment(
            step=steps_done + 1,
            epoch=window.epoch + 1,
            ends_epoch=window.ends_epoch,
            is_last=steps_done + 1 == self.config.max_train_steps,
            loss=outcome.loss if outcome.taken else math.nan,
            sigma_losses=outcome.sigma_losses if outcome.taken else {},
            learning_rates=outcome.learning_rates,
            grad_norm=outcome.grad_norm,
            grad_norms=outcome.grad_norms,
            weight_norms=outcome.weight_norms,
            samples=window.samples,
            batches=window.batches,
            seconds=seconds,
            waited_seconds=waited,
            skipped_steps=self.skipped_steps,
            stopping=outcome.stopping,
        )

    def _tell(self, moment: Moment) -> Moment:
        """Tell the hooks where the run stands."""
        self.moment, self.is_whole = moment, True
        for hook in self.hooks:
            if hook.due(moment):
                optimizer = self.plain_optimizer
                with averaged_weights(optimizer) if hook.reads_weights else nullcontext():
                    hook.at(moment)
        return moment
