"""The training loop; it is handed everything it trains with and builds none of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import AutocastKwargs, InitProcessGroupKwargs, broadcast
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anima_pipe.batches import Batches, Window
from anima_pipe.errors import ConfigError, PipeError
from anima_pipe.flow_loss import ObjectiveConfig, add_noise, draw, sample_losses, velocity_target
from anima_pipe.optimizers import averaged_weights, step_size
from anima_pipe.records import Batch, Moment
from anima_pipe.runtime import derive_seed, launched_rank


class Hook(Protocol):
    """Something that happens besides the steps: saving, previews, tracking."""

    reads_weights: bool
    """Whether it looks at the adapter; it is then shown the weights that are worth saving."""

    def due(self, moment: Moment) -> bool:
        """Tell whether it acts at this moment."""
        ...

    def at(self, moment: Moment) -> None:
        """Act; called when it is due, on the main process alone."""


@runtime_checkable
class Closing(Protocol):
    """A hook that has something to put away when the run ends, be it by an error."""

    def close(self) -> None:
        """Put it away."""
        ...


PATIENCE = timedelta(days=7)
"""How long a process waits for another: one may encode a large dataset, or draw previews."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerConfig:
    """The numbers of the loop."""

    max_train_steps: int
    objective: ObjectiveConfig
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0: never."""
    seed: int = 0
    dtype: torch.dtype = torch.float32
    """Of the frozen weights, and of what is fed to them."""


def start_accelerate(mixed_precision: str, *, cpu: bool = False) -> Accelerator:
    """Join the processes that `accelerate launch` started, or be the only one.

    The model casts explicitly, so autocast stays off; accelerate's precision is there for fp16's
    gradient scaler.

    Args:
        mixed_precision: no, bf16 or fp16.
        cpu: Stay on the CPU although there is a GPU.

    Raises:
        ConfigError: Several processes were started that cannot join.
    """
    accelerator = Accelerator(
        mixed_precision=mixed_precision,
        cpu=cpu,
        kwargs_handlers=[AutocastKwargs(enabled=False), InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    launched = launched_rank().processes
    if accelerator.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were started, but on {accelerator.device} they cannot join",
            "start one process",
        )
    return accelerator


def agree_on_seed(accelerator: Accelerator) -> int:
    """Draw a seed, the same one on every process."""
    drawn = torch.randint(2**31, (1,), generator=_fresh_generator()).to(accelerator.device)
    shared = broadcast(drawn)
    assert isinstance(shared, torch.Tensor)
    return int(shared.item())


def _fresh_generator() -> torch.Generator:
    generator = torch.Generator()
    generator.seed()
    return generator


class Trainer:
    """Rectified-flow training of whatever in the module requires gradients.

    Args:
        accelerator: From `start_accelerate`.
        module: forward(latents, sigmas, qwen_hidden, t5_ids, qwen_mask, t5_mask) -> velocity.
        optimizer: Over the module's trainable parameters.
        schedule: Of the learning rates; stepped once per optimizer step.
        batches: The supply of data, of this process.
        config: The numbers.
        hooks: What else happens, in this order.
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
        self.module = accelerator.prepare_model(module)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self._plain_optimizer = optimizer
        self.schedule = schedule
        self.batches = batches
        self.config = config
        self.hooks = hooks
        self.should_stop = should_stop
        self.losses: list[float] = []
        """Mean loss of every step that this trainer took."""
        self.trainable = [
            parameter for group in optimizer.param_groups for parameter in group["params"]
        ]

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
        moment = self._tell(steps_done)
        for window in self.batches.starting_at(steps_done):
            if moment.is_last or moment.stopping:
                break
            moment = self._train_step(moment.step, window)
        return moment

    def set_learning_rates(self, rates: Mapping[str, float]) -> None:
        """Train on at other rates, by the names of the groups, from where the schedule is."""
        groups = self.optimizer.param_groups
        self.schedule.base_lrs = [rates[group["name"]] for group in groups]
        for group, rate in zip(groups, self.schedule.base_lrs, strict=True):
            factor = group["lr"] / group["initial_lr"] if group["initial_lr"] else 1.0
            group["initial_lr"], group["lr"] = rate, rate * factor

    def share_seed(self, step: int, number: int) -> int:
        """Return the seed of this process's share `number` (from 0) of optimizer step `step`.

        It depends on the batch's place in the window alone: two processes draw for their batches
        what one process would draw for the same batches.
        """
        place = number * self.batches.processes + self.batches.rank
        return derive_seed("draw", self.config.seed, step, place)

    def _train_step(self, step: int, window: Window) -> Moment:
        """Do one optimizer step and tell the hooks."""
        losses: list[torch.Tensor] = []
        for number, share in enumerate(window.shares):
            is_last = number + 1 == len(window.shares)
            with nullcontext() if is_last else self.accelerator.no_sync(self.module):
                loss = self._batch_loss(share.batch, self.share_seed(step, number)) * share.weight
                self.accelerator.backward(loss)
            losses.append(loss.detach())
        stop = torch.tensor(float(self.should_stop()), device=self.accelerator.device)
        loss, stop = self._mean_over_processes(torch.stack([torch.stack(losses).sum(), stop]))
        grad_norm = self._clip_gradients()
        self._refuse_non_finite(step, loss, grad_norm, window)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.losses.append(loss)
        return self._tell(step + 1, window, loss, grad_norm, stopping=stop > 0)

    def _batch_loss(self, batch: Batch, seed: int) -> torch.Tensor:
        """Return the mean of the samples' weighted losses, a Float32 scalar."""
        device, dtype = self.accelerator.device, self.config.dtype
        draws = draw(batch.latents.shape, self.config.objective, seed)
        latents = batch.latents.to(device, torch.float32, non_blocking=True)
        sigmas, noise = draws.sigmas.to(device), draws.noise.input.to(device)
        target = velocity_target(latents, draws.noise.target.to(device))
        text = batch.text.to(device, dtype)
        # Dropout inside the adapter draws from the global generator.
        torch.manual_seed(seed)
        velocity = self.module(
            add_noise(latents, noise, sigmas).to(dtype),
            sigmas,
            text.qwen_hidden,
            text.t5_ids,
            text.qwen_mask,
            text.t5_mask,
        )
        losses = sample_losses(velocity, target, sigmas, self.config.objective.loss)
        return (losses * batch.weights.to(device)).mean()

    def _mean_over_processes(self, values: torch.Tensor) -> list[float]:
        """Return the mean of each value over the processes; one wait for the device."""
        mean = self.accelerator.reduce(values, "mean")
        assert isinstance(mean, torch.Tensor)
        return mean.tolist()

    def _clip_gradients(self) -> float:
        """Scale the gradients down to the norm allowed; return their norm before."""
        limit = self.config.max_grad_norm or math.inf
        norm = self.accelerator.clip_grad_norm_(self.trainable, limit)
        return float(norm) if norm is not None else math.nan

    def _refuse_non_finite(self, step: int, loss: float, grad_norm: float, window: Window) -> None:
        """Stop before the optimizer takes in what cannot be taken back.

        Infinite gradients are in order under fp16: the gradient scaler skips that step and
        scales less from then on.
        """
        scaled = self.accelerator.scaler is not None
        if math.isfinite(loss) and (scaled or math.isfinite(grad_norm)):
            return
        names = ", ".join(name for share in window.shares for name in share.batch.names)
        raise PipeError(
            f"step {step + 1}: loss {loss}, gradient norm {grad_norm}, on {names}",
            "lower learning_rate, or use mixed_precision bf16, and look at those pictures",
        )

    def _tell(
        self,
        step: int,
        window: Window | None = None,
        loss: float | None = None,
        grad_norm: float | None = None,
        *,
        stopping: bool = False,
    ) -> Moment:
        """Tell the hooks where the run stands, on the main process."""
        moment = Moment(
            step=step,
            epoch=window.epoch + 1 if window else 0,
            ends_epoch=window.ends_epoch if window else False,
            is_last=step == self.config.max_train_steps,
            loss=loss,
            learning_rates={g["name"]: step_size(g) for g in self.optimizer.param_groups},
            grad_norm=grad_norm,
            samples=window.samples if window else 0,
            stopping=stopping,
        )
        if self.accelerator.is_main_process:
            self._run_hooks(moment)
        return moment

    def _run_hooks(self, moment: Moment) -> None:
        for hook in self.hooks:
            if hook.due(moment):
                optimizer = self._plain_optimizer
                with averaged_weights(optimizer) if hook.reads_weights else nullcontext():
                    hook.at(moment)
