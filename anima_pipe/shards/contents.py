"""What a cache holds, told from the sidecars alone: no shard is opened and no torch imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from anima_pipe.shards.folders import Kind, find_folder
from anima_pipe.shards.index import INDEX_SUFFIX, Problem, ShardIndex, index_path, load_index
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.shards.unfinished import remove_abandoned

TENSORS: Final[dict[Kind, tuple[str, ...]]] = {
    "latents": ("latent",),
    "masks": ("mask",),
    "text": ("qwen_hidden", "t5_ids"),
}
"""The tensors of a sample; the first one's shape is the sample's shape."""


def cached_keys(cache_dir: Path, kind: Kind, name: str) -> tuple[set[str], list[Problem]]:
    """Return the keys of every whole sample in one cache, and what is wrong in it.

    Args:
        cache_dir: The cache folder; need not exist.
        kind: What is in it.
        name: The encoder's fingerprint, with `-<dtype>` behind it.

    Raises:
        CacheError: The description of the cache cannot be read.
    """
    shards, problems = cached_shards(cache_dir, kind, name)
    return {key for shard in shards for key in shard.keys}, problems


def cached_shards(cache_dir: Path, kind: Kind, name: str) -> tuple[list[ShardIndex], list[Problem]]:
    """Return the shards of one cache, and what is wrong in it; see `cached_keys`."""
    found = find_folder(cache_dir, kind, name)
    return read_shards(found[0], kind) if found else ([], [])


def long_texts(shards: Iterable[ShardIndex], limit: int) -> dict[str, int]:
    """Return how many T5 tokens the texts have that have more than a limit, by key."""
    return {
        key: tokens
        for shard in shards
        for key, tokens in shard.longer_than(limit, "t5_ids").items()
    }


def read_shards(folder: Path, kind: Kind) -> tuple[list[ShardIndex], list[Problem]]:
    """Read the sidecars of a folder in the order of their names.

    Args:
        folder: Of one encoder.
        kind: What it holds; shards of something else are left out.

    Returns:
        The indices, and what is wrong: sidecars that had to be rebuilt, samples that are damaged
        and of which no other copy is whole.
    """
    shards: list[ShardIndex] = []
    problems: list[Problem] = []
    for tar, found in _indices(folder):
        if isinstance(found, Problem):
            problems.append(found)
        elif not found.keys or found.tensors.keys() >= set(TENSORS[kind]):
            shards.append(found)
        else:
            problems.append(Problem(shard=tar, reason=f"holds no {kind}; it is not used"))
    whole = {key for shard in shards for key in shard.keys}
    problems += [
        Problem(shard=folder / shard.tar, key=key, reason="damaged; it is encoded anew when needed")
        for shard in shards
        for key in shard.damaged
        if key not in whole
    ]
    return shards, problems


def tidy(cache_dir: Path) -> None:
    """Remove what dead writers left in a cache, and the sidecars of shards that are gone."""
    if not cache_dir.is_dir():
        return
    for folder in (path for path in cache_dir.iterdir() if path.is_dir()):
        remove_abandoned(folder)
        # A mirror has sidecars of shards that it has not fetched.
        for tar in () if mirror_at(cache_dir) else _lost_shards(folder):
            with suppress(OSError):
                index_path(tar).unlink()


def _lost_shards(folder: Path) -> list[Path]:
    """Return the shards of which there is only the sidecar, which is written behind its shard."""
    sidecars = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    tars = [path.with_name(f"{path.name.removesuffix(INDEX_SUFFIX)}.tar") for path in sidecars]
    return [tar for tar in tars if not tar.exists()]


def _indices(folder: Path) -> Iterator[tuple[Path, ShardIndex | Problem]]:
    """Yield path and sidecar of each shard in the order of their names, and what was wrong."""
    if mirror := mirror_at(folder.parent):
        yield from mirror.indices(folder)
        return
    for tar in _lost_shards(folder):
        yield tar, Problem(shard=tar, reason="is gone; its samples are encoded anew when needed")
    for tar in sorted(folder.glob("*.tar")):
        shard, problem = load_index(tar, tar.stat().st_size)
        if problem:
            yield tar, problem
        yield tar, shard
