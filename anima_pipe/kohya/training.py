"""From resolved options to the typed settings of a training run, all of them checked.

Importing this module imports torch: the settings are the dataclasses of the parts that use them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anima_pipe.dataset import DatasetConfig
from anima_pipe.errors import ConfigError
from anima_pipe.fill import CacheSettings, LatentSettings, TextSettings
from anima_pipe.flow_loss import WEIGHTINGS, LossConfig, ObjectiveConfig
from anima_pipe.kohya import settings
from anima_pipe.kohya.findings import raise_findings
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rules import SEED_SHIFT
from anima_pipe.noise import NoiseConfig
from anima_pipe.optimizers import OptimizerConfig, find_optimizer
from anima_pipe.previews import PreviewConfig
from anima_pipe.records import PreviewPrompt
from anima_pipe.runtime import torch_dtype
from anima_pipe.saving import SaveConfig
from anima_pipe.schedules import ScheduleConfig
from anima_pipe.sigmas import SigmaConfig
from anima_pipe.train_state import StateConfig, latest_state, state_seed

ADAPTER_KINDS = {
    "networks.lora_anima": "lora",
    "networks.lokr_anima": "lokr",
    "networks.lokr": "lokr",
    "networks.loha": "loha",
    "networks.tlora_anima": "tlora",
}
"""network_module by Kohya and the seed, and the kind of adapter that it means."""

KIND_DEFAULTS: dict[str, dict[str, object]] = {"networks.lokr": {"lokr_factor": -1}}
"""Where one of them starts from other settings than its kind's."""


TIMESTEPS = 1000
"""Kohya's timesteps of sigma 1."""


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
    """What may differ from what the state was made with."""


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
    max_grad_norm: float
    schedule: ScheduleConfig
    length: LengthSettings
    save: SaveConfig
    ema_decay: float | None
    """Of the adapter's average that is saved beside it; None: no average."""
    previews: PreviewSettings | None
    log_folder: Path | None
    """Of TensorBoard; None: no log."""
    as_text: str
    """Every option and its value, for the log."""


def train_settings(options: Resolved, drawn_seed: int) -> TrainSettings:
    """Read and check every setting of a run, before anything is loaded.

    Args:
        options: Of the command.
        drawn_seed: Used where the user set none, as Kohya draws one; a resumed run keeps its own.

    Raises:
        ConfigError: Something required is not set, or a setting cannot be honoured.
        DataError: A folder of the dataset is missing.
    """
    from anima_pipe.kohya.parts import part_findings

    options.require("pretrained_model_name_or_path", "dataset_config", "output_dir")
    raise_findings([*part_findings(options)])
    states = _states(options)
    seed: int | None = options.value("seed")
    if seed is None:
        seed = state_seed(states.resume) if states.resume else drawn_seed
    return TrainSettings(
        states=states,
        mixed_precision=options.value("mixed_precision"),
        device=options.value("device"),
        seed=seed,
        data=_data(options),
        model=_model(options, seed),
        objective=ObjectiveConfig(
            sigmas=_sigmas(options), noise=_noise(options), loss=_loss(options)
        ),
        optimizer=_optimizer(options),
        learning_rate=_learning_rate(options),
        max_grad_norm=options.value("max_grad_norm"),
        schedule=ScheduleConfig(
            kind=options.value("lr_scheduler"),
            warmup=options.value("lr_warmup_steps"),
            num_cycles=options.value("lr_scheduler_num_cycles"),
            power=options.value("lr_scheduler_power"),
            min_lr_ratio=options.value("lr_scheduler_min_lr_ratio") or 0.0,
        ),
        length=LengthSettings(
            steps=options.value("max_train_steps"),
            epochs=options.value("max_train_epochs"),
            accumulation=options.value("gradient_accumulation_steps"),
        ),
        save=_save(options),
        ema_decay=_ema_decay(options),
        previews=_previews(options),
        log_folder=_log_folder(options),
        as_text="  \n".join(f"{name} = {options.value(name)}" for name in options.defaults),
    )


def _data(options: Resolved) -> DataSettings:
    fills_gaps = options.value("auto_cache")
    if fills_gaps:
        options.require("vae", "qwen3", "t5_tokenizer_dir")
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


def _sigmas(options: Resolved) -> SigmaConfig:
    """Return how noise levels are drawn, from Kohya's names for it.

    Kohya's shift acts under timestep_sampling shift and sigma alone, the seed's under all. Under
    sigma, weighting_scheme names the distribution, of a time that runs from noise to clean.
    """
    sampling: str = options.value("timestep_sampling")
    scheme: str = options.value("weighting_scheme")
    by_scheme = sampling == "sigma"
    shifts = sampling in ("shift", "sigma")
    shifts |= options.spelling("discrete_flow_shift") == SEED_SHIFT
    logit_normal = scheme == "logit_normal" if by_scheme else sampling != "uniform"
    lowest, highest = options.value("min_timestep"), options.value("max_timestep")
    return SigmaConfig(
        distribution="logit_normal"
        if logit_normal
        else ("mode" if by_scheme and scheme == "mode" else "uniform"),
        mean=-options.value("logit_mean") if by_scheme else 0.0,
        sigmoid_scale=options.value("logit_std" if by_scheme else "sigmoid_scale"),
        mode_scale=options.value("mode_scale"),
        shift=options.value("discrete_flow_shift") if shifts else 1.0,
        shift_by_size=sampling == "flux_shift",
        lowest=0.0 if lowest is None else lowest / TIMESTEPS,
        highest=1.0 if highest is None else highest / TIMESTEPS,
    )


