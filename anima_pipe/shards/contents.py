"""What a cache holds, told from the sidecars alone: no shard is opened and no torch imported."""

from __future__ import annotations

from pathlib import Path

from anima_pipe.shards.folders import Kind, find_folder
from anima_pipe.shards.index import load_index


def cached_keys(cache_dir: Path, kind: Kind, name: str) -> set[str]:
    """Return the keys of every whole sample in one cache.

    Args:
        cache_dir: The cache folder; need not exist.
        kind: Latents or text.
        name: The encoder's fingerprint, with `-<dtype>` behind it.

    Raises:
        CacheError: The description of the cache cannot be read.
    """
    found = find_folder(cache_dir, kind, name)
    if found is None:
        return set()
    folder, _ = found
    shards = (load_index(tar, tar.stat().st_size)[0] for tar in sorted(folder.glob("*.tar")))
    return {key for shard in shards for key in shard.keys}
