"""Thinning out a cache: finding what no dataset needs any more, and removing it.

A shard is never changed in place. One that holds nothing needed is removed; of one that holds some,
what is needed is first written to a new shard, whole, and then the old one is removed. A kill in
between leaves both, which is a second copy and no harm. What somebody has open is left alone, and
what is removed lies in the trash for a while.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Generator, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from anima_pipe.errors import OutputError
from anima_pipe.files import refusals_named
from anima_pipe.shards.contents import read_shards
from anima_pipe.shards.fitness import WrongSampleError
from anima_pipe.shards.folders import Kind, described_folders
from anima_pipe.shards.index import ShardIndex
from anima_pipe.shards.leases import LEASES, holders
from anima_pipe.shards.mirror import Mirror, mirror_at
from anima_pipe.shards.reading import ShardReader
from anima_pipe.shards.sidecar import index_path, write_index
from anima_pipe.shards.tar import BLOCK, END_OF_ARCHIVE, tar_sample
from anima_pipe.shards.trash import move_to_trash, place_in_trash, put_back
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


def remove_waste(waste: Waste, *, now: bool = False) -> str:
    """Remove a shard's waste; samples found damaged on the way go with it.

    A shard goes to the trash first. One of a cache that somebody has open stays, and so does one
    of a cache that is opened while the shard is on its way there.

    Args:
        waste: As `find_waste` returns it.
        now: Whether to delete the shard at once, not to move it to the trash.

    Returns:
        Why the shard stays, and nothing where it went, or was gone already.

    Raises:
        OutputError: The disk, or the storage that is mirrored, refuses it; then the shard stays as
            it was.
    """
    if mirror := mirror_at(waste.tar.parent.parent):
        _remove_elsewhere(waste, mirror)
        return ""
    if who := holders(waste.tar.parent):
        return _in_use(who)
    try:
        if waste.kept_rows:
            _write_kept(waste)
        with refusals_named(waste.tar):
            return _to_trash(waste.tar, now=now)
    except FileNotFoundError:
        return ""  # another process has removed it
    except OutputError as error:
        if isinstance(error.__cause__, FileNotFoundError) and not waste.tar.exists():
            return ""
        raise


def _to_trash(tar: Path, *, now: bool) -> str:
    move_to_trash(tar)
    # Whoever has opened the cache since then may have seen the shard; who comes later has not.
    if who := holders(tar.parent):
        put_back(tar)
        return _in_use(who)
    if now:
        for file in (place_in_trash(tar), index_path(place_in_trash(tar))):
            file.unlink(missing_ok=True)
    return ""


def _in_use(who: Sequence[str]) -> str:
    return f"stays, in use by {', '.join(who)}"


def _remove_elsewhere(waste: Waste, mirror: Mirror) -> None:
    """Remove a shard's waste at an address: at once, for there are neither leases nor trash."""
    if waste.kept_rows:
        mirror.fetch(waste.tar, waste.index)
    new = _write_kept(waste) if waste.kept_rows else None
    mirror.replace(waste.tar, new)
    with refusals_named(waste.tar):
        for file in (waste.tar, index_path(waste.tar)):
            file.unlink(missing_ok=True)


@contextmanager
def alone(cache_dir: Path) -> Generator[None]:
    """Let one process at a time remove things from a cache, where the system has locks."""
    from filelock import FileLock

    lock = FileLock(cache_dir / LEASES / "gc.lock")
    with suppress(OSError, NotImplementedError):
        (cache_dir / LEASES).mkdir(exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
        old = ShardReader(waste.tar, index)
        for row in waste.kept_rows:
            with suppress(WrongSampleError):
                members = old.members(row)
                shard.add(index.keys[row], members, *tar_sample(index.keys[row], members))
        if not shard.keys:
            return None
        if refused := shard.publish():
            raise refused
        new = waste.tar.with_name(shard.index.tar)
        write_index(new, shard.index)
    finally:
        shard.discard()
    return new