def _noise(options: Resolved) -> NoiseConfig:
    return NoiseConfig(
        offset=options.value("noise_offset") or 0.0,
        offset_random=options.value("noise_offset_random_strength"),
        multires_iterations=options.value("multires_noise_iterations") or 0,
        multires_discount=options.value("multires_noise_discount"),
        input_gamma=options.value("ip_noise_gamma") or 0.0,
        input_gamma_random=options.value("ip_noise_gamma_random_strength"),
    )


def _loss(options: Resolved) -> LossConfig:
    scheme: str = options.value("weighting_scheme")
    return LossConfig(
        kind=options.value("loss_type"),
        huber_c=options.value("huber_c"),
        huber_scale=options.value("huber_scale"),
        huber_schedule=options.value("huber_schedule"),
        weighting=scheme if scheme in WEIGHTINGS else "none",
    )


def _optimizer(options: Resolved) -> OptimizerConfig:
    kind: str = options.value("optimizer_type")
    if find_optimizer(kind).averages:
        _refuse_schedule(options, kind)
    return OptimizerConfig(kind=kind, arguments=options.value("optimizer_args") or {})


def _refuse_schedule(options: Resolved, kind: str) -> None:
    """Schedule-free optimizers take neither a schedule nor its warmup; the words are the seed's."""
    for name, wanted in (("lr_scheduler", "constant"), ("lr_warmup_steps", 0)):
        if options.value(name) != wanted:
            raise ConfigError(
                f"optimizer={kind} requires {name}={wanted}, but it is {options.value(name)} "
                f"({options.given(name)})",
                f"set {name} to {wanted}; warmup is an argument of AdamWScheduleFree and "
                "SGDScheduleFree (optimizer_args warmup_steps=100)",
            )


def _states(options: Resolved) -> StateSettings:
    saves: bool = options.value("save_state")
    config = StateConfig(
        folder=options.value("output_dir"),
        name=_output_name(options),
        every_n_steps=options.value("save_every_n_steps") if saves else None,
        every_n_epochs=options.value("save_every_n_epochs") if saves else None,
        at_end=saves or options.value("save_state_on_train_end"),
        keep_steps=options.value("save_last_n_steps_state") or options.value("save_last_n_steps"),
        keep_epochs=options.value("save_last_n_epochs_state")
        or options.value("save_last_n_epochs"),
    )
    resume: str | None = options.value("resume")
    found = latest_state(config.folder, config.name) if resume == "latest" else resume
    return StateSettings(
        config=config,
        resume=Path(found) if found else None,
        resume_allow=tuple(options.value("resume_allow") or ()),
    )


def _learning_rate(options: Resolved) -> float:
    rate: float | None = options.value("unet_lr")
    return options.value("learning_rate") if rate is None else rate


def _output_name(options: Resolved) -> str:
    """Kohya's name for a run without one is "last"."""
    return options.value("output_name") or "last"


def _save(options: Resolved) -> SaveConfig:
    precision: str | None = options.value("save_precision")
    return SaveConfig(
        folder=options.value("output_dir"),
        name=_output_name(options),
        every_n_steps=options.value("save_every_n_steps"),
        every_n_epochs=options.value("save_every_n_epochs"),
        dtype=torch_dtype(precision) if precision else None,
        style=options.value("save_format"),
        keep_steps=options.value("save_last_n_steps"),
        keep_epochs=options.value("save_last_n_epochs"),
        metadata=_metadata(options),
    )


def _ema_decay(options: Resolved) -> float | None:
    decay: float | None = options.value("ema_decay")
    kind: str = options.value("optimizer_type")
    if decay is not None and find_optimizer(kind).averages:
        raise ConfigError(
            f"ema_decay ({options.given('ema_decay')}) beside {kind}, which averages by itself",
            "remove ema_decay; what is saved is the optimizer's average",
        )
    return decay


def _previews(options: Resolved) -> PreviewSettings | None:
    prompts = settings.preview_prompts(options)
    times = ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first")
    asked = next((name for name in times if options.value(name)), None)
    if not prompts:
        if asked:
            raise ConfigError(
                f"{asked} is set ({options.given(asked)}), but there are no prompts to draw",
                "set sample_prompts to a file with one prompt a line",
            )
        return None
    options.require("vae")
    config = PreviewConfig(
        folder=options.value("output_dir") / "sample",
        name=_output_name(options),
        at_first=options.value("sample_at_first"),
        every_n_steps=options.value("sample_every_n_steps"),
        every_n_epochs=options.value("sample_every_n_epochs"),
    )
    return PreviewSettings(prompts=tuple(prompts), vae=options.value("vae"), config=config)


def _log_folder(options: Resolved) -> Path | None:
    if options.value("log_with") == "none":
        return None
    name = options.value("log_prefix") or _output_name(options)
    return options.value("logging_dir") / f"{name}_{time.strftime('%Y%m%d_%H%M%S')}"


def _metadata(options: Resolved) -> dict[str, str]:
    """Return what a saved file says of the run; names only, no paths."""
    base: Path = options.value("pretrained_model_name_or_path")
    facts: dict[str, object] = {
        "ss_output_name": _output_name(options),
        "ss_network_module": options.value("network_module"),
        "ss_network_dim": options.value("network_dim"),
        "ss_network_alpha": options.value("network_alpha"),
        "ss_learning_rate": _learning_rate(options),
        "ss_lr_scheduler": options.value("lr_scheduler"),
        "ss_optimizer": options.value("optimizer_type"),
        "ss_mixed_precision": options.value("mixed_precision"),
        "ss_gradient_accumulation_steps": options.value("gradient_accumulation_steps"),
        "ss_timestep_sampling": options.value("timestep_sampling"),
        "ss_base_model_version": "anima",
        "ss_sd_model_name": base.name,
        "ss_training_comment": options.value("training_comment"),
    }
    return {name: str(value) for name, value in facts.items() if value is not None}
