"""What a training run needs to know, typed and with units: `train` takes it.

Importing this module imports torch: the settings are the dataclasses of the parts that use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anima_pipe.adapters.rules import PartRate
from anima_pipe.dataset.config import DatasetConfig
from anima_pipe.fill import CacheSettings, LatentSettings, TextSettings
from anima_pipe.hooks.alarms import AlarmConfig
from anima_pipe.hooks.board import BoardConfig
from anima_pipe.hooks.previews import PreviewConfig
from anima_pipe.hooks.saving import SaveConfig
from anima_pipe.hooks.train_state import StateConfig
from anima_pipe.hooks.validation import ValidationConfig
from anima_pipe.objective.flow_loss import ObjectiveConfig
from anima_pipe.optimizing.optimizers import OptimizerConfig
from anima_pipe.optimizing.schedules import ScheduleConfig
from anima_pipe.records import PreviewPrompt
from anima_pipe.trainer import TrackerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What is trained on, and the caches it comes from."""

    datasets: tuple[DatasetConfig, ...]
    cache: CacheSettings
    latents: LatentSettings | None
    """How latents are made; None: whatever the only latent cache holds is trained on."""
    text: TextSettings | None
    """How captions are encoded; None: whatever the only text cache holds is trained on."""
    fills_gaps: bool
    """Whether what the caches lack is encoded first; else it is an error."""
    caption_variants: int | None
    crop_variants: int
    rehash: bool
    """Whether pictures are read again although nothing about their files has changed."""
    strict: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """The frozen model and the adapter on it."""

    transformer: Path
    llm_adapter: Path | None
    """The text adapter's own file; None: it is in the transformer's."""
    dtype: torch.dtype
    eight_bit: bool
    """Whether the weights of its blocks are kept in 8 bits."""
    bf16_adapter: bool
    """Whether the adapter's matrices are kept in bf16, rounded by chance."""
    gradient_checkpointing: bool
    adapter_kind: str
    adapter_arguments: Mapping[str, Any]
    """By the names of `create_adapter`."""
    start_from: Path | None
    """An adapter file to go on from, its optimizer afresh."""
    dim_from_weights: bool
    """Whether its rank and alpha are wanted, whatever the arguments say."""
    base_weights: tuple[tuple[Path, float], ...]
    """Adapter files merged into the frozen model first, and their strengths."""
    allow_unmatched: bool
    """Whether what of these files matches nothing is left out."""
    scale_weight_norms: float | None
    """Largest norm of each layer's change; None: any."""
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSettings:
    """How long a run is."""

    steps: int
    epochs: int | None
    """Wins over steps."""
    accumulation: int

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the optimizer steps of the run."""
        return self.epochs * steps_per_epoch if self.epochs is not None else self.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewSettings:
    """What is drawn while training, and with which VAE."""

    prompts: tuple[PreviewPrompt, ...]
    vae: Path
    config: PreviewConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSettings:
    """When a run's state is saved, and which one it goes on from."""

    config: StateConfig
    resume: Path | None
    resume_allow: tuple[str, ...]
    """Facts of the state that may differ; "objective" stands for all of its parts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What a run logs and shows."""

    trackers: TrackerConfig | None
    """None: no log."""
    board: BoardConfig | None
    """TensorBoard to be started; None: none."""
    memory: bool
    """Whether memory is logged."""
    alarms: AlarmConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """Everything that a training run needs to know."""

    mixed_precision: str
    device: str
    seed: int
    states: StateSettings
    data: DataSettings
    model: ModelSettings
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    learning_rate: float
    part_rates: tuple[PartRate, ...]
    """Parts of the model with learning rates of their own."""
    max_grad_norm: float | None
    """Gradients are scaled down to this norm; None: never."""
    skips_non_finite: bool
    schedule: ScheduleConfig
    length: LengthSettings
    validation: ValidationConfig
    save: SaveConfig
    ema_decay: float | None
    """Of the adapter's average that is saved beside it; None: no average."""
    previews: PreviewSettings | None
    logs: LogSettings
