"""Filling a cache: samples go into a shard in progress, full shards are published whole."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Generic, Self

import safetensors.torch

from anima_pipe.errors import CacheError, OutputError
from anima_pipe.runtime import counted
from anima_pipe.shards.codec import Codec, Value, stored_tensors
from anima_pipe.shards.folders import Identity, StoredDtype, make_folder
from anima_pipe.shards.index import ShardIndex
from anima_pipe.shards.leases import lease_of
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.shards.packed_keys import KeySet
from anima_pipe.shards.places import open_place
from anima_pipe.shards.reading import ShardReader
from anima_pipe.shards.sample import METADATA, PAYLOAD, seal
from anima_pipe.shards.shipping import Shipping
from anima_pipe.shards.sidecar import write_index
from anima_pipe.shards.tar import END_OF_ARCHIVE, Span, tar_sample
from anima_pipe.shards.unfinished import UnfinishedFile, remove_abandoned

SHARD_BYTES: Final = 256 * 2**20
"""Where a shard ends: large enough to stream well, small enough to lose."""

SHARD_SAMPLES: Final = 4096
"""Where a shard of tiny samples ends: its index is held whole while it is written or read. Latents
of pictures above 360 pixels, and texts above 30 tokens, fill a shard with fewer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterSummary:
    """What a writer has published."""

    samples: int = 0
    shards: int = 0
    written_bytes: int = 0
    kept_in_bf16: tuple[str, ...] = ()
    """Keys of samples that an fp16 cache holds in bf16, having values beyond fp16's range."""

    def with_shard(self, shard: ShardIndex, dtype: StoredDtype) -> WriterSummary:
        """Return the summary with one shard more."""
        return WriterSummary(
            samples=self.samples + len(shard.keys),
            shards=self.shards + 1,
            written_bytes=self.written_bytes + shard.tar_bytes,
            kept_in_bf16=(*self.kept_in_bf16, *_kept_in_bf16(shard, dtype)),
        )


