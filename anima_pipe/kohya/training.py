"""From resolved options to the typed settings of a training run, all of them checked.

Importing this module imports torch: the settings are the dataclasses of the parts that use them.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from anima_pipe.adapters.peft import adapter_file_in
from anima_pipe.hooks.validation import ValidationConfig
from anima_pipe.hub.sources import Source
from anima_pipe.kohya.caching import (
    cache_settings,
    latent_settings,
    leakage_config,
    rejects_file,
    text_settings,
)
from anima_pipe.kohya.datasets import dataset_configs
from anima_pipe.kohya.logs import log_settings
from anima_pipe.kohya.metadata import metadata_settings
from anima_pipe.kohya.model_files import completed, tokenizer_settings
from anima_pipe.kohya.no_network import trains_the_model
from anima_pipe.kohya.objective import objective_config, warn_of_idle_offsets
from anima_pipe.kohya.optimizer import optimizer_config
from anima_pipe.kohya.outputs import (
    ema_decay,
    preview_settings,
    save_config,
    state_settings,
)
from anima_pipe.kohya.parts import adapter_choice, base_weights
from anima_pipe.kohya.rates import learning_rate, part_rates
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.schedule import schedule_config
from anima_pipe.runs.settings.trained import AdapterSettings, ModelSettings, NoAdapter
from anima_pipe.runs.settings.training import DataSettings, LengthSettings, TrainSettings
from anima_pipe.trainer.processes import TIMEOUT, ProcessConfig


def process_config(options: Resolved) -> ProcessConfig:
    """Return how several processes work together."""
    minutes: int | None = options.value("ddp_timeout")
    return ProcessConfig(
        timeout=TIMEOUT if minutes is None else timedelta(minutes=minutes),
        gradient_as_bucket_view=options.value("ddp_gradient_as_bucket_view"),
        static_graph=options.value("ddp_static_graph"),
    )


def train_settings(options: Resolved) -> TrainSettings:
    """Read every setting of a run, before anything is loaded.

    Raises:
        ConfigError: Something required is not set, or a setting cannot be honoured.
        DataError: A folder of the dataset is missing.
    """
    tokenizer = tokenizer_settings(options) if options.value("auto_cache") else None
    if tokenizer:
        options = completed(options, {"t5_tokenizer_dir": tokenizer.folder})
    states = state_settings(options)
    data = _data(options, tokenizer.sources if tokenizer else ())
    objective = objective_config(options)
    warn_of_idle_offsets(options, data.datasets)
    return TrainSettings(
        data=data,
        model=_model(options),
        adapter=_adapter(options),
        objective=objective,
        optimizer=optimizer_config(options),
        learning_rate=learning_rate(options),
        max_grad_norm=options.value("max_grad_norm"),
        on_nonfinite=options.value("on_nonfinite"),
        schedule=schedule_config(options),
        length=LengthSettings(
            max_train_steps=options.value("max_train_steps"),
            max_train_epochs=options.value("max_train_epochs"),
            gradient_accumulation_steps=options.value("gradient_accumulation_steps"),
        ),
        validation=_validation(options, data),
        save=save_config(options),
        save_n_epoch_ratio=options.value("save_n_epoch_ratio"),
        states=states,
        ema_decay=ema_decay(options),
        leakage=leakage_config(options),
        previews=preview_settings(options),
        logs=log_settings(options),
        metadata=metadata_settings(options),
        seed=options.value("seed"),
        device=options.value("device"),
        deterministic=options.value("deterministic"),
        processes=process_config(options),
    )


def _data(options: Resolved, tokenizer_sources: tuple[Source, ...]) -> DataSettings:
    knows_text = options.value("qwen3") and options.value("t5_tokenizer_dir")
    return DataSettings(
        datasets=tuple(dataset_configs(options)),
        cache=cache_settings(options),
        latents=latent_settings(options) if options.value("vae") else None,
        text=text_settings(options) if knows_text else None,
        tokenizer_sources=tokenizer_sources,
        auto_cache=options.value("auto_cache"),
        caption_variants=options.value("caption_variants"),
        crop_variants=options.value("crop_variants"),
        rehash=options.value("rehash"),
        max_image_pixels=options.value("max_image_pixels"),
        follow_links=options.value("follow_links"),
        strict=options.value("strict"),
        rejects=rejects_file(options),
    )


def _validation(options: Resolved, data: DataSettings) -> ValidationConfig:
    """Return when validation is due: after every epoch, unless something else is said."""
    by_default = not any(map(options.given, ("validate_every_n_steps", "validate_every_n_epochs")))
    return ValidationConfig(
        every_n_steps=options.value("validate_every_n_steps"),
        every_n_epochs=1 if by_default else options.value("validate_every_n_epochs"),
        max_batches=options.value("max_validation_steps"),
        # dataset.toml may say it for each subset, but the noise is one matter.
        seed=data.datasets[0].subsets[0].validation_seed,
    )


def _model(options: Resolved) -> ModelSettings:
    return ModelSettings(
        transformer=options.value("pretrained_model_name_or_path"),
        llm_adapter=options.value("llm_adapter_path"),
        mixed_precision=options.value("mixed_precision"),
        fp8_base=options.value("fp8_base") or options.value("fp8_base_unet"),
        gradient_checkpointing=options.value("gradient_checkpointing"),
        base_weights=tuple(
            (adapter_file_in(path), strength) for path, strength in base_weights(options)
        ),
        allow_unmatched=options.value("allow_unmatched"),
    )


def _adapter(options: Resolved) -> AdapterSettings | NoAdapter:
    rates, full_bf16 = part_rates(options), options.value("full_bf16")
    if trains_the_model(options):
        return NoAdapter(part_rates=rates, full_bf16=full_bf16)
    kind, arguments = adapter_choice(options)
    start: Path | None = options.value("network_weights")
    return AdapterSettings(
        kind=kind,
        network_dim=arguments.pop("network_dim"),
        network_alpha=arguments.pop("network_alpha"),
        network_args=arguments,
        network_weights=start and adapter_file_in(start),
        dim_from_weights=options.value("dim_from_weights"),
        part_rates=rates,
        scale_weight_norms=options.value("scale_weight_norms"),
        full_bf16=full_bf16,
    )
