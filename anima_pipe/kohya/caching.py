"""From resolved options to the settings of the caching runs, and of the caches of every run."""

from __future__ import annotations

from pathlib import Path

from anima_pipe.dataset.config import LeakageConfig
from anima_pipe.fill import CacheSettings, LatentSettings, TextSettings
from anima_pipe.kohya.datasets import dataset_configs
from anima_pipe.kohya.model_files import completed, tokenizer_settings
from anima_pipe.kohya.no_network import trains_the_model
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.sample_prompts import read_sample_prompts
from anima_pipe.records import PreviewPrompt
from anima_pipe.runs.settings.caching import CacheLatentsSettings, EncodeTextSettings
from anima_pipe.shards.places import open_place
from anima_pipe.source.prompts import unescaped


def cache_latents_settings(options: Resolved) -> CacheLatentsSettings:
    """Return what cache-latents is to cache.

    Raises:
        ConfigError: It lists everything that is wrong with the datasets.
    """
    return CacheLatentsSettings(
        datasets=tuple(dataset_configs(options)),
        latents=latent_settings(options),
        crop_variants=options.value("crop_variants"),
        rehash=options.value("rehash"),
        max_image_pixels=options.value("max_image_pixels"),
        follow_links=options.value("follow_links"),
        strict=options.value("strict"),
        rejects=rejects_file(options),
    )


def encode_text_settings(options: Resolved) -> EncodeTextSettings:
    """Return what encode-text is to cache.

    Raises:
        ConfigError: It lists everything that is wrong with the datasets; or no folder of the T5
            tokenizer is known and none may be made.
    """
    tokenizer = tokenizer_settings(options)
    return EncodeTextSettings(
        datasets=tuple(dataset_configs(options)),
        text=text_settings(completed(options, {"t5_tokenizer_dir": tokenizer.folder})),
        caption_variants=options.value("caption_variants"),
        prompts=tuple(preview_prompts(options)),
        leakage=leakage_config(options),
        tokenizer_sources=tokenizer.sources,
        follow_links=options.value("follow_links"),
        strict=options.value("strict"),
        rejects=rejects_file(options),
    )


def rejects_file(options: Resolved) -> Path | None:
    """Return the list of what is left out: beside the summary, if one is asked for."""
    summary: Path | None = options.value("summary_json")
    return summary.with_name("rejects.jsonl") if summary else None


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


def leakage_config(options: Resolved) -> LeakageConfig | None:
    """Return how every save is measured: where previews are drawn, unless something else is said.

    None: it is not, and never where the model itself is trained.
    """
    if trains_the_model(options):
        return None
    wanted: bool | None = options.value("measure_leakage")
    if not (bool(preview_prompts(options)) if wanted is None else wanted):
        return None
    phrase: str = options.value("metadata_trigger_phrase") or ""
    words = (words.strip() for words in unescaped(phrase).split(","))
    return LeakageConfig(trigger=tuple(words for words in words if words))


def preview_prompts(options: Resolved) -> list[PreviewPrompt]:
    """Return the prompts of previews; none where no file is given."""
    path: Path | None = options.value("sample_prompts")
    return read_sample_prompts(path) if path else []
