"""From the settings of a run to the parts of its trainer: model, adapter, optimizer, schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anima_pipe.adapters import Adapter, create_adapter, load_adapter
from anima_pipe.adapters.adapter import merge_together
from anima_pipe.adapters.continued import continue_adapter
from anima_pipe.adapters.eight_bit import keep_in_eight_bits
from anima_pipe.adapters.sharded import shard
from anima_pipe.dataset.batches import Batches
from anima_pipe.model import (
    BLOCK_LAYERS,
    AnimaTransformer,
    load_transformer,
)
from anima_pipe.optimizing.optimizers import ParameterGroup, create_optimizer, sizes_own_steps
from anima_pipe.optimizing.rounding import StochasticRounding
from anima_pipe.optimizing.schedules import create_schedule
from anima_pipe.runs.settings.training import ModelSettings, TrainSettings
from anima_pipe.runtime import Rank, warn
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


def adapter_arguments(settings: TrainSettings) -> dict[str, Any]:
    """Return what `create_adapter` takes besides kind, model and seed."""
    return {
        **settings.adapter.arguments,
        "parts": settings.adapter.part_rates,
        # To an optimizer that finds its own steps a rate says nothing, nor that it is 0.
        "learning_rate": None if sizes_own_steps(settings.optimizer) else settings.learning_rate,
    }


def load_base(
    settings: ModelSettings, device: torch.device | str, sharded: Rank | None = None
) -> AnimaTransformer:
    """Load the frozen transformer, with the adapters that were to be merged into it.

    Several trainings in one process may share it, one after the other: see `train`.

    Args:
        settings: Which one, and how it is kept.
        device: Where it is wanted.
        sharded: This process, where the processes keep a part of it each; None: it stays whole.

    Raises:
        CheckpointError: A file is missing, of another model or damaged.
    """
    # What is to be halved need not be whole on the device first.
    place = "cpu" if settings.fp8_base or sharded else device
    transformer = load_transformer(
        settings.transformer, settings.dtype, place, llm_adapter=settings.llm_adapter
    )
    transformer.requires_grad_(requires_grad=False)
    lenient = settings.allow_unmatched
    merge_together(
        [
            load_adapter(path, transformer, strength, allow_unmatched=lenient)
            for path, strength in settings.base_weights
        ]
    )
    if settings.fp8_base:
        keep_in_eight_bits(transformer, BLOCK_LAYERS)
    if sharded:
        shard(transformer, sharded)
    return transformer.to(device)


def prepare_adapter(settings: TrainSettings, seed: int, transformer: AnimaTransformer) -> Adapter:
    """Put the adapter on the transformer: a fresh one, or one that goes on from a file."""
    adapter, start = settings.adapter, settings.adapter.network_weights
    arguments = adapter_arguments(settings)
    if start is None:
        return create_adapter(adapter.kind, transformer, seed=seed, **arguments)
    continued, differences = continue_adapter(
        start,
        adapter.kind,
        transformer,
        dim_from_weights=adapter.dim_from_weights,
        allow_unmatched=settings.model.allow_unmatched,
        **arguments,
    )
    for difference in differences:
        warn(f"network_weights {start.name}: {difference}")
    return continued


def rated_groups(settings: TrainSettings, adapter: Adapter) -> list[ParameterGroup]:
    """Return the trained tensors by learning rate and decay."""
    return [
        ParameterGroup(
            name=group.name,
            parameters=group.parameters,
            learning_rate=group.rate(settings.learning_rate),
            decays=group.decays,
        )
        for group in adapter.groups()
    ]


def prepare_optimizer(
    settings: TrainSettings, seed: int, adapter: Adapter
) -> tuple[Optimizer, StochasticRounding | None]:
    """Return the optimizer and, with full_bf16, what keeps the adapter in bf16 between steps."""
    if settings.adapter.full_bf16:
        adapter.start_from_rounded(torch.bfloat16)
    groups = rated_groups(settings, adapter)
    if settings.optimizer.optimizer_args.get("weight_decay") and not any(g.decays for g in groups):
        warn("weight_decay has no effect: what trains has no tensors that it may pull at")
    optimizer = create_optimizer(groups, settings.optimizer)
    if (largest := settings.adapter.scale_weight_norms) is not None:
        optimizer.register_step_post_hook(lambda *_: adapter.limit_norms(largest))
    if not settings.adapter.full_bf16:
        return optimizer, None
    return optimizer, StochasticRounding(optimizer, adapter.matrices(), seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """The parts of a run, all but its hooks; hooks, states and reports are made from it."""

    accelerator: Accelerator
    adapter: Adapter
    module: nn.Module
    """The model with its adapter, prepared for the processes of the run."""
    optimizer: AcceleratedOptimizer
    """Prepared too."""
    rounding: StochasticRounding | None
    """Keeps the adapter in bf16 between optimizer steps; None: it stays in fp32."""
    schedule: LRScheduler
    batches: Batches
    """Of this process."""
    config: TrainerConfig

    @property
    def transformer(self) -> AnimaTransformer:
        """The model that the adapter is on."""
        return cast("AnimaTransformer", self.adapter.model)

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
    adapter: Adapter,
    module: nn.Module,
    batches: Batches,
) -> Training:
    """Make optimizer and schedule, and prepare them and the model for the processes of the run.

    Args:
        settings: Of the run.
        seed: That it is trained with.
        accelerator: From `start_accelerate`.
        adapter: What is trained.
        module: The model that it is on; forward(latents, sigmas, qwen_hidden, t5_ids, qwen_mask,
            t5_mask) -> velocity.
        batches: Of this process.
    """
    steps = settings.length.total_steps(batches.windows_per_epoch())
    plain_optimizer, rounding = prepare_optimizer(settings, seed, adapter)
    schedule = create_schedule(plain_optimizer, settings.schedule, steps)
    prepared_module, optimizer = prepared(accelerator, module, plain_optimizer)
    return Training(
        accelerator=accelerator,
        adapter=adapter,
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
