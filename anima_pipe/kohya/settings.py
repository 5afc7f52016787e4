"""From resolved options to the typed settings of the caching stages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anima_pipe.dataset import DatasetConfig
from anima_pipe.fill import CacheSettings, LatentSettings, TextSettings
from anima_pipe.kohya.dataset_toml import (
    load_dataset_config,
    load_metadata_file,
    load_training_folders,
)
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.sample_prompts import read_sample_prompts
from anima_pipe.records import PreviewPrompt
from anima_pipe.shards.places import open_place

if TYPE_CHECKING:
    from anima_pipe.adapters.rules import PartRate


def dataset_configs(options: Resolved) -> list[DatasetConfig]:
    """Return the datasets of dataset_config, or else of the training folders or in_json."""
    fallbacks = options.dataset_fallbacks()
    if path := options.value("dataset_config"):
        return load_dataset_config(path, fallbacks)
    folder = options.value("train_data_dir")
    if metadata_file := options.value("in_json"):
        return load_metadata_file(metadata_file, folder, fallbacks)
    return load_training_folders(folder, options.value("reg_data_dir"), fallbacks)


def cache_settings(options: Resolved) -> CacheSettings:
    """Return where the caches are and how they are stored."""
    return CacheSettings(
        folder=cache_folder(options),
        dtype=options.value("cache_dtype"),
        device=options.value("device"),
    )


def cache_folder(options: Resolved) -> Path:
    """Return the folder of the caches, which mirrors them where cache_dir is an address."""
    return open_place(
        options.value("cache_dir"),
        options.value("cache_mirror_dir"),
        options.value("cache_mirror_gb"),
    )


def latent_settings(options: Resolved) -> LatentSettings:
    """Return how latents are made."""
    return LatentSettings(
        cache=cache_settings(options),
        vae=options.value("vae"),
        batch_size=options.value("vae_batch_size"),
        workers=options.value("max_data_loader_n_workers"),
    )


def text_settings(options: Resolved) -> TextSettings:
    """Return how captions are encoded."""
    return TextSettings(
        cache=cache_settings(options),
        qwen=options.value("qwen3"),
        t5_tokenizer_dir=options.value("t5_tokenizer_dir"),
        batch_size=options.value("text_encoder_batch_size"),
    )


def preview_prompts(options: Resolved) -> list[PreviewPrompt]:
    """Return the prompts of previews; none where no file is given."""
    path: Path | None = options.value("sample_prompts")
    return read_sample_prompts(path) if path else []


def prompt_texts(prompts: Iterable[PreviewPrompt]) -> list[str]:
    """Return the texts that drawing the prompts needs."""
    return [text for prompt in prompts for text in (prompt.prompt, prompt.negative)]


PARTS: Final = {
    "llm_adapter": r"llm_adapter\..*",
    "self_attn": r"blocks\.\d+\.self_attn\..*",
    "cross_attn": r"blocks\.\d+\.cross_attn\..*",
    "mlp": r"blocks\.\d+\.mlp\..*",
    "mod": r".*adaln_modulation.*",
}
"""Kohya's parts of the model, each with an option NAME_lr, and the paths of their modules."""


def part_rates(options: Resolved) -> tuple[PartRate, ...]:
    """Return the parts of the model that take a learning rate of their own."""
    from anima_pipe.adapters.rules import PartRate

    rates = {part: options.value(f"{part}_lr") for part in PARTS}
    return tuple(
        PartRate(name=part, pattern=PARTS[part], rate=rate)
        for part, rate in rates.items()
        if rate is not None
    )


def learning_rate(options: Resolved) -> float:
    """Return the adapter's learning rate; unet_lr wins, as in Kohya."""
    rate: float | None = options.value("unet_lr")
    return options.value("learning_rate") if rate is None else rate
