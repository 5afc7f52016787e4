"""What the caching runs need to know, typed and with units: `cache_latents` and `encode_text`.

Importing this module imports no torch, for a run with nothing to do needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anima_pipe.dataset.config import DatasetConfig, LeakageConfig
from anima_pipe.errors import ConfigError, check_number
from anima_pipe.fill import LatentSettings, TextSettings
from anima_pipe.hub.sources import Source
from anima_pipe.records import MOST_PIXELS, PreviewPrompt


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLatentsSettings:
    """Of which pictures latents and masks are cached, and how.

    Raises:
        ConfigError: crop_variants or max_image_pixels is below 1.
    """

    datasets: tuple[DatasetConfig, ...]
    latents: LatentSettings
    """The VAE, and the cache."""
    crop_variants: int = 4
    """Crops of each picture, where its subset crops by chance; at least 1."""
    rehash: bool = False
    """Whether pictures are read again although nothing about their files has changed."""
    max_image_pixels: int = MOST_PIXELS
    """Pictures of more are left out."""
    follow_links: bool = True
    """Whether links out of the dataset's folders are followed; never for a cache at an address."""
    strict: bool = False
    """Whether pictures that cannot be used are an error, once all others are encoded."""
    rejects: Path | None = None
    """Lists all that is left out; None: rejects.jsonl in the folder of the cache."""

    def __post_init__(self) -> None:
        if self.crop_variants < 1:
            raise ConfigError(f"crop_variants is {self.crop_variants}", "cache at least 1 crop")
        check_number("max_image_pixels", self.max_image_pixels, least=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeTextSettings:
    """Of which captions and prompts texts are cached, and how.

    Raises:
        ConfigError: caption_variants is below 1.
    """

    datasets: tuple[DatasetConfig, ...]
    text: TextSettings
    """The text encoder, the T5 tokenizer, and the cache."""
    caption_variants: int | None = None
    """Renderings of each caption, at least 1; None: 1 where nothing varies, else 8."""
    prompts: tuple[PreviewPrompt, ...] = ()
    """Previews that a training will draw: their prompts are encoded too."""
    leakage: LeakageConfig | None = None
    """As of the training: what it looks at is encoded too; None: nothing for it."""
    tokenizer_sources: tuple[Source, ...] = ()
    """Where files that the tokenizer's folder lacks are fetched from, in this order, each source
    with its folder and revision; none: a file that is lacking is an error."""
    follow_links: bool = True
    """Whether links out of the dataset's folders are followed; never for a cache at an address."""
    strict: bool = False
    """Whether captions that cannot be used, or are not there, are an error."""
    rejects: Path | None = None
    """Lists all that is left out; None: rejects.jsonl in the folder of the cache."""

    def __post_init__(self) -> None:
        if self.caption_variants is not None and self.caption_variants < 1:
            raise ConfigError(
                f"caption_variants is {self.caption_variants}", "cache at least 1 rendering"
            )
