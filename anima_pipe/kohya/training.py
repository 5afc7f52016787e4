"""From resolved options to the typed settings of a training run, all of them checked.

Importing this module imports torch: the settings are the dataclasses of the parts that use them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anima_pipe.adapters.rules import PartRate
from anima_pipe.dataset import DatasetConfig
from anima_pipe.errors import ConfigError
from anima_pipe.fill import CacheSettings, LatentSettings, TextSettings
from anima_pipe.flow_loss import ObjectiveConfig
from anima_pipe.kohya import settings
from anima_pipe.kohya.findings import raise_findings
from anima_pipe.kohya.objective import TAKES_OFFSETS, objective_config
from anima_pipe.kohya.outputs import (
    PreviewSettings,
    StateSettings,
    ema_decay,
    log_folder,
    preview_settings,
    save_config,
    state_settings,
)
from anima_pipe.kohya.parts import (
    ADAPTER_KINDS,
    KIND_DEFAULTS,
    part_findings,
    schedule_config,
)
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.optimizers import OptimizerConfig, find_optimizer
from anima_pipe.runtime import torch_dtype, warn
from anima_pipe.saving import SaveConfig
from anima_pipe.schedules import ScheduleConfig
from anima_pipe.train_state import state_seed
from anima_pipe.validation import ValidationConfig


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
    dtype: torch.dtype
    eight_bit: bool
    """Whether the weights of its blocks are kept in 8 bits."""
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
    scale_weight_norms: float | None
    """Largest norm of each layer's change; None or 0: any."""
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
        return self.epochs * steps_per_epoch if self.epochs else self.steps


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
    max_grad_norm: float
    skips_non_finite: bool
    schedule: ScheduleConfig
    length: LengthSettings
    validation: ValidationConfig
    save: SaveConfig
    ema_decay: float | None
    """Of the adapter's average that is saved beside it; None: no average."""
    previews: PreviewSettings | None
    log_folder: Path | None
    """Of TensorBoard; None: no log."""
    as_text: str
    """Every option and its value, for the log."""


def models_needed(options: Resolved) -> tuple[str, ...]:
    """Return the options that name the model files of a run, bar the tokenizer.

    Without auto_cache a run takes its latents and texts as they are, from whatever encoders: it
    needs none, except for the previews' pictures.
    """
    encoders = ("vae", "qwen3") if options.value("auto_cache") else ()
    previews = ("vae",) if options.value("sample_prompts") else ()
    return tuple(dict.fromkeys(("pretrained_model_name_or_path", *encoders, *previews)))


def require_settings(options: Resolved) -> None:
    """Ask, all at once, for what a run cannot do without and nobody else can supply.

    Raises:
        ConfigError: Something is not set.
    """
    options.require(*models_needed(options), "dataset_config", "output_dir")


def train_settings(options: Resolved, drawn_seed: int) -> TrainSettings:
    """Read and check every setting of a run, before anything is loaded.

    Args:
        options: Of the command.
        drawn_seed: Used where the user set none, as Kohya draws one; a resumed run keeps its own.

    Raises:
        ConfigError: Something required is not set, or a setting cannot be honoured.
        DataError: A folder of the dataset is missing.
    """
    require_settings(options)
    raise_findings([*part_findings(options)])
    states = state_settings(options)
    data = _data(options)
    objective = objective_config(options)
    _warn_of_idle_offsets(data, objective)
    seed: int | None = options.value("seed")
    if seed is None:
        seed = state_seed(states.resume) if states.resume else drawn_seed
    data = _data(options)
    return TrainSettings(
        states=states,
        mixed_precision=options.value("mixed_precision"),
        device=options.value("device"),
        seed=seed,
        data=data,
        model=_model(options, seed),
        objective=objective,
        optimizer=_optimizer(options),
        learning_rate=settings.learning_rate(options),
        part_rates=settings.part_rates(options),
        max_grad_norm=options.value("max_grad_norm"),
        skips_non_finite=options.value("on_nonfinite") == "skip",
        schedule=schedule_config(options),
        length=LengthSettings(
            steps=options.value("max_train_steps"),
            epochs=options.value("max_train_epochs"),
            accumulation=options.value("gradient_accumulation_steps"),
        ),
        validation=_validation(options, data),
        save=save_config(options),
        ema_decay=ema_decay(options),
        previews=preview_settings(options),
        log_folder=log_folder(options),
        as_text="  \n".join(f"{name} = {options.value(name)}" for name in options.defaults),
    )


