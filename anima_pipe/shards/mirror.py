"""A folder that stands for a cache elsewhere: its sidecars, and those of its shards in use.

To everything that reads a cache, the mirror is the cache: it is laid out like one, but for shards
that have not been asked for yet. A folder is a mirror to a process that was given the address, and
to no other, whatever lies in it. `mirror.json` says what it mirrors, `listing.json` what was there
when it was last brought up to date, `copies.json` what the copies of small files are copies of. Of
shards, whole ones are kept, up to a size. What has gone from the address goes from the mirror when
room is made, and until then nobody looks at it.

    <mirror_dir>/<name>-<hash of the address>/
      mirror.json   listing.json   copies.json   locks/   scan/   mended/
      latents-3fa1c2d4e5f6-fp16/    cache.json, every sidecar, some shards
      outgoing/                     what is to be uploaded, see `anima_pipe.shards.shipping`
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anima_pipe.errors import CacheError
from anima_pipe.files import put_in_place, refusals_named, write_atomically
from anima_pipe.runtime import counted, say, warn
from anima_pipe.shards.copies import is_whole_copy, update_copies
from anima_pipe.shards.index import Problem, ShardIndex
from anima_pipe.shards.manifest import Listed, Listing, listing_text, read_listing
from anima_pipe.shards.mended import keep_mended, read_mended
from anima_pipe.shards.mirrored import described
from anima_pipe.shards.remote import Remote
from anima_pipe.shards.sidecar import (
    INDEX_SUFFIX,
    UnfitIndexError,
    index_path,
    read_index,
    rebuild_index,
)

if TYPE_CHECKING:
    from filelock import FileLock

LISTING: Final = "listing.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    """One cache elsewhere, and the folder that stands for it."""

    folder: Path
    url: str = field(repr=False)
    """With everything that is needed to read it; not to be printed."""
    limit_bytes: int
    """Of all shards in all mirrors that lie beside this one."""

    @property
    def remote(self) -> Remote:
        """What is mirrored."""
        return Remote(self.url)

    @property
    def shown(self) -> str:
        """The address as it may be printed."""
        return self.remote.shown

    @property
    def outgoing(self) -> Path:
        """Where writers put what is to be uploaded: a cache folder like any other."""
        return self.folder / "outgoing"

    def pull(self) -> None:
        """Bring descriptions and sidecars up to date; shards come when they are read.

        Raises:
            CacheError: The storage does not answer.
            OutputError: The mirror cannot be written.
        """
        # One process at a time, so that the listing on disk never becomes an older one.
        with self.locked("listing"):
            listing = self.remote.listing()
            update_copies(self.remote, listing, self.folder)
            self._remove_killed_transfers()
            write_atomically(self.folder / LISTING, listing_text(listing))

    def indices(self, folder: Path) -> Iterator[tuple[Path, ShardIndex | Problem]]:
        """Yield the shards of one encoder in the order of their names: path and sidecar.

        Args:
            folder: Of the encoder, in the mirror.
        """
        files = self.listed().get(folder.name, {})
        for name in sorted(name for name in files if name.endswith(INDEX_SUFFIX)):
            tar = folder / (name.removesuffix(INDEX_SUFFIX) + ".tar")
            if tar.name not in files:
                yield tar, Problem(shard=tar, reason=f"is not at {self.shown}, only its sidecar is")
                continue
            length = files[tar.name].length
            if mended := read_mended(self.folder, tar, files[name], length):
                yield tar, mended
                continue
            try:
                yield tar, read_index(tar, length)
            except UnfitIndexError as error:
                index = self._index_anew(tar, length, files[name])
                where = f"{self.shown}; it was rebuilt from the shard"
                yield tar, Problem(shard=tar, reason=f"{error} at {where}")
                yield tar, index

    def listed(self) -> Listing:
        """Return what was at the address when the mirror was last brought up to date.

        Raises:
            CacheError: That cannot be read.
        """
        try:
            return read_listing((self.folder / LISTING).read_bytes())
        except (OSError, ValueError) as error:
            raise CacheError(
                f"{self.folder / LISTING} cannot be read: {error}",
                "run the same command again, which writes it anew",
            ) from error

    def names(self, folder: Path) -> AbstractSet[str]:
        """Return the files of one encoder that are at the address.

        Args:
            folder: Of the encoder, in the mirror.
        """
        return self.listed().get(folder.name, {}).keys()

    def announce(self, length: int) -> None:
        """Say what is about to be read from where, and warn where it cannot all be kept.

        Args:
            length: Bytes of all shards that will be read.
        """
        if length > self.limit_bytes:
            warn(
                f"{self.shown} holds {length / 1e9:.3g} GB for this run, and its mirror may keep "
                f"{self.limit_bytes / 1e9:.3g} GB: shards will be fetched again and again; raise "
                "--cache_mirror_gb if the disk allows it"
            )
        else:
            say(f"cache     {self.shown}, {length / 1e9:.3g} GB, kept in {self.folder} once read")

    def fetch(self, tar: Path, shard: ShardIndex) -> bool:
        """Make sure that a shard lies in the mirror, whole and with every checksum right.

        Args:
            tar: Its path in the mirror.
            shard: Its sidecar.

        Returns:
            Whether it had to be fetched.

        Raises:
            CacheError: It is not there any more, or damaged; what is damaged is noted here, so that
                the next caching run encodes it anew.
            OutputError: There is no room for it.
        """
        if self._touch(tar, shard):
            return False
        with self.locked(tar.name):
            if self._touch(tar, shard):
                return False
            self.make_room(shard.tar_bytes)
            with self._arriving(tar) as partial:
                for _ in range(2):  # what was damaged on the way comes whole the second time
                    self._download(tar, partial, shard.tar_bytes)
                    if is_whole_copy(partial, shard):
                        _publish(partial, tar)
                        return True
                raise self._damage(tar, partial, shard)

    def replace(self, old: Path, new: Path | None) -> None:
        """Put a shard that lies in the mirror, with its sidecar, in the place of another one.

        Args:
            old: Removed where it comes from: first the sidecar, then the shard.
            new: Uploaded before that; None: nothing comes in its place.

        Raises:
            OutputError: The storage refuses it. What was there is then still there.
        """
        folder = old.parent.name
        for path in (new, index_path(new)) if new else ():
            self.remote.upload(path, f"{folder}/{path.name}")
        for path in (index_path(old), old):
            self.remote.remove(f"{folder}/{path.name}")

    def drop(self, tar: Path) -> None:
        """Remove a shard from the mirror; it is fetched again when it is asked for."""
        with suppress(OSError):
            tar.unlink()

    def make_room(self, length: int) -> None:
        """Remove shards, the least recently used first, until so many bytes more are allowed.

        A process that has one of them open keeps its bytes until it lets go of them.
        """
        with self.locked("room"):
            # Only what is a mirror: whatever else lies here is not ours to remove.
            mirrors = [folder for folder in self.folder.parent.glob("*") if described(folder)]
            found = [(tar, _status(tar)) for mirror in mirrors for tar in mirror.glob("*-*/*.tar")]
            # Those of mirrors beside this one come and go under locks of their own.
            shards = [(tar, status) for tar, status in found if status]
            total = sum(status.st_size for _, status in shards) + length
            for tar, status in sorted(shards, key=lambda shard: shard[1].st_mtime_ns):
                if total <= self.limit_bytes:
                    return
                self.drop(tar)
                total -= status.st_size

    @contextmanager
    def locked(self, name: str) -> Generator[None]:
        """Hold one of the mirror's locks; the system lets go of it when the process ends."""
        with refusals_named(self.folder):
            lock = self._lock(name)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _lock(self, name: str) -> FileLock:
        # Here, because it takes time to import, and a cache in a folder has no need of it.
        from filelock import FileLock

        folder = self.folder / "locks"
        folder.mkdir(parents=True, exist_ok=True)
        return FileLock(folder / f"{name}.lock")

    def _index_anew(self, tar: Path, tar_bytes: int, listed: Listed) -> ShardIndex:
        """Make the sidecar of a shard whose own is damaged where it comes from, and keep it here.

        Raises:
            CacheError: The shard itself does not come whole.
        """
        with self.locked(tar.name):
            if _size(tar) != tar_bytes:
                self.make_room(tar_bytes)
                with self._arriving(tar) as partial:
                    self._download(tar, partial, tar_bytes)
                    if _size(partial) != tar_bytes:
                        raise self._short(tar, partial, tar_bytes)
                    _publish(partial, tar)
            index = rebuild_index(tar)
            keep_mended(self.folder, tar, listed)
        return index

    @contextmanager
    def _arriving(self, tar: Path) -> Generator[Path]:
        """Lend the path that a shard has while it comes; whatever is left there is removed."""
        partial = tar.with_name(f"{tar.name}.partial")
        try:
            yield partial
        finally:
            partial.unlink(missing_ok=True)

    def _remove_killed_transfers(self) -> None:
        """Remove what came of shards whose fetching was killed."""
        for partial in self.folder.glob("*-*/*.partial"):
            with suppress(TimeoutError), self._lock(partial.stem).acquire(timeout=0):
                self.drop(partial)

    def _touch(self, tar: Path, shard: ShardIndex) -> bool:
        """Note that a shard is used; tell whether it is there."""
        if _size(tar) != shard.tar_bytes:
            return False
        with suppress(OSError):
            os.utime(tar)
        return True

    def _download(self, tar: Path, partial: Path, most: int) -> None:
        place = f"{tar.parent.name}/{tar.name}"
        with refusals_named(tar):
            tar.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.remote.download(place, partial, most)
        except FileNotFoundError as error:
            raise CacheError(
                f"{self.shown}/{place} is not there any more",
                "run the same command again: it looks afresh at what is there",
            ) from error

    def _damage(self, tar: Path, partial: Path, shard: ShardIndex) -> CacheError:
        """Find out what of a shard is damaged where it comes from, and note it here."""
        place = f"{self.shown}/{tar.parent.name}/{tar.name}"
        if _size(partial) != shard.tar_bytes:
            return self._short(tar, partial, shard.tar_bytes)
        _publish(partial, tar)
        damaged = rebuild_index(tar).damaged
        wrong = (
            f"{place} is damaged: {counted(len(damaged), 'sample')} without the right checksum"
            if damaged
            else f"the sidecar of {place} is not that shard's"
        )
        if self.remote.read_only:
            return CacheError(
                wrong,
                "ask those who keep the cache to run `anima-pipe cache verify` and encode again",
            )
        listed = self.listed().get(tar.parent.name, {}).get(index_path(tar).name)
        if listed:
            keep_mended(self.folder, tar, listed)
        return CacheError(
            f"{wrong}; that is noted in {self.folder}",
            "run the caching stages again, which note it there too and encode what is damaged anew",
        )

    def _short(self, tar: Path, partial: Path, tar_bytes: int) -> CacheError:
        return CacheError(
            f"{self.shown}/{tar.parent.name}/{tar.name} came with {_size(partial)} bytes, not "
            f"{tar_bytes}, more than once",
            "check the network, and what is stored there; then run again",
        )


_GIVEN: Final[dict[Path, Mirror]] = {}
"""The mirrors of the addresses that this process was given, by their folders."""


def give(mirror: Mirror) -> None:
    """Let a folder be a mirror from here on, because the user named its address."""
    _GIVEN[mirror.folder.resolve()] = mirror


def mirror_at(cache_dir: Path) -> Mirror | None:
    """Return the mirror that a cache folder is to this process; None: it is the cache itself."""
    return _GIVEN.get(cache_dir.resolve())


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _size(path: Path) -> int | None:
    status = _status(path)
    return status.st_size if status else None


def _publish(partial: Path, tar: Path) -> None:
    with refusals_named(tar):
        put_in_place(partial, tar)
