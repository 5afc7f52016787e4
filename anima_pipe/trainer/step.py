"""One optimizer step: forward and backward over its batches, clipping, and the update."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Final

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anima_pipe.dataset.batches import MicroBatch, Window
from anima_pipe.errors import PipeError
from anima_pipe.objective.flow_loss import ObjectiveConfig, draw
from anima_pipe.objective.passes import PlacedBatch, pass_losses, placed
from anima_pipe.optimizing.optimizers import learning_rates
from anima_pipe.optimizing.schedules import step_without_training
from anima_pipe.runtime import derive_seed, warn
from anima_pipe.trainer.measures import Outcome, StepMeasures, group_norms

SKIPS_IN_A_ROW: Final = 20
"""Where so many steps in a row cannot be taken, the adapter itself is past mending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig:
    """The numbers of the loop."""

    max_train_steps: int
    objective: ObjectiveConfig
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this norm; None: never."""
    seed: int = 0
    dtype: torch.dtype = torch.float32
    """Of the frozen weights, and of what is fed to them."""
    skips_non_finite: bool = False
    """Whether a step whose loss or gradient is not finite is passed over; else the run stops.

    A gradient that overflows because it is scaled up for fp16 is passed over in either case.
    """


class NonFiniteError(PipeError):
    """A loss or a gradient is not finite; the optimizer has not seen it."""


def draw_seed(seed: int, step: int, place: int) -> int:
    """Return the seed of all random numbers of one batch.

    It depends on the batch's place in the window alone: two processes draw for their batches what
    one process would draw for the same batches.

    Args:
        seed: Of the run.
        step: Optimizer steps done before.
        place: Number of the batch among all batches of the step.
    """
    return derive_seed("draw", seed, step, place)


class TrainStep:
    """Takes the steps of a run.

    Args:
        accelerator: From `start_accelerate`.
        module: Prepared by it; forward(latents, sigmas, qwen_hidden, t5_ids, qwen_mask, t5_mask).
        optimizer: Prepared by it.
        schedule: Stepped once per optimizer step.
        config: The numbers.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler,
        config: TrainerConfig,
    ) -> None:
        self.accelerator = accelerator
        self.module = module
        self.optimizer = optimizer
        self.schedule = schedule
        self.config = config
        self._groups: list[list[nn.Parameter]] = [g["params"] for g in optimizer.param_groups]
        self._skips_in_a_row = 0

    def __call__(self, step: int, window: Window, *, stop: bool) -> Outcome:
        """Train on one window.

        Args:
            step: Optimizer steps done before.
            window: This process's batches.
            stop: Whether this process was asked to stop.

        Raises:
            NonFiniteError: The loss or the gradient is not finite, and steps are not to be skipped,
                or too many in a row were skipped.
        """
        measures = StepMeasures(self.accelerator.device)
        # All of them before the first pass: from there to the last gradient nothing is waited for.
        batches = [self._placed(micro_batch, step) for micro_batch in window.micro_batches]
        for micro_batch, batch in zip(window.micro_batches, batches, strict=True):
            is_last = micro_batch is window.micro_batches[-1]
            seed = draw_seed(self.config.seed, step, micro_batch.place)
            with nullcontext() if is_last else self.accelerator.no_sync(self.module):
                losses = self._sample_losses(batch, seed)
                self.accelerator.backward(losses.mean() * micro_batch.weight)
            measures.add(losses, batch.sigmas, micro_batch.weight)
        norms, rates = self._clip(), learning_rates(self.optimizer)
        outcome = measures.over_processes(self.accelerator, norms, rates, stop=stop)
        if math.isfinite(outcome.loss) and math.isfinite(outcome.grad_norm):
            self._skips_in_a_row = 0
            self.optimizer.step()
            self.schedule.step()
        else:
            self._pass_over(step, outcome, window)
            outcome = replace(outcome, taken=False)
        self.optimizer.zero_grad()
        return outcome

    def _placed(self, micro_batch: MicroBatch, step: int) -> PlacedBatch:
        """Draw a batch's noise and bring both to the device."""
        batch, seed = micro_batch.batch, draw_seed(self.config.seed, step, micro_batch.place)
        draws = draw(batch.latents.shape, self.config.objective, seed, batch.sigma_offsets)
        return placed(batch, draws, self.accelerator.device, self.config.dtype)

    def _sample_losses(self, batch: PlacedBatch, seed: int) -> torch.Tensor:
        """Return each sample's weighted loss, Float32[B]."""
        # Dropout inside the adapter draws from the global generator.
        torch.manual_seed(seed)
        return pass_losses(self.module, batch, self.config.objective.loss) * batch.weights

    def _clip(self) -> torch.Tensor:
        """Scale the gradients down to the norm allowed; return the norms before, see `measures`."""
        limit = math.inf if self.config.max_grad_norm is None else self.config.max_grad_norm
        parameters = [parameter for group in self._groups for parameter in group]
        norm = self.accelerator.clip_grad_norm_(parameters, limit)
        total = torch.tensor(math.nan) if norm is None else torch.as_tensor(norm)
        return group_norms(self._groups, total, limit)

    def _pass_over(self, step: int, outcome: Outcome, window: Window) -> None:
        """Leave the weights as they are and warn, or stop."""
        # Every process is here, for the numbers are the same on all of them.
        own = [name for micro_batch in window.micro_batches for name in micro_batch.batch.names]
        names = ", ".join(dict.fromkeys(gather_object(own)))
        problem = f"step {step + 1}: loss {outcome.loss}, gradient norm {outcome.grad_norm}"
        self._skips_in_a_row += 1
        skips = self.config.skips_non_finite or self._is_overflow(outcome)
        if not skips or self._skips_in_a_row == SKIPS_IN_A_ROW:
            times = f" for the {SKIPS_IN_A_ROW}th time in a row" * skips
            in_fp16 = ", or use mixed_precision bf16" * (self.config.dtype == torch.float16)
            raise NonFiniteError(
                f"{problem}{times}, on {names}",
                f"lower learning_rate{in_fp16}, and look at those pictures"
                + "; on_nonfinite skip passes over such steps" * (not skips),
            )
        warn(f"{problem}: passed over{self._lower_scale()}, on {names}")
        step_without_training(self.schedule)

    def _is_overflow(self, outcome: Outcome) -> bool:
        """Tell whether a gradient left fp16's range because the loss was scaled up too much.

        That is in order: the scale is raised from time to time until it happens.
        """
        return self.accelerator.scaler is not None and math.isfinite(outcome.loss)

    def _lower_scale(self) -> str:
        """Scale the loss up less from now on where the gradients overflowed; return words on it."""
        scaler = self.accelerator.scaler
        if scaler is None:
            return ""
        before = scaler.get_scale()
        # It has seen these gradients when they were clipped.
        scaler.update()
        return f" and fp16's loss scale lowered from {before:g} to {scaler.get_scale():g}"
