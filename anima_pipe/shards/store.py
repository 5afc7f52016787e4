"""Reading a cache: any sample at any time, as tensors that lie in the mapped shard."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, KeysView
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Generic

import torch

from anima_pipe.errors import CacheError
from anima_pipe.shards.codec import TORCH_DTYPES, Codec, Value
from anima_pipe.shards.contents import read_shards
from anima_pipe.shards.folders import Identity, find_folder
from anima_pipe.shards.index import Problem, ShardIndex, rebuild_index
from anima_pipe.shards.leases import lease_of
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.shards.sample import unseal
from anima_pipe.shards.trash import place_in_trash

MAPPED_SHARDS: Final = 128
"""Shards mapped at the same time. Each costs a file descriptor, of which 1024 are usual."""


class Store(Generic[Value]):
    """Random access to the samples of one encoder.

    What is in it is settled when it is opened; shards published later are seen by the next one.
    Pickled and forked copies hold the same samples and map the shards for themselves. A mirrored
    cache's shards are fetched when one of their samples is read.

    Args:
        codec: What is read.
        cache_dir: The cache folder; need not exist.
        name: Which encoder's, see `Identity.is_called`; None: the only one there.

    Raises:
        CacheError: Several caches fit, or the description of one cannot be read.
    """

    def __init__(self, codec: Codec[Value], cache_dir: Path, name: str | None) -> None:
        found = find_folder(cache_dir, codec.kind, name)
        self.folder: Path = found[0] if found else cache_dir
        self.identity: Identity | None = found[1] if found else None
        """Whose tensors these are; None: there is no such cache, and the store is empty."""
        self._mirror = mirror_at(cache_dir)
        # Before its sidecars are read: what they name then stays.
        self._lease = lease_of(found[0]) if found and not self._mirror else None
        shards, problems = read_shards(found[0], codec.kind) if found else ([], [])
        self.problems: tuple[Problem, ...] = tuple(problems)
        """What was found wrong while opening: rebuilt sidecars, damaged samples."""
        self._codec = codec
        self._shards = shards
        self._tars = [self.folder / shard.tar for shard in shards]
        self._places = _first_places(shards)
        self._start_reading()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def keys(self) -> KeysView[str]:
        """Return the keys, in the order of the shards."""
        return self._places.keys()

    @property
    def shard_bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.tar_bytes for shard in self._shards)

    def shape(self, key: str) -> tuple[int, ...]:
        """Return the shape of a sample's first tensor, without touching its shard.

        Raises:
            CacheError: There is no such sample.
        """
        number, row = self._place(key)
        return self._shards[number].tensors[self._codec.names[0]].shape[row]

    def longer_than(self, limit: int, tensor: str) -> set[str]:
        """Return the samples of which a tensor is longer along its first axis."""
        return {key for shard in self._shards for key in shard.longer_than(limit, tensor)}

    def __getitem__(self, key: str) -> Value:
        """Return a sample whose tensors lie in the mapped shard: do not change them in place.

        Raises:
            CacheError: There is no such sample, or it is damaged.
        """
        shard, row, mapped = self._checked_place(key)
        tensors: dict[str, torch.Tensor] = {}
        for name in self._codec.names:
            columns = shard.tensors[name]
            dtype = TORCH_DTYPES[columns.dtype[row]]
            tensors[name] = _mapped_tensor(mapped, dtype, columns.shape[row], columns.offset[row])
        return self._codec.unpack(tensors)

    def metadata(self, key: str) -> dict[str, Any]:
        """Return what the sample's writer noted about it.

        Raises:
            CacheError: There is no such sample, or it is damaged.
        """
        shard, row, mapped = self._checked_place(key)
        start = shard.metadata.offset[row]
        return unseal(mapped[start : start + shard.metadata.length[row]])

    def verify(self) -> list[Problem]:
        """Read every sample of every shard and compare its checksum.

        A damaged sample is struck from its sidecar, so that the next caching run encodes it anew.

        Returns:
            What was found wrong while opening, and what was found now.
        """
        found = [problem for shard in self._shards for problem in self._verify_shard(shard)]
        return [*self.problems, *found]

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_mapping", "_checked", "_lease")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lease = None  # whoever it was copied from holds one
        self._start_reading()

    def _start_reading(self) -> None:
        # Evicting a mapping drops our reference only: tensors that lie in it keep it alive.
        read = self._fetch_and_map if self._mirror else _map_shard
        self._mapping = lru_cache(MAPPED_SHARDS)(read)
        self._checked: set[str] = set()

    def _fetch_and_map(self, tar: Path, tar_bytes: int) -> mmap.mmap:
        assert self._mirror is not None
        while True:
            if self._mirror.fetch(tar, self._shards[self._tars.index(tar)]):
                # Others may have had to make room for it: let go of what is gone, and its bytes.
                self._mapping.cache_clear()
            try:
                return _map_shard(tar, tar_bytes)
            except CacheError:
                if tar.exists():
                    raise
                # Another process made room just now; it is fetched again.

    def _place(self, key: str) -> tuple[int, int]:
        place = self._places.get(key)
        if place is not None:
            return place
        where = self.folder if self.identity else f"{self.folder}, which has no such cache"
        raise CacheError(
            f"sample {key} is not among the {len(self)} cached {self._codec.kind} in {where}",
            f"run `anima-pipe {self._codec.command}` with this dataset, encoder and --cache_dir",
        )

    def _checked_place(self, key: str) -> tuple[ShardIndex, int, mmap.mmap]:
        """Find a sample, comparing its checksum the first time that this process asks for it."""
        number, row = self._place(key)
        shard = self._shards[number]
        mapped = self._mapping(self._tars[number], shard.tar_bytes)
        if key not in self._checked:
            if not shard.seems_whole(row, memoryview(mapped)):
                raise self._damage(shard, key)
            self._checked.add(key)
        return shard, row, mapped

    def _damage(self, shard: ShardIndex, key: str) -> CacheError:
        """Find out whether the tar or only its sidecar is wrong, and note it in the sidecar."""
        tar = self.folder / shard.tar
        if self._mirror:
            self._mirror.drop(tar)
            return CacheError(
                f"the copy of sample {key} in {tar} was damaged, and has been removed",
                f"run the same command again: it is fetched anew from {self._mirror.shown}",
            )
        if key in rebuild_index(tar).keys:
            return CacheError(
                f"the sidecar of {tar} was wrong about sample {key}, and has been rebuilt",
                "run the same command again",
            )
        return CacheError(
            f"sample {key} in {tar} is damaged: its bytes do not have their checksum",
            f"run `anima-pipe {self._codec.command}` again, which encodes this sample anew",
        )

    def _verify_shard(self, shard: ShardIndex) -> list[Problem]:
        tar = self.folder / shard.tar
        try:
            if self._mirror and self._mirror.fetch(tar, shard):
                return []  # fetching has compared every checksum
            view = memoryview(_map_shard(tar, shard.tar_bytes))
        except CacheError as error:
            return [Problem(shard=tar, reason=error.problem)]
        bad = [key for row, key in enumerate(shard.keys) if not shard.is_whole(row, view)]
        if not bad:
            return []
        if self._mirror:
            self._mirror.drop(tar)
            return [Problem(shard=tar, reason="the copy was damaged, and has been removed")]
        rebuilt = set(rebuild_index(tar).keys)
        return [
            Problem(
                shard=tar,
                key=key,
                reason="the sidecar was wrong, and has been rebuilt"
                if key in rebuilt
                else "damaged: its bytes do not have their checksum",
            )
            for key in bad
        ]


def _first_places(shards: list[ShardIndex]) -> dict[str, tuple[int, int]]:
    """Return (shard number, row) of every key; of several copies the first shard's counts."""
    places: dict[str, tuple[int, int]] = {}
    for number, shard in enumerate(shards):
        for row, key in enumerate(shard.keys):
            places.setdefault(key, (number, row))
    return places


def _map_shard(tar: Path, tar_bytes: int) -> mmap.mmap:
    """Map a shard. Writes would go to private pages, but torch warns of buffers it cannot write.

    Raises:
        CacheError: It cannot be opened, or has not the size that its sidecar says.
    """
    try:
        # Removed since its sidecar was read, it lies in the trash for a while.
        with (tar if tar.exists() else place_in_trash(tar)).open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except (OSError, ValueError) as error:
        raise CacheError(
            f"{tar} cannot be opened: {error}", "check the disk, or encode again"
        ) from error
    if len(mapped) != tar_bytes:
        # Reading behind the end of a mapped file would kill the process.
        raise CacheError(
            f"{tar} has {len(mapped)} bytes, not {tar_bytes}: it was changed or cut off",
            "run the same command again: its sidecar is then rebuilt from what is left",
        )
    return mapped


def _mapped_tensor(
    mapped: mmap.mmap, dtype: torch.dtype, shape: tuple[int, ...], offset: int
) -> torch.Tensor:
    count = math.prod(shape)
    if count == 0:  # frombuffer refuses to make empty tensors
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(mapped, dtype=dtype, count=count, offset=offset).view(shape)