def _data(options: Resolved) -> DataSettings:
    fills_gaps = options.value("auto_cache")
    if fills_gaps:
        options.require("t5_tokenizer_dir")
    knows_text = options.value("qwen3") and options.value("t5_tokenizer_dir")
    return DataSettings(
        datasets=tuple(settings.dataset_configs(options)),
        cache=settings.cache_settings(options),
        latents=settings.latent_settings(options) if options.value("vae") else None,
        text=settings.text_settings(options) if knows_text else None,
        fills_gaps=fills_gaps,
        caption_variants=options.value("caption_variants"),
        crop_variants=options.value("crop_variants"),
        rehash=options.value("rehash"),
        strict=options.value("strict"),
    )


def _warn_of_idle_offsets(data: DataSettings, objective: ObjectiveConfig) -> None:
    subsets = [subset for dataset in data.datasets for subset in dataset.subsets]
    if not objective.sigmas.takes_offsets and any(subset.sigma_offset for subset in subsets):
        warn(
            "custom_attributes.timestep_sampling.offset has no effect beside this "
            f"timestep_sampling; it acts beside {', '.join(TAKES_OFFSETS)}"
        )


def _validation(options: Resolved, data: DataSettings) -> ValidationConfig:
    """Return when validation is due: after every epoch, unless something else is said."""
    steps: int | None = options.value("validate_every_n_steps")
    epochs: int | None = options.value("validate_every_n_epochs")
    return ValidationConfig(
        every_n_steps=steps,
        every_n_epochs=1 if steps is None and epochs is None else epochs,
        max_batches=options.value("max_validation_steps"),
        # dataset.toml may say it for each subset, but the noise is one matter.
        seed=data.datasets[0].subsets[0].validation_seed,
    )


def _model(options: Resolved, seed: int) -> ModelSettings:
    module: str = options.value("network_module")
    arguments: dict[str, Any] = {
        "network_dim": options.value("network_dim"),
        "network_alpha": options.value("network_alpha"),
        "dropout": options.value("network_dropout") or 0.0,
        "train_norm": options.value("train_norm"),
        "train_llm_adapter": options.value("train_llm_adapter"),
    }
    return ModelSettings(
        transformer=options.value("pretrained_model_name_or_path"),
        dtype=torch_dtype(options.value("mixed_precision")),
        eight_bit=options.value("fp8_base") or options.value("fp8_base_unet"),
        gradient_checkpointing=options.value("gradient_checkpointing"),
        adapter_kind=ADAPTER_KINDS[module],
        adapter_arguments=arguments
        | KIND_DEFAULTS.get(module, {})
        | (options.value("network_args") or {}),
        start_from=options.value("network_weights"),
        dim_from_weights=options.value("dim_from_weights"),
        base_weights=_base_weights(options),
        scale_weight_norms=options.value("scale_weight_norms"),
        seed=seed,
    )


def _base_weights(options: Resolved) -> tuple[tuple[Path, float], ...]:
    """Pair the adapters to merge first with their strengths; one without takes 1, as in Kohya."""
    paths: tuple[str, ...] = tuple(options.value("base_weights") or ())
    given: tuple[str, ...] = tuple(options.value("base_weights_multiplier") or ())
    if len(given) > len(paths):
        raise ConfigError(
            f"base_weights_multiplier has {len(given)} values for {len(paths)} base_weights",
            "give one strength for each file",
        )
    try:
        strengths = [float(strength) for strength in given]
    except ValueError as error:
        raise ConfigError(f"base_weights_multiplier: {error}", "give numbers") from error
    strengths += [1.0] * (len(paths) - len(strengths))
    return tuple((Path(path), strength) for path, strength in zip(paths, strengths, strict=True))


def _optimizer(options: Resolved) -> OptimizerConfig:
    kind: str = options.value("optimizer_type")
    if find_optimizer(kind).averages:
        _refuse_schedule(options, kind)
    return OptimizerConfig(kind=kind, arguments=options.value("optimizer_args") or {})


def _refuse_schedule(options: Resolved, kind: str) -> None:
    """Schedule-free optimizers take neither a schedule nor its warmup; the words are the seed's."""
    schedule = (("lr_scheduler", "constant"), ("lr_warmup_steps", 0), ("lr_scheduler_type", ""))
    for name, wanted in schedule:
        if options.value(name) != wanted:
            raise ConfigError(
                f"optimizer={kind} requires {name}={wanted}, but it is {options.value(name)} "
                f"({options.given(name)})",
                f"set {name} to {wanted}; warmup is an argument of AdamWScheduleFree and "
                "SGDScheduleFree (optimizer_args warmup_steps=100)",
            )
