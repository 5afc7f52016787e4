"""Where caches are and what fills them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anima_pipe.encoders.fingerprints import text_fingerprint, vae_fingerprint
from anima_pipe.shards.folders import StoredDtype


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Where the caches are and how their tensors are stored."""

    folder: Path
    """The cache folder, or the mirror of one elsewhere."""
    dtype: StoredDtype = "fp16"
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSettings:
    """How latents are made."""

    cache: CacheSettings
    vae: Path
    batch_size: int = 1
    """Pictures per pass of the VAE."""
    workers: int = 8
    """Processes that decode pictures while the VAE works; 0: none, in turn."""

    @property
    def cache_name(self) -> str:
        """Which of the latent caches in the folder is this VAE's; reads the file at first."""
        return f"{vae_fingerprint(self.vae)}-{self.cache.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How captions are encoded."""

    cache: CacheSettings
    qwen: Path
    t5_tokenizer_dir: Path
    batch_size: int | None = None
    """Captions per pass of the text encoder; None: see `captions_at_once`."""

    @property
    def cache_name(self) -> str:
        """Which of the text caches in the folder is this encoder's; reads its files at first."""
        return f"{text_fingerprint(self.qwen, self.t5_tokenizer_dir)}-{self.cache.dtype}"
