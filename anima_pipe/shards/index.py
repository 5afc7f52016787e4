"""What lies in a shard and where, in columns of one entry per sample, as its sidecar has them."""

from __future__ import annotations

import sys
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anima_pipe.shards.sample import METADATA, PAYLOAD, TensorPlace, quick_hash, tensor_places
from anima_pipe.shards.tar import Span, padded


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something wrong in a cache, and what became of it."""

    shard: Path
    reason: str
    key: str | None = None
    """The sample it is about; None: the whole shard."""

    def __str__(self) -> str:
        sample = f", sample {self.key}" if self.key else ""
        return f"{self.shard}{sample}: {self.reason}"


def _integers() -> array[int]:
    return array("q")


@dataclass(frozen=True, slots=True)
class MemberColumns:
    """Place and checksum of one member of every sample."""

    offset: array[int] = field(default_factory=_integers)
    length: array[int] = field(default_factory=_integers)
    crc32: array[int] = field(default_factory=_integers)

    def add(self, span: Span, content: bytes) -> None:
        """Append the next sample's member."""
        self.offset.append(span.offset)
        self.length.append(span.length)
        self.crc32.append(zlib.crc32(content))

    def cut(self, samples: int) -> None:
        """Leave the first so many samples."""
        del self.offset[samples:], self.length[samples:], self.crc32[samples:]

    def span(self, row: int) -> Span:
        """Return where a sample's member lies."""
        return Span(self.offset[row], self.length[row])


@dataclass(frozen=True, slots=True)
class TensorColumns:
    """Dtype, shape and place of one tensor of every sample."""

    dtype: list[str] = field(default_factory=list[str])
    shape: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    offset: array[int] = field(default_factory=_integers)

    def add(self, place: TensorPlace, payload_offset: int) -> None:
        """Append the next sample's tensor, which mostly is shaped like the one before it."""
        same = self.shape and self.shape[-1] == place.shape
        self.dtype.append(sys.intern(place.dtype))
        self.shape.append(self.shape[-1] if same else place.shape)
        self.offset.append(payload_offset + place.offset)

    def kind(self, row: int) -> tuple[str, tuple[int, ...]]:
        """Return a sample's dtype, by safetensors' name, and shape."""
        return self.dtype[row], self.shape[row]

    def cut(self, samples: int) -> None:
        """Leave the first so many samples."""
        del self.dtype[samples:], self.shape[samples:], self.offset[samples:]


@dataclass(slots=True, kw_only=True)
class ShardIndex:
    """The contents of one sidecar."""

    tar: str
    """The shard's file name."""
    tar_bytes: int = 0
    keys: list[str] = field(default_factory=list[str])
    payloads: MemberColumns = field(default_factory=MemberColumns)
    payload_hashes: array[int] = field(default_factory=lambda: array("Q"))
    """The payloads' `quick_hash`; empty in sidecars of before there was one."""
    metadata: MemberColumns = field(default_factory=MemberColumns)
    tensors: dict[str, TensorColumns] = field(default_factory=dict[str, TensorColumns])
    damaged: dict[str, str] = field(default_factory=dict[str, str])
    """Keys that are in the tar and not used, and what is wrong with each, as in `fitness`."""

    def add(self, key: str, spans: Mapping[str, Span], members: Mapping[str, bytes]) -> None:
        """Append a sample.

        Args:
            key: Its name.
            spans: Where its members lie in the tar, by extension.
            members: Their contents.

        Raises:
            ValueError: It is not a sample, or does not hold the tensors that the others hold.
        """
        places = tensor_places(members[PAYLOAD])
        columns = self.tensors or {name: TensorColumns() for name in places}
        if columns.keys() != places.keys():
            raise ValueError(f"{key} holds {sorted(places)}, not {sorted(columns)}")
        self.tensors = columns
        for name, place in places.items():
            columns[name].add(place, spans[PAYLOAD].offset)
        self.keys.append(key)
        self.payloads.add(spans[PAYLOAD], members[PAYLOAD])
        self.payload_hashes.append(quick_hash(members[PAYLOAD]))
        self.metadata.add(spans[METADATA], members[METADATA])

    def cut(self, samples: int) -> None:
        """Leave the first so many samples, whatever of another one has been appended."""
        del self.keys[samples:], self.payload_hashes[samples:]
        for columns in (self.payloads, self.metadata, *self.tensors.values()):
            columns.cut(samples)

    def longer_than(self, limit: int, tensor: str) -> dict[str, int]:
        """Return the lengths, along its first axis, of a tensor that is longer, by key."""
        shapes = self.tensors[tensor].shape if self.keys else []
        return {
            key: shape[0] for key, shape in zip(self.keys, shapes, strict=True) if shape[0] > limit
        }

    def end(self, row: int) -> int:
        """Return where the next sample's bytes begin."""
        return padded(max(self.payloads.span(row).end, self.metadata.span(row).end))
