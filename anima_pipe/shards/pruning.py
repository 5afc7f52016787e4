"""Thinning out a cache: finding what no dataset needs any more, and removing it.

A shard is never changed in place. One that holds nothing needed is removed; of one that holds some,
what is needed is first written to a new shard, whole, and then the old one is removed. A kill in
between leaves both, which is a second copy and no harm.
"""

from __future__ import annotations

import mmap
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from anima_pipe.files import refusals_named
from anima_pipe.shards.contents import read_shards
from anima_pipe.shards.folders import Kind, described_folders
from anima_pipe.shards.index import ShardIndex, index_path, write_index
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.shards.sample import METADATA, PAYLOAD
from anima_pipe.shards.tar import BLOCK, END_OF_ARCHIVE, tar_sample
from anima_pipe.shards.writer import ShardInProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """What one shard holds and nobody needs."""

    tar: Path
    index: ShardIndex
    kept_rows: Sequence[int]
    """Samples that are needed, and of which no earlier shard has a copy."""
    freed_bytes: int

    @property
    def samples(self) -> int:
        """How many samples go."""
        return len(self.index.keys) + len(self.index.damaged) - len(self.kept_rows)


def find_waste(cache_dir: Path, needed: Mapping[Kind, AbstractSet[str]]) -> list[Waste]:
    """List the shards that hold something unneeded: samples, second copies, damaged ones.

    Args:
        cache_dir: The cache folder.
        needed: The keys that are to stay, for the encoders of each kind alike.

    Raises:
        CacheError: The description of a cache cannot be read.
    """
    return [
        waste
        for kind, keys in needed.items()
        for folder, identity in described_folders(cache_dir, kind)
        for waste in _waste_in(folder, read_shards(folder, identity.kind)[0], keys)
    ]


def remove_waste(waste: Waste) -> None:
    """Remove a shard's waste; samples found damaged on the way go with it.

    Nothing may read the cache meanwhile: a run that is training would miss its shards.

    Raises:
        OutputError: The disk, or the storage that is mirrored, refuses it; then the shard stays as
            it was.
    """
    mirror = mirror_at(waste.tar.parent.parent)
    if mirror and waste.kept_rows:
        mirror.fetch(waste.tar, waste.index)
    new = _write_kept(waste) if waste.kept_rows else None
    if mirror:
        mirror.replace(waste.tar, new)
    with refusals_named(waste.tar):
        waste.tar.unlink(missing_ok=mirror is not None)
        with suppress(FileNotFoundError):
            index_path(waste.tar).unlink()


def _waste_in(
    folder: Path, shards: Sequence[ShardIndex], needed: AbstractSet[str]
) -> Iterator[Waste]:
    seen: set[str] = set()
    for index in shards:
        kept = [row for row, key in enumerate(index.keys) if key in needed and key not in seen]
        seen.update(index.keys)
        if len(kept) == len(index.keys) and not index.damaged:
            continue
        left = sum(_piece_bytes(index, row) for row in kept) + len(END_OF_ARCHIVE) if kept else 0
        yield Waste(
            tar=folder / index.tar,
            index=index,
            kept_rows=kept,
            freed_bytes=index.tar_bytes - left,
        )


def _piece_bytes(index: ShardIndex, row: int) -> int:
    """Return the bytes that a sample takes in a tar: two members, each with a header, padded."""
    lengths = (index.metadata.length[row], index.payloads.length[row])
    return sum(BLOCK - (-length // BLOCK) * BLOCK for length in lengths)


def _write_kept(waste: Waste) -> Path | None:
    """Write what is needed of a shard to a new one; return it, or None if nothing is whole."""
    index = waste.index
    # Named after the old one, so that it takes its place in the order of the shards.
    stem = re.sub(r"(?<=-\d{6})-[0-9a-f]{4}$", "", waste.tar.stem)
    shard = ShardInProgress(waste.tar.with_name(f"{stem}-{secrets.token_hex(2)}.tar"))
    try:
        with waste.tar.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with mapped, memoryview(mapped) as view:
            for row in waste.kept_rows:
                if index.is_whole(row, view):
                    members = _members(index, row, view)
                    shard.add(index.keys[row], members, *tar_sample(index.keys[row], members))
        if not shard.keys:
            return None
        shard.publish()
        new = waste.tar.with_name(shard.index.tar)
        write_index(new, shard.index)
    finally:
        shard.discard()
    return new


def _members(index: ShardIndex, row: int, shard: memoryview) -> dict[str, bytes]:
    places = {METADATA: index.metadata, PAYLOAD: index.payloads}
    return {
        name: bytes(shard[columns.offset[row] : columns.offset[row] + columns.length[row]])
        for name, columns in places.items()
    }
