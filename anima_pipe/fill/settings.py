"""Where caches are and what fills them; where an option has another name, the field says which."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from anima_pipe.encoders.fingerprints import text_fingerprint, vae_fingerprint
from anima_pipe.errors import check_choice, check_number
from anima_pipe.shards.folders import StoredDtype


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSettings:
    """Where the caches are, how their tensors are stored, and what computes them.

    Raises:
        ConfigError: There are no caches of the dtype.
    """

    folder: Path
    """Of all caches (cache_dir); it need not exist. For one at an address: what `open_place`
    returns, its mirror."""
    dtype: StoredDtype = "fp16"
    """Of stored tensors (cache_dtype): "fp16", "bf16" or "fp32". A text that fp16 cannot hold is
    kept in bf16."""
    device: str = "auto"
    """By torch's name; "auto": CUDA, or else Apple's GPU, or else the processor."""

    def __post_init__(self) -> None:
        check_choice("cache_dtype", self.dtype, get_args(StoredDtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSettings:
    """How latents are made.

    Raises:
        ConfigError: A number is too small.
    """

    cache: CacheSettings
    vae: Path
    """Its .safetensors file."""
    batch_size: int = 1
    """Pictures per pass of the VAE (vae_batch_size); at least 1."""
    workers: int = 8
    """Processes that decode pictures while the VAE works (max_data_loader_n_workers); 0: none but
    one for pictures that are very large, in turn."""

    def __post_init__(self) -> None:
        check_number("vae_batch_size", self.batch_size, least=1)
        check_number("max_data_loader_n_workers", self.workers, least=0)

    @property
    def cache_name(self) -> str:
        """Which of the latent caches in the folder is this VAE's; reads the file at first."""
        return f"{vae_fingerprint(self.vae)}-{self.cache.dtype}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSettings:
    """How captions are encoded.

    Raises:
        ConfigError: The batch size is below 1.
    """

    cache: CacheSettings
    qwen: Path
    """Qwen3 (qwen3): its .safetensors file, or a folder."""
    t5_tokenizer_dir: Path
    """Folder of config.json, spiece.model and tokenizer.json."""
    batch_size: int | None = None
    """Captions per pass of the text encoder (text_encoder_batch_size), at least 1; None: 8 on a
    GPU, else 1."""

    def __post_init__(self) -> None:
        check_number("text_encoder_batch_size", self.batch_size, least=1)

    @property
    def cache_name(self) -> str:
        """Which of the text caches in the folder is this encoder's; reads its files at first."""
        return f"{text_fingerprint(self.qwen, self.t5_tokenizer_dir)}-{self.cache.dtype}"
