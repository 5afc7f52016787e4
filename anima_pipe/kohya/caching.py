"""From resolved options to the settings of the caching runs."""

from __future__ import annotations

from anima_pipe.kohya.model_files import completed, tokenizer_settings
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.kohya.settings import (
    dataset_configs,
    latent_settings,
    preview_prompts,
    text_settings,
)
from anima_pipe.runs.settings.caching import CacheLatentsSettings, EncodeTextSettings


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
        strict=options.value("strict"),
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
        tokenizer_sources=tokenizer.sources,
        strict=options.value("strict"),
    )
