"""The training loop: plan, loop over batches, step, hooks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Protocol, runtime_checkable

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anima_pipe.dataset.batches import Batches, Window
from anima_pipe.optimizing.optimizers import averaged_weights
from anima_pipe.records import Moment, StepResult
from anima_pipe.trainer.measures import Outcome
from anima_pipe.trainer.prefetch import Prefetched
from anima_pipe.trainer.step import TrainerConfig, TrainStep
from anima_pipe.trainer.stopping import StopRequest
from anima_pipe.trainer.tally import Tally


class Hook(Protocol):
    """Something that happens besides the steps: saving, previews, tracking.

    A schedule-free optimizer trains on other weights than those worth saving; these are in place
    while a hook acts. A hook that does not look at weights sets `reads_weights = False`.
    """

    def due(self, moment: Moment, /) -> bool:
        """Tell whether it acts at this moment."""
        ...

    def at(self, moment: Moment, /) -> None:
        """Act; called when it is due."""


@runtime_checkable
class Closing(Protocol):
    """A hook that has something to put away when the run ends, be it by an error."""

    def close(self) -> None:
        """Put it away."""
        ...


@runtime_checkable
class Rescuing(Protocol):
    """A hook that saves what can be saved where the run breaks off by an error."""

    def rescue(self, moment: Moment) -> None:
        """Save it; the error is raised again afterwards, so none may be raised here.

        Args:
            moment: The last one; weights, optimizer and schedule are as they were then.
        """
        ...


class Trainer:
    """Rectified-flow training of whatever in the module requires gradients.

    Args:
        accelerator: From `start_accelerate`.
        module: Prepared, see `prepared`;
            forward(latents, sigmas, qwen_hidden, t5_ids, qwen_mask, t5_mask) -> velocity.
        optimizer: Prepared with it, over its trainable parameters.
        schedule: Of the learning rates; stepped once per optimizer step.
        batches: The supply of data, of this process.
        config: The numbers.
        hooks: What else happens on this process, in this order. A hook that communicates with the
            other processes must be there on all of them.
        stop: Checked before every step; once any process has made it, all end after that step.
        tally: Counts the steps; given by who reads the counts too.
    """

    def __init__(
        self,
        *,
        accelerator: Accelerator,
        module: nn.Module,
        optimizer: AcceleratedOptimizer,
        schedule: LRScheduler,
        batches: Batches,
        config: TrainerConfig,
        hooks: Sequence[Hook] = (),
        stop: StopRequest | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.accelerator = accelerator
        self.module = module
        self.optimizer = optimizer
        self.schedule = schedule
        self.batches = batches
        self.config = config
        self.hooks = tuple(hooks)
        self.stop = StopRequest() if stop is None else stop
        self.tally = Tally() if tally is None else tally
        self.moment: Moment | None = None
        """What the hooks were told last; None before the run."""
        self._is_whole = True
        """Whether weights, optimizer and schedule are all those of the last moment."""
        self._plain_optimizer: Optimizer = optimizer.optimizer
        self._plain_optimizer.register_step_pre_hook(lambda *_: self._begin_change())

    def run(self, steps_done: int = 0) -> Moment:
        """Train on to the planned number of steps, or until stopped; return where that ended.

        Args:
            steps_done: Optimizer steps done before the run was resumed.

        Raises:
            NonFiniteError: A loss or a gradient is not finite, and such steps are not skipped.
            Exception: Whatever a hook or the reading of data raises, or the stop request holds.
        """
        try:
            return self._run_and_close(steps_done)
        except Exception:
            self._rescue()
            raise

    def _run_and_close(self, steps_done: int) -> Moment:
        try:
            return self._run(steps_done)
        finally:
            for hook in self.hooks:
                if isinstance(hook, Closing):
                    hook.close()

    def _rescue(self) -> None:
        """Have the hooks save what they can, unless the error came in the middle of an update."""
        if self.moment is None or not self._is_whole:
            return
        for hook in self.hooks:
            if isinstance(hook, Rescuing):
                hook.rescue(self.moment)

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
            outcome = train_step(moment.step, window, stop=self.stop.is_made)
            seconds = time.monotonic() - began
            result = _result(outcome, window, seconds, waited)
            self.tally.add(result)
            moment = self._tell(self._after(moment.step, window, result, stops=outcome.stopping))
        if moment.stopping:
            # None leaves before the first one has saved.
            self.accelerator.wait_for_everyone()
        self.stop.raise_error()
        return moment

    def _read_ahead(self, windows: Prefetched, step: int) -> tuple[Window, float] | None:
        """Prefetch the window of a step, and return it with the seconds it took; None: no more.

        If it cannot be read, the run ends after the step before it, which tells all processes.
        """
        if step >= self.config.max_train_steps:
            return None
        try:
            return next(windows)
        except Exception as error:  # noqa: BLE001 - raised in the end, whatever it is
            self.stop.end_with(error)
            return None

    def _begin_change(self) -> None:
        self._is_whole = False

    def _start(self, steps_done: int) -> Moment:
        """Return the moment before the first step."""
        return Moment(
            step=steps_done,
            epoch=0,
            ends_epoch=False,
            is_last=steps_done == self.config.max_train_steps,
            skipped_steps=self.tally.skipped_steps,
        )

    def _after(self, steps_done: int, window: Window, result: StepResult, *, stops: bool) -> Moment:
        """Return the moment after a step."""
        return Moment(
            step=steps_done + 1,
            epoch=window.epoch + 1,
            ends_epoch=window.ends_epoch,
            is_last=steps_done + 1 == self.config.max_train_steps,
            result=result,
            skipped_steps=self.tally.skipped_steps,
            stopping=stops,
        )

    def _tell(self, moment: Moment) -> Moment:
        """Tell the hooks where the run stands."""
        self.moment, self._is_whole = moment, True
        for hook in self.hooks:
            if hook.due(moment):
                optimizer = self._plain_optimizer
                with (
                    averaged_weights(optimizer)
                    if getattr(hook, "reads_weights", True)
                    else nullcontext()
                ):
                    hook.at(moment)
        return moment


def _result(outcome: Outcome, window: Window, seconds: float, waited: float) -> StepResult:
    """Return what the hooks are told of a step."""
    return StepResult(
        loss=outcome.loss if outcome.taken else None,
        sigma_losses=outcome.sigma_losses if outcome.taken else {},
        grad_norm=outcome.grad_norm,
        grad_norms=outcome.grad_norms,
        weight_norms=outcome.weight_norms,
        learning_rates=outcome.learning_rates,
        samples=window.samples,
        batches=window.batches,
        seconds=seconds,
        waited_seconds=waited,
    )
