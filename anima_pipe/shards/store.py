"""Reading a cache: any sample at any time, by its place in its shard."""

from __future__ import annotations

import math
from collections.abc import Iterator, KeysView, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, Generic, cast

import torch

from anima_pipe.errors import CacheError
from anima_pipe.shards.codec import TORCH_DTYPES, Codec, Value
from anima_pipe.shards.contents import read_shards
from anima_pipe.shards.fitness import WrongSampleError
from anima_pipe.shards.folders import Identity, find_folder
from anima_pipe.shards.index import Problem, ShardIndex
from anima_pipe.shards.leases import lease_of
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.shards.reading import ShardReader
from anima_pipe.shards.sample import unseal
from anima_pipe.shards.sidecar import rebuild_index
from anima_pipe.shards.tar import BLOCK
from anima_pipe.shards.trash import place_in_trash

OPEN_SHARDS: Final = 128
"""Shards that are open at the same time. Each costs a file descriptor, of which 1024 are usual."""


class Store(Generic[Value]):
    """Random access to the samples of one encoder.

    What is in it is settled when it is opened; shards published later are seen by the next one.
    Pickled and forked copies hold the same samples and open the shards for themselves. A mirrored
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
    def tensor(self) -> str:
        """The name of a sample's first tensor."""
        return self._codec.names[0]

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

    def shard_of(self, key: str) -> Path:
        """Return the path of a sample's shard.

        Raises:
            CacheError: There is no such sample.
        """
        return self.folder / self._shards[self._place(key)[0]].tar

    def longer_than(self, limit: int, tensor: str) -> set[str]:
        """Return the samples of which a tensor is longer along its first axis."""
        return {key for shard in self._shards for key in shard.longer_than(limit, tensor)}

    def __getitem__(self, key: str) -> Value:
        """Return a sample, in memory of its own.

        Raises:
            CacheError: There is no such sample, it cannot be read, or it is damaged or unfit.
        """
        reader, row = self._reader(key)
        try:
            # What the header says stays true as long as the checksum does: compared once.
            payload = reader.payload(row) if key in self._compared else reader.compared(row)
        except WrongSampleError as error:
            raise self._damage(reader.index, key, error) from error
        self._compared.add(key)
        return self._codec.unpack(
            {name: _tensor(reader.index, row, name, payload) for name in self._codec.names}
        )

    def stacked(self, keys: Sequence[str]) -> torch.Tensor:
        """Return samples of one tensor each, of one shape, as a batch, read straight into it.

        Args:
            keys: Of at least one sample.

        Returns:
            [B, ...] in the stored dtype; in one that holds all, where there are several.

        Raises:
            CacheError: There is no such sample, it cannot be read, or it is damaged or unfit.
        """
        (name,) = self._codec.names
        found = [self._reader(key) for key in keys]
        kinds = {reader.index.tensors[name].kind(row) for reader, row in found}
        if len(kinds) > 1:
            return torch.stack([cast("torch.Tensor", self[key]) for key in keys])
        ((dtype, shape),) = kinds
        batch = torch.empty((len(keys), *shape), dtype=TORCH_DTYPES[dtype])
        rows = batch.view(len(keys), -1).view(torch.uint8).numpy()
        for (reader, row), content, sample in zip(found, rows, batch, strict=True):
            key = reader.index.keys[row]
            if key not in self._compared:
                sample.copy_(cast("torch.Tensor", self[key]))
                continue
            # What stands before the tensor goes elsewhere; the tensor ends the sample.
            head = bytearray(BLOCK + reader.index.payloads.length[row] - len(content))
            try:
                reader.read_payload(row, memoryview(head), content.data)
            except WrongSampleError as error:
                raise self._damage(reader.index, key, error) from error
        return batch

    def metadata(self, key: str) -> dict[str, Any]:
        """Return what the sample's writer noted about it.

        Raises:
            CacheError: There is no such sample, it cannot be read, or it is damaged.
        """
        reader, row = self._reader(key)
        try:
            return unseal(reader.noted(row))
        except WrongSampleError as error:
            raise self._damage(reader.index, key, error) from error
        except (ValueError, KeyError, TypeError) as error:
            unfit = WrongSampleError("unfit: its JSON is none of a sample")
            raise self._damage(reader.index, key, unfit) from error

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
            if name not in ("_opened", "_compared", "_lease")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lease = None  # whoever it was copied from holds one
        self._start_reading()

    def _start_reading(self) -> None:
        # One that is let go of is closed once nobody reads it any more.
        opening = partial(_open_shard, self.folder, self._shards)
        self._opened = lru_cache(OPEN_SHARDS)(self._fetch_and_open if self._mirror else opening)
        self._compared: set[str] = set()

    def _fetch_and_open(self, number: int) -> ShardReader:
        assert self._mirror is not None
        tar = self.folder / self._shards[number].tar
        while True:
            if self._mirror.fetch(tar, self._shards[number]):
                # Others may have had to make room for it: let go of what is gone, and its bytes.
                self._opened.cache_clear()
            try:
                return _open_shard(self.folder, self._shards, number)
            except CacheError:
                if tar.exists():
                    raise
                # Another process made room just now; it is fetched again.

    def _reader(self, key: str) -> tuple[ShardReader, int]:
        """Return what reads a sample's shard, and the sample's row."""
        number, row = self._place(key)
        return self._opened(number), row

    def _place(self, key: str) -> tuple[int, int]:
        place = self._places.get(key)
        if place is not None:
            return place
        for problem in self.problems:
            if problem.key == key:
                raise CacheError(
                    f"sample {key} in {problem.shard} is not used: {problem.reason}",
                    f"run `anima-pipe {self._codec.command}` again",
                )
        where = self.folder if self.identity else f"{self.folder}, which has no such cache"
        raise CacheError(
            f"sample {key} is not among the {len(self)} cached {self._codec.kind} in {where}",
            f"run `anima-pipe {self._codec.command}` with this dataset, encoder and --cache_dir",
        )

    def _damage(self, shard: ShardIndex, key: str, error: WrongSampleError) -> CacheError:
        """Find out whether the tar or only its sidecar is wrong, and note it in the sidecar."""
        tar = self.folder / shard.tar
        if self._mirror:
            self._mirror.drop(tar)
            return CacheError(
                f"the copy of sample {key} in {tar} was {error}; it has been removed",
                f"run the same command again: it is fetched anew from {self._mirror.shown}",
            )
        if key in rebuild_index(tar).keys:
            return CacheError(
                f"the sidecar of {tar} was wrong about sample {key}, and has been rebuilt: the "
                f"sample was {error}",
                "run the same command again",
            )
        return CacheError(
            f"sample {key} in {tar} is {error}",
            f"run `anima-pipe {self._codec.command}` again, which encodes this sample anew",
        )

    def _verify_shard(self, shard: ShardIndex) -> list[Problem]:
        tar = self.folder / shard.tar
        try:
            if self._mirror and self._mirror.fetch(tar, shard):
                return []  # fetching has compared everything
            wrong = dict(ShardReader(tar, shard).wrong())
        except CacheError as error:
            return [Problem(shard=tar, reason=error.problem)]
        if not wrong:
            return []
        if self._mirror:
            self._mirror.drop(tar)
            return [Problem(shard=tar, reason="the copy was damaged, and has been removed")]
        rebuilt = set(rebuild_index(tar).keys)
        mended = "the sidecar was wrong, and has been rebuilt"
        return [
            Problem(shard=tar, key=key, reason=f"{mended} ({why})" if key in rebuilt else why)
            for key, why in wrong.items()
        ]


