"""Opening a cache folder: the latents of one VAE, the captions of one text encoder, masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from anima_pipe.records import TextCondition
from anima_pipe.shards.folders import MASK_CACHE
from anima_pipe.shards.latents import LATENTS
from anima_pipe.shards.masks import MASKS
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.shards.places import open_place
from anima_pipe.shards.store import Store
from anima_pipe.shards.text import TEXT


@dataclass(frozen=True, slots=True)
class Cache:
    """What a training run reads."""

    latents: Store[torch.Tensor]
    """`latents[key]` is Float[16, H, W] in the stored dtype."""
    text: Store[TextCondition]
    masks: Store[torch.Tensor]
    """`masks[key]` is Float16[H, W] in [0, 1]."""


def open_cache(cache_dir: Path | str, latents: str | None = None, text: str | None = None) -> Cache:
    """Open the caches in a folder for random access.

    A kind that is not there is an empty store, which fails when a sample is asked for.

        >>> cache = open_cache("data/cache")
        >>> latent = cache.latents[key]         # Float[16, H, W], stored dtype
        >>> condition = cache.text[text_key("1girl, solo")]

    Args:
        cache_dir: The cache folder, or its address: then a mirror in the user's cache folder is
            read; `anima_pipe.shards.mirror.open_place` makes one elsewhere.
        latents: Fingerprint of the VAE or its beginning, with `-<dtype>` behind it where the
            folder has several; None: the only latent cache there.
        text: The same for the text encoder.

    Raises:
        CacheError: Several caches fit, or the description of one cannot be read.
    """
    folder = open_place(cache_dir)
    cache = Cache(
        latents=Store(LATENTS, folder, latents),
        text=Store(TEXT, folder, text),
        masks=Store(MASKS, folder, MASK_CACHE),
    )
    if mirror := mirror_at(folder):
        stores = (cache.latents, cache.text, cache.masks)
        mirror.announce(sum(store.shard_bytes for store in stores))
    return cache
