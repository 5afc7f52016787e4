"""From resolved options to settings that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from anima_pipe.dataset.config import DatasetConfig
from anima_pipe.errors import ConfigError
from anima_pipe.fill import CacheSettings, LatentSettings, TextSettings
from anima_pipe.kohya.dataset_toml import (
    ExaminedDatasets,
    examine_dataset_config,
    examine_metadata_file,
    examine_training_folders,
    settled,
)
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.rows import TRAIN
from anima_pipe.kohya.sample_prompts import read_sample_prompts
from anima_pipe.records import PreviewPrompt
from anima_pipe.runtime import finite_number
from anima_pipe.shards.places import open_place

if TYPE_CHECKING:
    from anima_pipe.adapters.rules import PartRate


def models_needed(options: Resolved) -> tuple[str, ...]:
    """Return the options that name the model files of a training, bar the tokenizer.

    Without auto_cache a run takes its latents and texts as they are, from whatever encoders: it
    needs none, except for the previews' pictures.
    """
    fills_gaps = options.command != TRAIN or options.value("auto_cache")
    encoders = ("vae", "qwen3") if fills_gaps else ()
    previews = ("vae",) if options.value("sample_prompts") else ()
    return tuple(dict.fromkeys(("pretrained_model_name_or_path", *encoders, *previews)))


def base_name(options: Resolved) -> str:
    """Return what pictures say that they were drawn with: the names of the base's files."""
    names: tuple[Path | None, ...] = (
        options.value("pretrained_model_name_or_path"),
        options.value("llm_adapter_path"),
    )
    return " + ".join(path.stem for path in names if path)


def dataset_configs(options: Resolved) -> list[DatasetConfig]:
    """Return the datasets of dataset_config, or else of the training folders or in_json.

    Raises:
        ConfigError: It lists everything that is wrong with them.
    """
    return settled(examine_datasets(options))


def examine_datasets(options: Resolved) -> ExaminedDatasets:
    """Read those datasets without stopping at what is wrong.

    Raises:
        ConfigError: The file that describes them cannot be read.
    """
    fallbacks = options.dataset_fallbacks()
    folder = options.value("train_data_dir")
    if path := options.value("dataset_config"):
        examined = examine_dataset_config(path, fallbacks)
    elif path := options.value("in_json"):
        examined = examine_metadata_file(path, folder, fallbacks)
    else:
        path = folder
        examined = examine_training_folders(path, options.value("reg_data_dir"), fallbacks)
    return told_of_overruled(examined, path, options)


def told_of_overruled(
    examined: ExaminedDatasets, path: Path, options: Resolved
) -> ExaminedDatasets:
    """Return what was read with a warning for each option that has no say there.

    Args:
        examined: What was read.
        path: From where.
        options: Whose values filled the gaps.
    """
    said = [
        f"{options.written[name]} has no effect: {path.name} sets {key} for every subset"
        for name, key in examined.overruled.items()
    ]
    return examined._replace(warnings=[*examined.warnings, *said])


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


def base_weights(options: Resolved) -> tuple[tuple[Path, float], ...]:
    """Pair the adapters to merge first with their strengths; one without takes 1, as in Kohya.

    Raises:
        ConfigError: There are more strengths than files, or one is no number.
    """
    paths: tuple[str, ...] = tuple(options.value("base_weights") or ())
    given: tuple[str, ...] = tuple(options.value("base_weights_multiplier") or ())
    if len(given) > len(paths):
        raise ConfigError(
            f"base_weights_multiplier has {len(given)} values for {len(paths)} base_weights",
            "give one strength for each file",
        )
    try:
        strengths = [finite_number(strength) for strength in given]
    except ValueError as error:
        raise ConfigError(f"base_weights_multiplier: {error}", "give numbers") from error
    strengths += [1.0] * (len(paths) - len(strengths))
    return tuple((Path(path), strength) for path, strength in zip(paths, strengths, strict=True))