def _first_places(shards: list[ShardIndex]) -> dict[str, tuple[int, int]]:
    """Return (shard number, row) of every key; of several copies the first shard's counts."""
    places: dict[str, tuple[int, int]] = {}
    for number, shard in enumerate(shards):
        for row, key in enumerate(shard.keys):
            places.setdefault(key, (number, row))
    return places


def _open_shard(folder: Path, shards: Sequence[ShardIndex], number: int) -> ShardReader:
    tar = folder / shards[number].tar
    # Removed since its sidecar was read, it lies in the trash for a while.
    return ShardReader(tar if tar.exists() else place_in_trash(tar), shards[number])


def _tensor(index: ShardIndex, row: int, name: str, payload: memoryview) -> torch.Tensor:
    """Return a tensor that lies in a sample's safetensors bytes, which it keeps."""
    columns = index.tensors[name]
    dtype, shape = columns.kind(row)
    count = math.prod(shape)
    if count == 0:  # frombuffer refuses to make empty tensors
        return torch.empty(shape, dtype=TORCH_DTYPES[dtype])
    offset = columns.offset[row] - index.payloads.offset[row]
    tensor = torch.frombuffer(payload, dtype=TORCH_DTYPES[dtype], count=count, offset=offset)
    return tensor.view(shape)
