"""Latents in the cache: one tensor per sample, `latent`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from anima_pipe.records import LATENT_CHANNELS
from anima_pipe.shards.codec import Codec
from anima_pipe.shards.folders import StoredDtype
from anima_pipe.shards.writer import SHARD_BYTES, ShardWriter


def _pack(latent: torch.Tensor) -> Mapping[str, torch.Tensor]:
    if latent.ndim != 3 or len(latent) != LATENT_CHANNELS or not latent.is_floating_point():
        raise ValueError(f"a latent is Float[16, H, W], not {latent.dtype}{list(latent.shape)}")
    return {"latent": latent}


def _unpack(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return tensors["latent"]


LATENTS: Final = Codec(kind="latents", command="cache-latents", pack=_pack, unpack=_unpack)


class LatentWriter(ShardWriter[torch.Tensor]):
    """Writes latents, Float[16, H, W]; see `ShardWriter`."""

    def __init__(
        self,
        cache_dir: Path | str,
        fingerprint: str,
        dtype: StoredDtype,
        encoder_name: str,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        super().__init__(LATENTS, cache_dir, fingerprint, dtype, encoder_name, shard_bytes)