class ShardWriter(Generic[Value]):
    """Writes samples of one encoder into shards of its own, beside other writers' shards.

    A context manager. Leaving the block publishes the shard in progress, whether it ends well or by
    an exception: what was encoded is kept. A kill loses at most the shard in progress. When the
    disk refuses a write, that shard is published up to the last whole sample.

    Shards of a mirrored cache are uploaded while the writer goes on; leaving the block waits for
    that. After an exception no more are: the next run does it.

    Args:
        codec: What is written.
        cache_dir: The cache folder; made if need be. Or an address.
        fingerprint: Of the encoder; chooses the folder.
        dtype: What floating tensors are stored in.
        encoder_name: For people, in cache.json.
        shard_bytes: A shard is published before it would grow past this size, or past
            `SHARD_SAMPLES` samples.

    Raises:
        CacheError: The folder was made with something else.
        OutputError: It cannot be written, or is an address where this may not be done.
    """

    def __init__(
        self,
        codec: Codec[Value],
        cache_dir: Path | str,
        fingerprint: str,
        dtype: StoredDtype,
        encoder_name: str,
        shard_bytes: int,
    ) -> None:
        identity = Identity(
            kind=codec.kind, fingerprint=fingerprint, dtype=dtype, encoder_name=encoder_name
        )
        place = open_place(cache_dir)
        self.folder = make_folder(place, identity)
        self._shipping: Shipping | None = None
        if mirror := mirror_at(place):
            self._shipping = Shipping(mirror)
            self._shipping.describe(self.folder)
            self.folder = make_folder(mirror.outgoing, identity)
        self._lease = lease_of(self.folder)
        remove_abandoned(self.folder)
        # Names sort by time, so that of two copies of a sample the older is read: deterministic.
        self._name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(4)}"
        self._codec = codec
        self._dtype: StoredDtype = dtype
        self._shard_bytes = shard_bytes
        self._shard: ShardInProgress | None = None
        self._published_keys = KeySet()
        self.summary = WriterSummary()
        """What has been published so far; complete once the block is left."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.publish()
        finally:
            self._lease.release()
        if self._shipping and error is None:
            self._shipping.finish()
        elif self._shipping:
            self._shipping.abandon()

    def add(self, key: str, value: Value, metadata: Mapping[str, object]) -> None:
        """Store a sample; one that this writer already has is left out.

        Args:
            key: From `latent_key` or `text_key`.
            value: The sample, on any device.
            metadata: What `Store.metadata` gives back: anything JSON can say.

        Raises:
            DataError: A value is NaN or infinite; the writer can go on with other samples.
            OutputError: The disk refuses it. What came before is published, as far as it takes it.
        """
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key):
            raise ValueError(f"{key!r} cannot name a sample")
        if key in self._published_keys or (self._shard and key in self._shard.keys):
            return
        tensors = stored_tensors(key, self._codec.pack(value), self._dtype)
        payload = safetensors.torch.save(tensors)  # noqa: TID251 - a sample; finite, or refused
        members = {PAYLOAD: payload, METADATA: seal(metadata, payload)}
        piece, spans = tar_sample(key, members)
        try:
            self._shard_with_room_for(len(piece)).add(key, members, piece, spans)
        except OutputError as error:
            with suppress(OutputError):  # of the same disk, for the same reason
                self._publish()
            raise self._with_what_is_kept(error) from error.__cause__

    def publish(self) -> None:
        """Publish the shard in progress, if any; the next sample starts another.

        Raises:
            OutputError: The disk refuses it, or some of it: the others of its samples are kept.
        """
        try:
            self._publish()
        except OutputError as error:
            raise self._with_what_is_kept(error) from error.__cause__

    def _publish(self) -> None:
        shard, self._shard = self._shard, None
        if shard is None:
            return
        try:
            refused = shard.publish() if shard.keys else None
        finally:
            shard.discard()
        if shard.keys:
            self.summary = self.summary.with_shard(shard.index, self._dtype)
            self._published_keys.update(shard.keys)
            # Where there is no room for the sidecar, whoever opens the cache makes it of the tar.
            write_index(self.folder / shard.index.tar, shard.index)
            if self._shipping:
                self._shipping.send(self.folder / shard.index.tar)
        if refused:
            raise refused

    def _with_what_is_kept(self, error: OutputError) -> OutputError:
        kept = counted(self.summary.samples, "sample") if self.summary.samples else "nothing"
        return OutputError(
            f"{error.problem}; kept in {self.folder}: {kept} of this run",
            f"{error.remedy}; then run the same command again, which encodes only the rest",
        )

    def _shard_with_room_for(self, length: int) -> ShardInProgress:
        shard = self._shard
        if shard and (
            shard.size_with(length) > self._shard_bytes or len(shard.keys) >= SHARD_SAMPLES
        ):
            self._publish()
        if self._shard is None:
            path = self.folder / f"{self._name}-{self.summary.shards:06d}.tar"
            self._shard = ShardInProgress(path)
        return self._shard


class ShardInProgress:
    """A tar under a temporary name, and the index that grows with it."""

    def __init__(self, path: Path) -> None:
        self._file = UnfinishedFile(path, END_OF_ARCHIVE)
        self.index = ShardIndex(tar=path.name)
        self.keys: set[str] = set()

    def size_with(self, length: int) -> int:
        """Return the shard's size if `length` bytes more were in it."""
        return self._file.length + length + len(END_OF_ARCHIVE)

    def add(
        self,
        key: str,
        members: Mapping[str, bytes],
        piece: memoryview,
        spans: Mapping[str, Span],
    ) -> None:
        """Append one sample's tar bytes; interrupted, the samples before stay whole."""
        start, samples = self._file.length, len(self.index.keys)
        try:
            self._file.append(piece)
            self.index.add(key, {name: span.moved(start) for name, span in spans.items()}, members)
            self.keys.add(key)
        except BaseException:
            self._file.length = start
            self.index.cut(samples)
            self.keys.discard(key)
            raise

    def publish(self) -> OutputError | None:
        """Flush the tar to the disk and give it its name.

        Where the disk refuses, it is cut to what the disk gives back, then by one sample, two, four
        and so on, until the rest has room. It may be that none is left, and nothing published.

        Returns:
            What the disk refused first; None: all is published.
        """
        refused: OutputError | None = None
        dropped = 0
        while self.keys:
            self.index.tar_bytes = self._file.length + len(END_OF_ARCHIVE)
            try:
                self._file.publish()
            except OutputError as error:
                refused = refused or error
                if not self._file.is_published:
                    dropped = max(1, 2 * dropped)
                    self._cut(min(self._samples_on_disk(), len(self.keys) - dropped))
                    continue
            break
        return refused

    def _samples_on_disk(self) -> int:
        """Return how many samples, from the first on, can be read back as they were written."""
        self._file.forget_unwritten()
        try:
            wrong = dict(ShardReader(self._file.path, self.index).wrong())
        except CacheError:
            return 0
        return next(
            (row for row, key in enumerate(self.index.keys) if key in wrong), len(self.keys)
        )

    def _cut(self, samples: int) -> None:
        """Leave the first so many samples."""
        samples = max(samples, 0)
        self._file.length = self.index.end(samples - 1) if samples else 0
        self.index.cut(samples)
        self.keys = set(self.index.keys)

    def discard(self) -> None:
        """Remove it, unless it is published."""
        self._file.discard()


def _kept_in_bf16(index: ShardIndex, dtype: StoredDtype) -> list[str]:
    if dtype != "fp16":
        return []
    rows = range(len(index.keys))
    dtypes = [columns.dtype for columns in index.tensors.values()]
    return [index.keys[row] for row in rows if any(column[row] == "BF16" for column in dtypes)]
