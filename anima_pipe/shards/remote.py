"""The storage behind a cache's address: whatever fsspec opens (s3://, gs://, hf://, https://, ...).

What fails for a moment is tried again; what fails for good is one error that says what to do.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from anima_pipe.errors import CacheError, OutputError, PipeError
from anima_pipe.files import put_in_place, temporary_name
from anima_pipe.shards.addresses import (
    OBJECT_STORES,
    filesystem,
    is_http,
    protocol_of,
    shown_address,
    split_query,
)
from anima_pipe.shards.failures import lacks_room, remedy_of, told, tried
from anima_pipe.shards.manifest import (
    MANIFEST,
    Listing,
    listing_of,
    listing_text,
    read_listing,
)

MOST_MANIFEST_BYTES: Final = 2**28
"""Of a list of files: some two million of them."""

_Result = TypeVar("_Result")


class MoreThanPromisedError(CacheError):
    """A file that goes on behind its promised end."""


@dataclass(frozen=True, slots=True)
class Remote:
    """The files under one address. Paths are relative to it: `<folder>/<file>`."""

    url: str = field(repr=False)
    """As `checked_address` returns it."""

    @property
    def shown(self) -> str:
        """The address as it may be printed."""
        return shown_address(self.url)

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written there, whoever asks."""
        return is_http(self.url)

    @property
    def folder(self) -> Path | None:
        """The folder on this machine that a file:// address names."""
        if protocol_of(self.url) not in ("file", "local"):
            return None
        return Path(self._opened()[1])

    def listing(self) -> Listing:
        """Return the files that are there, by folder.

        Raises:
            CacheError: The storage does not answer, has no such bucket or repository, or is one
                that cannot list and has no manifest.
        """
        if self.read_only:
            return self._manifest_of_reader()
        root = self._opened()[1].rstrip("/")
        found = self._reading("", self._find)
        return listing_of((path[len(root) + 1 :], entry) for path, entry in found.items())

    def read(self, place: str, most: int) -> bytes:
        """Return a small file.

        Raises:
            FileNotFoundError: It is not there.
            MoreThanPromisedError: It has more bytes than `most`.
            CacheError: It cannot be read.
        """
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / "copy"
            self.download(place, copy, most)
            return copy.read_bytes()

    def has(self, place: str) -> bool:
        """Tell whether a file is there.

        Raises:
            CacheError: The storage does not answer.
        """

        def ask() -> bool:
            storage = self._opened()[0]
            storage.invalidate_cache()
            return storage.exists(self._path(place))

        return self._reading(place, ask)

    def download(self, place: str, target: Path, most: int) -> None:
        """Copy a file to the disk, onto whatever is there. The copy may be cut off: check it.

        Args:
            place: The file.
            target: The copy.
            most: Bytes that it was said to have; who sends more is cut off.

        Raises:
            FileNotFoundError: It is not there.
            MoreThanPromisedError: It has more bytes.
            CacheError: It cannot be read.
            OutputError: The disk has no room for it.
        """
        self._reading(place, lambda: self._fetch(place, target, most))

    def _fetch(self, place: str, target: Path, most: int) -> None:
        from anima_pipe.shards.bounded import Bounded, TooManyBytesError

        storage, path = self._opened()[0], self._path(place)
        try:
            if self.folder or self._is_repository:  # they tell a file's size, and no progress
                Bounded(most).set_size(storage.info(path)["size"])
                storage.get_file(path, str(target))
            else:
                storage.get_file(path, str(target), callback=Bounded(most))
        except TooManyBytesError as error:
            raise MoreThanPromisedError(
                f"{self._said(place)} has more than the {most:,} bytes that it should have",
                "check what is stored there, and what answers at that address; then run again",
            ) from error

    def upload(self, source: Path, place: str) -> None:
        """Copy a file from the disk, whole or not at all.

        Raises:
            OutputError: It cannot be written, also after several attempts; or it is a link, which
                may lead to something that is not a cache's.
        """
        for link in (source, source.parent):
            if link.is_symlink():
                raise OutputError(
                    f"{link} is a link to {link.resolve()}, which is not uploaded to {self.shown}",
                    "remove the link: no run has made it",
                )
        length = source.stat().st_size

        def put(path: str) -> None:
            storage = self._opened()[0]
            if self._is_repository:
                _commit(storage, source, path)
            else:
                storage.put_file(str(source), path)
            storage.invalidate_cache()
            arrived = storage.info(path)["size"]
            if arrived != length:
                raise OSError(f"{arrived} of {length} bytes arrived")

        self._writing(place, lambda: self._put(place, put))

    def write(self, place: str, content: bytes) -> None:
        """Write a small file, whole or not at all.

        Raises:
            OutputError: It cannot be written.
        """

        def put(path: str) -> None:
            self._opened()[0].pipe_file(path, content)

        self._writing(place, lambda: self._put(place, put))

    def remove(self, place: str) -> None:
        """Remove a file; one that is gone already is no harm.

        Raises:
            OutputError: It cannot be removed.
        """

        def remove() -> None:
            storage = self._opened()[0]
            storage.invalidate_cache()
            with suppress(FileNotFoundError):
                storage.rm_file(self._path(place))

        self._writing(place, remove)

    def require_writable(self) -> None:
        """Refuse an address that can only be read.

        Raises:
            OutputError: It is one.
        """
        if self.read_only:
            raise OutputError(
                f"{self.shown} can only be read, and something is to be written there",
                "give the address that the cache is written by (s3://, gs://, hf://, a folder)",
            )

    def publish_manifest(self) -> None:
        """Write the list of all files that are there, unless it is written already.

        Several writers may do so at once. Each looks again after it has written: so whoever is the
        last to write has seen every shard that was there by then, and who brings another one later
        writes later too.

        Raises:
            CacheError: The storage does not answer.
            OutputError: It refuses the file.
        """
        self.require_writable()
        for _ in range(100):
            listing = self.listing()
            if self._manifest_of_writer() == listing:
                return
            self.write(MANIFEST, listing_text(listing))

    def _find(self) -> dict[str, Any]:
        storage, root = self._opened()
        storage.invalidate_cache()
        try:
            return storage.find(root, detail=True)
        except FileNotFoundError:
            if protocol_of(self.url) in OBJECT_STORES:
                # Nothing lies there yet, which is well, unless nothing can.
                storage.ls("/".join(root.split("/")[: 3 if self._is_repository else 1]))
            return {}

    @property
    def _is_repository(self) -> bool:
        return protocol_of(self.url) == "hf"

    def _manifest_of_reader(self) -> Listing:
        try:
            return read_listing(self.read(MANIFEST, MOST_MANIFEST_BYTES))
        except FileNotFoundError as error:
            raise CacheError(
                f"{self.shown} has no {MANIFEST}, and http does not say what else is there",
                "check the address; where the cache is kept, `anima-pipe cache manifest` writes "
                "the file",
            ) from error
        except ValueError as error:
            raise CacheError(
                f"{self.shown}/{MANIFEST} {error}",
                "where the cache is kept, `anima-pipe cache manifest` writes it anew",
            ) from error

    def _manifest_of_writer(self) -> Listing:
        try:
            return read_listing(self.read(MANIFEST, MOST_MANIFEST_BYTES))
        except (FileNotFoundError, ValueError, MoreThanPromisedError):
            return {}  # what is damaged is written anew, like what is not there

    def _opened(self) -> tuple[Any, str]:
        return filesystem(split_query(self.url)[0], os.getpid())

    def _path(self, place: str) -> str:
        return f"{self._opened()[1].rstrip('/')}/{place}{split_query(self.url)[1]}"

    def _put(self, place: str, put: Callable[[str], None]) -> None:
        """Write a file by `put`, which is given a path, so that its name only holds a whole one."""
        path = self._path(place)
        if protocol_of(self.url) in OBJECT_STORES:
            put(path)  # their uploads are seen when they are complete, and not before
            return
        storage = self._opened()[0]
        folder, _, name = path.rpartition("/")
        storage.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/{temporary_name(name)}"
        try:
            put(temporary)
            if self.folder:
                put_in_place(Path(temporary), Path(path))
            else:
                storage.mv(temporary, path)
        except BaseException:
            with suppress(Exception):
                storage.rm_file(temporary)
            raise

    def _reading(self, place: str, act: Callable[[], _Result]) -> _Result:
        try:
            return tried(act)
        except PipeError:
            raise
        except Exception as error:
            if isinstance(error, FileNotFoundError) and place:
                raise
            if lacks_room(error):
                raise OutputError(
                    f"no room on the disk for a copy of {place} from {self.shown}",
                    "free some, or lower --cache_mirror_gb",
                ) from error
            raise CacheError(
                f"{self._said(place)} cannot be read: {told(error)}", remedy_of(error)
            ) from error

    def _writing(self, place: str, act: Callable[[], None]) -> None:
        self.require_writable()
        try:
            tried(act)
        except PipeError:
            raise
        except Exception as error:
            raise OutputError(
                f"{self._said(place)} cannot be written: {told(error)}", remedy_of(error)
            ) from error

    def _said(self, place: str) -> str:
        return f"{self.shown}/{place}" if place else self.shown


def _commit(storage: Any, source: Path, path: str) -> None:
    """Upload a file to Hugging Face as one commit.

    Its file system would first copy the file, and leave the copy behind when the upload fails.
    """
    from huggingface_hub import HfApi

    place = storage.resolve_path(path)
    HfApi(endpoint=storage.endpoint, token=storage.token).upload_file(
        path_or_fileobj=source,
        path_in_repo=place.path_in_repo,
        repo_id=place.repo_id,
        repo_type=place.repo_type,
        revision=place.revision,
        commit_message=f"Add {place.path_in_repo}",
    )
