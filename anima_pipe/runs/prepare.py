"""From the settings of a run to all that its trainer is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from anima_pipe.adapters import Adapter, create_adapter, load_adapter
from anima_pipe.adapters.adapter import merge_together
from anima_pipe.adapters.continued import continue_adapter
from anima_pipe.adapters.eight_bit import keep_in_eight_bits
from anima_pipe.adapters.sharded import shard
from anima_pipe.dataset.batches import Batches
from anima_pipe.model import BLOCK_LAYERS, AnimaTransformer, load_transformer
from anima_pipe.optimizing.optimizers import ParameterGroup, create_optimizer, sizes_own_steps
from anima_pipe.optimizing.rounding import StochasticRounding
from anima_pipe.optimizing.schedules import create_schedule
from anima_pipe.runs.settings.training import ModelSettings, TrainSettings
from anima_pipe.runtime import Rank, warn
from anima_pipe.trainer import Hook, StopRequest, Tally, Trainer, TrainerConfig, prepared


def prepare_base(
    settings: ModelSettings, device: torch.device, sharded: Rank | None = None
) -> AnimaTransformer:
    """Load the frozen transformer, with the adapters that were to be merged into it.

    Args:
        settings: Which one, and how it is kept.
        device: Where it is wanted.
        sharded: Which of the processes that each keep a part of it this is; None: it stays whole.
    """
    # What is to be halved need not be whole on the device first.
    place = "cpu" if settings.eight_bit or sharded else device
    transformer = load_transformer(
        settings.transformer, settings.dtype, place, llm_adapter=settings.llm_adapter
    )
    transformer.requires_grad_(requires_grad=False)
    transformer.checkpoint_blocks(settings.gradient_checkpointing)
    lenient = settings.allow_unmatched
    merge_together(
        [
            load_adapter(path, transformer, strength, allow_unmatched=lenient)
            for path, strength in settings.base_weights
        ]
    )
    if settings.eight_bit:
        keep_in_eight_bits(transformer, BLOCK_LAYERS)
    if sharded:
        shard(transformer, sharded)
    return transformer.to(device)


def prepare_model(
    settings: TrainSettings, device: torch.device, sharded: Rank | None = None
) -> tuple[AnimaTransformer, Adapter]:
    """Load the frozen transformer, see `prepare_base`, and put the adapter on it."""
    model = settings.model
    transformer = prepare_base(model, device, sharded)
    arguments: dict[str, Any] = {
        **model.adapter_arguments,
        "parts": settings.part_rates,
        # To an optimizer that finds its own steps a rate says nothing, nor that it is 0.
        "learning_rate": None if sizes_own_steps(settings.optimizer) else settings.learning_rate,
    }
    if model.start_from is None:
        adapter = create_adapter(model.adapter_kind, transformer, seed=model.seed, **arguments)
        return transformer, adapter
    adapter, differences = continue_adapter(
        model.start_from,
        model.adapter_kind,
        transformer,
        dim_from_weights=model.dim_from_weights,
        allow_unmatched=model.allow_unmatched,
        **arguments,
    )
    for difference in differences:
        warn(f"network_weights {model.start_from.name}: {difference}")
    return transformer, adapter


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
    settings: TrainSettings, adapter: Adapter
) -> tuple[Optimizer, StochasticRounding | None]:
    """Return the optimizer, and what keeps the adapter in bf16 between its steps if it is to be."""
    if settings.model.bf16_adapter:
        adapter.start_from_rounded(torch.bfloat16)
    groups = rated_groups(settings, adapter)
    if settings.optimizer.arguments.get("weight_decay") and not any(g.decays for g in groups):
        warn("weight_decay has no effect: what trains has no tensors that it may pull at")
    optimizer = create_optimizer(groups, settings.optimizer)
    if (largest := settings.model.scale_weight_norms) is not None:
        optimizer.register_step_post_hook(lambda *_: adapter.limit_norms(largest))
    if not settings.model.bf16_adapter:
        return optimizer, None
    return optimizer, StochasticRounding(optimizer, adapter.matrices(), settings.seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What trains and on what: all that a trainer is made of but for what happens beside the steps.

    Its hooks, its saved states and its reports look at this.
    """

    accelerator: Accelerator
    adapter: Adapter
    module: nn.Module
    """The model with its adapter, prepared for the processes of the run."""
    optimizer: AcceleratedOptimizer
    """Prepared too."""
    rounding: StochasticRounding | None
    """What keeps the adapter in bf16 between the optimizer's steps; None: it is not kept so."""
    schedule: LRScheduler
    batches: Batches
    """Of this process."""
    config: TrainerConfig

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
    accelerator: Accelerator,
    adapter: Adapter,
    module: nn.Module,
    batches: Batches,
) -> Training:
    """Make optimizer and schedule, and prepare them and the model for the processes of the run.

    Args:
        settings: Of the run.
        accelerator: From `start_accelerate`.
        adapter: What is trained.
        module: The model that it is on; forward(latents, sigmas, qwen_hidden, t5_ids, qwen_mask,
            t5_mask) -> velocity.
        batches: Of this process.
    """
    steps = settings.length.total_steps(batches.windows_per_epoch())
    plain_optimizer, rounding = prepare_optimizer(settings, adapter)
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
            seed=settings.seed,
            dtype=settings.model.dtype,
            skips_non_finite=settings.skips_non_finite,
        ),
    )
