"""What a cache folder holds, in numbers: told from the sidecars alone, no shard is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from anima_pipe.errors import CacheError
from anima_pipe.records import PIXELS_PER_LATENT
from anima_pipe.shards.contents import TENSORS, read_shards
from anima_pipe.shards.folders import Identity, Kind, described_folders
from anima_pipe.shards.index import Problem, ShardIndex
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.shards.unfinished import SUFFIX

KINDS: Final[tuple[Kind, ...]] = ("latents", "masks", "text")


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderStatistics:
    """One encoder's samples."""

    folder: Path
    identity: Identity
    shards: int
    samples: int
    """Each counted once."""
    copies: int
    """Further copies of samples, which no one reads."""
    total_bytes: int
    unfinished_bytes: int
    """In shards that are being written, or were when their writer died."""
    problems: Sequence[Problem]
    buckets: Counter[tuple[int, int]] = field(default_factory=Counter[tuple[int, int]])
    """Latents or masks by the (width, height) in pixels of what they were made from."""
    tokens: Sequence[int] = ()
    """Qwen's tokens of each text, sorted."""


def cache_statistics(cache_dir: Path) -> list[FolderStatistics]:
    """Return what each encoder's folder holds.

    Raises:
        CacheError: There is no cache, or the description of one cannot be read.
    """
    found = [
        _folder_statistics(folder, identity)
        for kind in KINDS
        for folder, identity in described_folders(cache_dir, kind)
    ]
    if not found:
        raise CacheError(
            f"there is no cache in {cache_dir}", "give the folder of a cache with --cache_dir"
        )
    return found


def _folder_statistics(folder: Path, identity: Identity) -> FolderStatistics:
    shards, problems = read_shards(folder, identity.kind)
    shapes = _shapes_by_key(shards, TENSORS[identity.kind][0])
    statistics = FolderStatistics(
        folder=folder,
        identity=identity,
        shards=len(shards),
        samples=len(shapes),
        copies=sum(len(shard.keys) for shard in shards) - len(shapes),
        total_bytes=_total_bytes(folder, shards),
        unfinished_bytes=sum(_sizes(folder.glob(f"*{SUFFIX}")).values()),
        problems=problems,
        tokens=sorted(shape[0] for shape in shapes.values()) if identity.kind == "text" else (),
    )
    if identity.kind != "text":
        for *_, height, width in shapes.values():
            statistics.buckets[width * PIXELS_PER_LATENT, height * PIXELS_PER_LATENT] += 1
    return statistics


def _total_bytes(folder: Path, shards: Sequence[ShardIndex]) -> int:
    """Return the size of all files, those of a mirrored cache that are not here included."""
    here = _sizes(folder.iterdir())
    if mirror := mirror_at(folder.parent):
        names = mirror.names(folder)
        here = {name: size for name, size in here.items() if name in names}
    return sum(here.values()) + sum(s.tar_bytes for s in shards if s.tar not in here)


def _sizes(files: Iterable[Path]) -> dict[str, int]:
    """Return the sizes of files by name; those that go meanwhile have none."""
    sizes: dict[str, int] = {}
    for file in files:
        with suppress(FileNotFoundError):
            sizes[file.name] = file.stat().st_size
    return sizes


def _shapes_by_key(shards: Sequence[ShardIndex], tensor: str) -> dict[str, tuple[int, ...]]:
    return {
        key: shape
        for shard in reversed(shards)
        if shard.keys
        for key, shape in zip(shard.keys, shard.tensors[tensor].shape, strict=True)
    }
