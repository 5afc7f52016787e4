"""The cache: encoded samples in immutable webdataset shards, found by what they were made from.

    keys        what a sample is called: a hash of everything that changes its tensors
    folders     one folder per encoder: cache.json says whose tensors are in it
    tar         the bytes of a shard: plain tar members, as webdataset names them
    index       what lies in a shard: where every member is, and its checksum
    sidecar     the file beside a shard that says so, and how it is made of the shard
    unfinished  shards that are being written, and those that dead writers left behind
    codec       how a sample becomes tensors and bytes
    writer      fills shards and publishes them whole
    fitness     compares what sidecar, shard and training take a sample for
    reading     reads a shard by position; what cannot be read is an error that names the sample
    store       reads samples at random, and verifies them
    contents    what a cache holds, told from the sidecars
    statistics  the same in numbers
    leases      who has a cache open
    trash       what was removed, for a while
    pruning     removes what is not needed any more
    checksum    JSON that carries the checksum of its own text
    addresses   which addresses are usable, and their file systems; the only importer of fsspec
    manifest    what lies at an address, and shards.json, which says so
    remote      the storage behind an address: listing, reading, writing
    failures    what storage fails with: what is tried again, and what is said
    copies      a mirror's copies of small files, never stale and never damaged
    mirrored    mirror.json, which notes what a folder mirrors
    mirror      the folder that stands for a cache elsewhere: what is fetched, and kept
    shipping    uploads finished shards
    places      a folder or an address, and what differs between the two
    latents, masks, text, cache    the doors: LatentWriter, MaskWriter, TextWriter, open_cache

docs/cache-format.md describes the files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from anima_pipe.shards.cache import Cache, open_cache
    from anima_pipe.shards.keys import latent_key, mask_key, text_key
    from anima_pipe.shards.latents import LatentWriter
    from anima_pipe.shards.masks import MaskWriter
    from anima_pipe.shards.store import Problem, Store
    from anima_pipe.shards.text import TextWriter
    from anima_pipe.shards.writer import WriterSummary

__all__ = [
    "Cache",
    "LatentWriter",
    "MaskWriter",
    "Problem",
    "Store",
    "TextWriter",
    "WriterSummary",
    "latent_key",
    "mask_key",
    "open_cache",
    "text_key",
]

_HOMES: Final = {
    "Cache": "cache",
    "LatentWriter": "latents",
    "MaskWriter": "masks",
    "Problem": "store",
    "Store": "store",
    "TextWriter": "text",
    "WriterSummary": "writer",
    "latent_key": "keys",
    "mask_key": "keys",
    "open_cache": "cache",
    "text_key": "keys",
}


def __getattr__(name: str) -> object:
    # Importing shards.keys must not import torch: the plan and every --help pass through here.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
