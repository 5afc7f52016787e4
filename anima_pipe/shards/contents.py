"""What a cache holds, told from the sidecars alone: no shard is opened and no torch imported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anima_pipe.files import remove_left_behind
from anima_pipe.records import T5_LIMIT
from anima_pipe.shards.folders import DESCRIPTION, Kind, find_folder
from anima_pipe.shards.index import Problem, ShardIndex
from anima_pipe.shards.leases import holders
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.shards.packed_keys import KeySet
from anima_pipe.shards.sidecar import INDEX_SUFFIX, index_path, load_index
from anima_pipe.shards.trash import empty_trash
from anima_pipe.shards.unfinished import remove_abandoned

TENSORS: Final[dict[Kind, tuple[str, ...]]] = {
    "latents": ("latent",),
    "masks": ("mask",),
    "text": ("qwen_hidden", "t5_ids"),
}
"""The tensors of a sample; the first one's shape is the sample's shape."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What one cache holds, as far as filling it goes."""

    keys: KeySet
    """Of every whole sample."""
    problems: list[Problem]
    """What is wrong in it, see `read_shards`."""
    long_texts: dict[str, int]
    """Of a cache of texts: those of more than `T5_LIMIT` tokens, and how many they have."""


def held_in(cache_dir: Path, kind: Kind, name: str) -> Held:
    """Tell what one cache holds; its sidecars are read one after the other, and none is kept.

    Args:
        cache_dir: The cache folder; need not exist.
        kind: What is in it.
        name: The encoder's fingerprint, with `-<dtype>` behind it.

    Raises:
        CacheError: The description of the cache cannot be read.
    """
    held = Held(keys=KeySet(), problems=[], long_texts={})
    found = find_folder(cache_dir, kind, name)
    if found is None:
        return held
    folder, _ = found
    damaged: list[Problem] = []
    for shard in _fitting(folder, kind, held.problems):
        held.keys.update(shard.keys)
        damaged += _damaged(folder, shard)
        if kind == "text":
            held.long_texts.update(shard.longer_than(T5_LIMIT, "t5_ids"))
    held.problems.extend(one for one in damaged if one.key is None or one.key not in held.keys)
    return held


def read_shards(folder: Path, kind: Kind) -> tuple[list[ShardIndex], list[Problem]]:
    """Read the sidecars of a folder in the order of their names.

    Args:
        folder: Of one encoder.
        kind: What it holds; shards of something else are left out.

    Returns:
        The indices, and what is wrong: sidecars that had to be rebuilt, samples that are damaged
        and of which no other copy is whole.
    """
    problems: list[Problem] = []
    shards = list(_fitting(folder, kind, problems))
    whole = {key for shard in shards for key in shard.keys}
    damaged = (problem for shard in shards for problem in _damaged(folder, shard))
    problems += [problem for problem in damaged if problem.key not in whole]
    return shards, problems


def _fitting(folder: Path, kind: Kind, problems: list[Problem]) -> Iterator[ShardIndex]:
    """Yield the sidecars of shards of a kind; add what is wrong with shards to `problems`."""
    for tar, found in _indices(folder):
        if isinstance(found, Problem):
            problems.append(found)
        elif not found.keys or found.tensors.keys() >= set(TENSORS[kind]):
            yield found
        else:
            problems.append(Problem(shard=tar, reason=f"holds no {kind}; it is not used"))


def _damaged(folder: Path, shard: ShardIndex) -> Iterator[Problem]:
    """Yield the samples of a shard that are not used."""
    for key, wrong in shard.damaged.items():
        reason = f"{wrong}; it is encoded anew when needed"
        yield Problem(shard=folder / shard.tar, key=key, reason=reason)


def tidy(cache_dir: Path) -> None:
    """Remove what dead writers left in a cache, the sidecars of shards that are gone, old trash.

    Of the folders in `cache_dir` only those of encoders are touched, and that of scans: others are
    somebody else's.
    """
    remove_left_behind(cache_dir / "scan")
    folders = (path for kind in TENSORS for path in cache_dir.glob(f"{kind}-*"))
    for folder in (path for path in folders if (path / DESCRIPTION).is_file()):
        remove_abandoned(folder)
        holders(folder)  # which removes the leases of the dead
        # A mirror has sidecars of shards that it has not fetched.
        for tar in () if mirror_at(cache_dir) else _lost_shards(folder):
            with suppress(OSError):
                index_path(tar).unlink()
    with suppress(OSError):
        empty_trash(cache_dir)


def _lost_shards(folder: Path) -> list[Path]:
    """Return the shards of which there is only the sidecar, which is written behind its shard."""
    sidecars = sorted(folder.glob(f"*{INDEX_SUFFIX}"))
    tars = [path.with_name(f"{path.name.removesuffix(INDEX_SUFFIX)}.tar") for path in sidecars]
    # One that is being removed has its sidecar for a moment longer.
    return [tar for tar in tars if not tar.exists() and index_path(tar).exists()]


def _indices(folder: Path) -> Iterator[tuple[Path, ShardIndex | Problem]]:
    """Yield path and sidecar of each shard in the order of their names, and what was wrong."""
    if mirror := mirror_at(folder.parent):
        yield from mirror.indices(folder)
        return
    for tar in _lost_shards(folder):
        yield tar, Problem(shard=tar, reason="is gone; its samples are encoded anew when needed")
    for tar in sorted(folder.glob("*.tar")):
        try:
            shard, problem = load_index(tar, tar.stat().st_size)
        except FileNotFoundError:
            continue  # removed just now, because nobody needs it or a new one is in its place
        except OSError as error:
            yield tar, Problem(shard=tar, reason=f"cannot be read: {error.strerror}; not used")
            continue
        if problem:
            yield tar, problem
        yield tar, shard
