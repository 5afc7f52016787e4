"""From the settings of a run, and what it trains, to the parts of its trainer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anima_pipe.dataset.batches import Batches
from anima_pipe.hooks.saving import Write
from anima_pipe.hooks.validation import ModelInUse
from anima_pipe.model import AnimaTransformer
from anima_pipe.optimizing.optimizers import (
    ParameterGroup,
    create_optimizer,
    steps_by_tensor,
)
from anima_pipe.optimizing.rounding import StochasticRounding
from anima_pipe.optimizing.schedules import create_schedule
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.runs.subject import Subject
from anima_pipe.runtime import warn
from anima_pipe.trained import Trained
from anima_pipe.trainer import (
    Hook,
    StopRequest,
    Tally,
    Trainer,
    TrainerConfig,
    prepared,
)

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


def rated_groups(settings: TrainSettings, trained: Trained) -> list[ParameterGroup]:
    """Return the trained tensors by learning rate and decay."""
    return [
        ParameterGroup(
            name=group.name,
            parameters=group.parameters,
            learning_rate=group.rate(settings.learning_rate),
            decays=group.decays,
        )
        for group in trained.groups()
    ]


def prepare_optimizer(
    settings: TrainSettings, seed: int, subject: Subject
) -> tuple[Optimizer, StochasticRounding | None]:
    """Return the optimizer and, with full_bf16, what keeps the weights in bf16 between steps."""
    trained, after_step = subject.trained, subject.after_step
    if settings.adapter.full_bf16:
        trained.start_from_rounded(torch.bfloat16)
    groups = rated_groups(settings, trained)
    if settings.optimizer.optimizer_args.get("weight_decay") and not any(g.decays for g in groups):
        warn("weight_decay has no effect: what trains has no tensors that it may pull at")
    optimizer = create_optimizer(groups, settings.optimizer)
    if after_step is not None:
        optimizer.register_step_post_hook(lambda *_: after_step())
    if not settings.adapter.full_bf16:
        return optimizer, None
    # What is done after a step wants to see all of it.
    by_tensor = steps_by_tensor(settings.optimizer) and after_step is None
    rounding = StochasticRounding(optimizer, trained.matrices(), seed, piecewise=by_tensor)
    return optimizer, rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The parts of a run, all but its hooks; hooks, states and reports are made from it."""

    accelerator: Accelerator
    trained: Trained
    """The adapter, or the model itself."""
    write: Write
    """Writes a file of it."""
    module: nn.Module
    """The model, prepared for the processes of the run."""
    optimizer: AcceleratedOptimizer
    """Prepared too."""
    rounding: StochasticRounding | None
    """Keeps what trains in bf16 between optimizer steps; None: it stays in fp32."""
    schedule: LRScheduler
    batches: Batches
    """Of this process."""
    config: TrainerConfig

    @property
    def model_in_use(self) -> ModelInUse:
        """The model as it is looked at between the steps."""
        # Alone: a module that averages gradients over the processes expects a backward pass.
        module = self.accelerator.unwrap_model(self.module)
        device, dtype = self.accelerator.device, self.config.dtype
        return ModelInUse(module=module, device=device, dtype=dtype)

    @property
    def transformer(self) -> AnimaTransformer:
        """The model that is run."""
        return cast("AnimaTransformer", self.trained.model)

    def trainer(self, hooks: Sequence[Hook], stop: StopRequest, tally: Tally) -> Trainer:
        """Return the loop over it; see `Trainer`."""
        return Trainer(
            accelerator=self.accelerator,
            module=self.module,
            optimizer=self.optimizer,
            schedule=self.schedule,
            batches=self.batches,
            config=self.config,
            hooks=hooks,
            stop=stop,
            tally=tally,
        )


def prepare_training(
    settings: TrainSettings,
    seed: int,
    accelerator: Accelerator,
    subject: Subject,
    module: nn.Module,
    batches: Batches,
) -> Training:
    """Make optimizer and schedule, and prepare them and the model for the processes of the run.

    Args:
        settings: Of the run.
        seed: That it is trained with.
        accelerator: From `start_accelerate`.
        subject: What is trained.
        module: The model; forward(latents, sigmas, qwen_hidden, t5_ids, qwen_mask,
            t5_mask) -> velocity.
        batches: Of this process.
    """
    steps = settings.length.total_steps(batches.windows_per_epoch())
    plain_optimizer, rounding = prepare_optimizer(settings, seed, subject)
    schedule = create_schedule(plain_optimizer, settings.schedule, steps)
    prepared_module, optimizer = prepared(accelerator, module, plain_optimizer)
    return Training(
        accelerator=accelerator,
        trained=subject.trained,
        write=subject.write,
        module=prepared_module,
        optimizer=optimizer,
        rounding=rounding,
        schedule=schedule,
        batches=batches,
        config=TrainerConfig(
            max_train_steps=steps,
            objective=settings.objective,
            max_grad_norm=settings.max_grad_norm,
            seed=seed,
            dtype=settings.model.dtype,
            skips_non_finite=settings.on_nonfinite == "skip",
        ),
    )
