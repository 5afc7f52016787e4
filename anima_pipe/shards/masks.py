"""Masks in the cache: one tensor per sample, `mask`, of as many positions as its latent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch

from anima_pipe.shards.codec import Codec
from anima_pipe.shards.folders import MASK_CACHE, StoredDtype
from anima_pipe.shards.writer import SHARD_BYTES, ShardWriter


def _pack(mask: torch.Tensor) -> Mapping[str, torch.Tensor]:
    if mask.ndim != 2 or not mask.is_floating_point():
        raise ValueError(f"a mask is Float[H, W], not {mask.dtype}{list(mask.shape)}")
    return {"mask": mask}


def _unpack(tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return tensors["mask"]


MASK_DTYPE: Final[StoredDtype] = "fp16"
"""Of all masks, whatever that of the latents: exact to a step of 8 bits over 64 pixels, nearly."""

MASKS: Final = Codec(kind="masks", command="cache-latents", pack=_pack, unpack=_unpack)


class MaskWriter(ShardWriter[torch.Tensor]):
    """Writes masks, Float[H, W] in [0, 1], in fp16; see `ShardWriter`."""

    def __init__(self, cache_dir: Path | str, shard_bytes: int = SHARD_BYTES) -> None:
        super().__init__(MASKS, cache_dir, MASK_CACHE, MASK_DTYPE, "masks", shard_bytes)
