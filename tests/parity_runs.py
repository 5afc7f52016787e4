"""Ten steps on a small cache, by this project and spelt out with diffusers and torch.

Both sides start from the same weights, and take the same samples, noise, noise levels and captions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers_parity import diffusers_condition, diffusers_velocity
from golden_model import golden_transformer

from anima_pipe.dataset.batches import Batches, Window
from anima_pipe.dataset.plan import Plan
from anima_pipe.dataset.visits import EMPTY_CAPTION, PlannedSample
from anima_pipe.model import AnimaTransformer, TextConditionedTransformer
from anima_pipe.objective.flow_loss import ObjectiveConfig, draw
from anima_pipe.objective.sigmas import SigmaConfig
from anima_pipe.optimizing.optimizers import OptimizerConfig, ParameterGroup, create_optimizer
from anima_pipe.optimizing.schedules import ScheduleConfig, create_schedule
from anima_pipe.records import TextCondition
from anima_pipe.shards import Cache, LatentWriter, TextWriter, open_cache
from anima_pipe.trained import Trained
from anima_pipe.trainer import Trainer, TrainerConfig, draw_seed, prepared, start_accelerate

STEPS = 10
LEARNING_RATE, DECAY, MAX_NORM, SEED = 2e-3, 0.05, 1.0, 9
OPTIMIZER = {"betas": (0.9, 0.99), "eps": 1e-8}
OBJECTIVE = ObjectiveConfig(sigmas=SigmaConfig(sigmoid_scale=1.2, shift=1.5))
BUCKETS = [(12, 20), (16, 12)]
"""Heights and widths of the latents."""
QWEN_LENGTHS = [0, 3, 9, 1, 14, 6]
"""Tokens of the captions; the first is the empty one."""
WEIGHTS = [1.0, 1.0, 0.5, 1.0, 2.0, 0.25]
"""Of each picture's loss."""


@dataclass
class Run:
    """What ten steps came to: their losses, and what they trained, by name."""

    losses: list[float]
    tensors: dict[str, torch.Tensor]


def small_cache(folder: Path) -> Cache:
    """Fill a cache with drawn latents and texts of every length."""
    generator = torch.Generator().manual_seed(3)
    source_width = golden_transformer("a").config.llm_adapter.source_width
    with LatentWriter(folder, "a" * 32, "fp32", "vae") as latents:
        for number in range(len(QWEN_LENGTHS)):
            shape = (16, *BUCKETS[number % len(BUCKETS)])
            latents.add(_latent_key(number), torch.randn(shape, generator=generator), {})
    with TextWriter(folder, "b" * 32, "fp32", "qwen") as texts:
        for number, length in enumerate(QWEN_LENGTHS):
            hidden = torch.randn(length, source_width, generator=generator)
            ids = torch.randint(2, 90, (length + number % 3,), generator=generator)
            condition = TextCondition(hidden, torch.cat([ids, torch.ones(1)]).int())
            texts.add(_text_key(number), condition, {})
    return open_cache(folder)


def _latent_key(number: int) -> str:
    return f"{number:032x}"


def _text_key(number: int) -> str:
    return f"{number:031x}f" if number else EMPTY_CAPTION


def batches_of(cache: Cache, accumulation: int) -> Batches:
    """Return a supply of that cache: two buckets, dropped captions, losses of several weights."""
    samples = [
        PlannedSample(
            name=str(number),
            latents=(_latent_key(number),),
            texts=(_text_key(number),),
            group=(0, *BUCKETS[number % len(BUCKETS)]),
            batch_size=2,
            repeats=3,
            dropout_rate=0.1,
            dropout_every_n_epochs=0,
            loss_weight=WEIGHTS[number],
        )
        for number in range(len(QWEN_LENGTHS))
    ]
    return Batches(
        plan=Plan(samples=tuple(samples), seed=5), cache=cache, accumulation=accumulation
    )


def assert_all_captions(windows: Sequence[Window]) -> None:
    """Check that captions of every length are trained on, the empty one too."""
    masks = [m for w in windows for b in w.micro_batches for m in b.batch.text.qwen_mask]
    assert {int(mask.sum()) for mask in masks} == set(QWEN_LENGTHS)


def our_run(transformer: AnimaTransformer, trained: Trained, batches: Batches) -> Run:
    """Train with this project."""
    optimizer = create_optimizer(
        [
            ParameterGroup(
                name=group.name,
                parameters=group.parameters,
                learning_rate=group.rate(LEARNING_RATE),
                decays=group.decays,
            )
            for group in trained.groups()
        ],
        OptimizerConfig(optimizer_args={**OPTIMIZER, "weight_decay": DECAY}),
    )
    accelerator = start_accelerate("no", cpu=True)
    schedule = _schedule(optimizer)
    module, optimizer = prepared(accelerator, TextConditionedTransformer(transformer), optimizer)
    trainer = Trainer(
        accelerator=accelerator,
        module=module,
        optimizer=optimizer,
        schedule=schedule,
        batches=batches,
        config=TrainerConfig(
            max_train_steps=STEPS, objective=OBJECTIVE, max_grad_norm=MAX_NORM, seed=SEED
        ),
    )
    trainer.run()
    return Run(trainer.tally.losses, dict(trained.state_dict()))


def _schedule(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return create_schedule(
        optimizer, ScheduleConfig(lr_scheduler="cosine", lr_warmup_steps=2), STEPS
    )


@dataclass
class TheirModel:
    """diffusers' transformer and text adapter, whatever trains on them."""

    transformer: torch.nn.Module
    conditioner: torch.nn.Module

    def loss(self, batch: Any, seed: int) -> torch.Tensor:
        """The objective, spelt out; every caption goes through the text adapter on its own."""
        draws = draw(batch.latents.shape, OBJECTIVE, seed)
        noise = draws.noise.target
        sigma = draws.sigmas.view(-1, 1, 1, 1)
        noisy = (1 - sigma) * batch.latents + sigma * noise
        context = torch.cat(list(self._conditions(batch.text)))
        velocity = diffusers_velocity(self.transformer, noisy, draws.sigmas, context)
        errors = torch.nn.functional.mse_loss(velocity, noise - batch.latents, reduction="none")
        weights = torch.tensor([WEIGHTS[int(name)] for name in batch.names])
        return (errors.mean((1, 2, 3)) * weights).mean()

    def _conditions(self, text: Any) -> Iterator[torch.Tensor]:
        for row in range(len(text.t5_ids)):
            hidden = text.qwen_hidden[row : row + 1][:, text.qwen_mask[row]]
            ids = text.t5_ids[row : row + 1][:, text.t5_mask[row]]
            if hidden.shape[1] == 0:
                hidden = torch.zeros(1, 1, hidden.shape[2])
            condition = diffusers_condition(self.conditioner, hidden, ids)[:, : ids.shape[1]]
            yield torch.nn.functional.pad(condition, (0, 0, 0, 512 - ids.shape[1]))


def their_losses(
    model: TheirModel,
    windows: Sequence[Window],
    decaying: Sequence[torch.nn.Parameter],
    others: Sequence[torch.nn.Parameter],
) -> list[float]:
    """Train with torch's AdamW; weight decay pulls at the first of the parameters alone."""
    optimizer = torch.optim.AdamW(
        [
            {"params": decaying, "weight_decay": DECAY},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=LEARNING_RATE,
        **OPTIMIZER,
    )
    schedule = _schedule(optimizer)
    losses: list[float] = []
    for step, window in enumerate(windows):
        total = 0.0
        for share in window.micro_batches:
            loss = model.loss(share.batch, draw_seed(SEED, step, share.place))
            loss = loss / len(window.micro_batches)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_([*decaying, *others], MAX_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses
