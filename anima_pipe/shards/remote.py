"""The storage behind a cache's address: whatever fsspec opens (s3://, gs://, hf://, https://, ...).

The only module that imports fsspec. Credentials, endpoints and the like are set where each
protocol's package looks for them: in the environment, in its own files, in fsspec's configuration.
"""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from anima_pipe.errors import CacheError, OutputError, PipeError

MANIFEST: Final = "shards.json"
"""The list of a cache's files, for those that reach it by a protocol that cannot list: http."""

MANIFEST_VERSION: Final = 1

ATTEMPTS: Final = 3
"""Of every transfer; most protocols' packages try several times themselves."""

FIRST_PAUSE_SECONDS: Final = 0.5
"""Before the second attempt; doubled before each further one."""

PACKAGES: Final = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
}
"""What a protocol needs beside fsspec."""

Listing = dict[str, dict[str, int]]
"""Sizes in bytes of a cache's files, by the folder they lie in and their names."""

_WITHOUT_FOLDERS: Final = ("s3", "gs:", "gcs:", "hf:", "az:", "abfs", "adl:", "oss:", "oci:")
"""Storage that needs none made; its file systems would rather make a bucket by a wrong name."""

_HOPELESS: Final = (FileNotFoundError, PermissionError, NotImplementedError, IsADirectoryError)
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Remote:
    """The files under one address. Paths are relative to it: `<folder>/<file>`."""

    url: str
    """Without a slash at its end."""

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written there, whoever asks."""
        return self.url.startswith(("http://", "https://"))

    def listing(self) -> Listing:
        """Return the files that are there, by folder.

        Raises:
            CacheError: The storage does not answer, or is one that cannot list and has no manifest.
        """
        if self.read_only:
            return self._manifest_there() or _raise_without_manifest(self.url)

        def find() -> dict[str, Any]:
            filesystem, root = self._opened()
            filesystem.invalidate_cache()
            try:
                return filesystem.find(root, detail=True)
            except FileNotFoundError:
                return {}

        files: Listing = {}
        depth = self._opened()[1].rstrip("/").count("/") + 2
        for path, entry in self._reading(self.url, find).items():
            if path.rstrip("/").count("/") == depth:
                folder, name = path.rsplit("/", 2)[1:]
                if _is_plain(folder) and _is_plain(name):
                    files.setdefault(folder, {})[name] = int(entry["size"] or 0)
        return files

    def read(self, place: str) -> bytes:
        """Return a small file.

        Raises:
            FileNotFoundError: It is not there.
            CacheError: It cannot be read.
        """
        return self._reading(place, lambda: self._opened()[0].cat_file(self._path(place)))

    def has(self, place: str) -> bool:
        """Tell whether a file is there.

        Raises:
            CacheError: The storage does not answer.
        """

        def ask() -> bool:
            filesystem = self._opened()[0]
            filesystem.invalidate_cache()
            return filesystem.exists(self._path(place))

        return self._reading(place, ask)

    def download(self, place: str, target: Path) -> None:
        """Copy a file to the disk, onto whatever is there. The copy may be cut off: check it.

        Raises:
            FileNotFoundError: It is not there.
            CacheError: It cannot be read.
            OutputError: The disk has no room for it.
        """
        self._reading(place, lambda: self._opened()[0].get_file(self._path(place), str(target)))

    def upload(self, source: Path, place: str) -> None:
        """Copy a file from the disk, and make sure that as many bytes have arrived.

        Raises:
            OutputError: It cannot be written, also after several attempts.
        """
        length = source.stat().st_size

        def put() -> None:
            filesystem, path = self._opened()[0], self._path(place)
            if not self.url.startswith(_WITHOUT_FOLDERS):
                filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
            filesystem.put_file(str(source), path)
            filesystem.invalidate_cache()
            arrived = filesystem.info(path)["size"]
            if arrived != length:
                raise OSError(f"{arrived} of {length} bytes arrived")

        self._writing(place, put)

    def write(self, place: str, content: bytes) -> None:
        """Write a small file.

        Raises:
            OutputError: It cannot be written.
        """
        self._writing(place, lambda: self._opened()[0].pipe_file(self._path(place), content))

    def remove(self, place: str) -> None:
        """Remove a file; one that is gone already is no harm.

        Raises:
            OutputError: It cannot be removed.
        """

        def remove() -> None:
            filesystem = self._opened()[0]
            filesystem.invalidate_cache()
            try:
                filesystem.rm_file(self._path(place))
            except FileNotFoundError:
                return

        self._writing(place, remove)

    def require_writable(self) -> None:
        """Refuse an address that can only be read.

        Raises:
            OutputError: It is one.
        """
        if self.read_only:
            raise OutputError(
                f"{self.url} can only be read, and something is to be written there",
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
            if self._manifest_there() == listing:
                return
            self.write(MANIFEST, manifest_text(listing))

    def _manifest_there(self) -> Listing | None:
        try:
            content = self.read(MANIFEST)
        except FileNotFoundError:
            return None
        try:
            return _manifest_listing(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None

    def _opened(self) -> tuple[Any, str]:
        # By process: what a fork inherits of asynchronous connections cannot be used.
        return _filesystem(self.url, os.getpid())

    def _path(self, place: str) -> str:
        return f"{self._opened()[1].rstrip('/')}/{place}"

    def _reading(self, place: str, act: Callable[[], _Result]) -> _Result:
        try:
            return _tried(act)
        except (FileNotFoundError, PipeError):
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise OutputError(
                    f"no room on the disk for a copy of {place} from {self.url}",
                    "free some, or lower --cache_mirror_gb",
                ) from error
            raise CacheError(
                f"{self._said(place)} cannot be read: {_told(error)}",
                "check the address, the credentials and the network, and run again",
            ) from error

    def _writing(self, place: str, act: Callable[[], None]) -> None:
        self.require_writable()
        try:
            _tried(act)
        except PipeError:
            raise
        except Exception as error:
            raise OutputError(
                f"{self._said(place)} cannot be written: {_told(error)}",
                "check the address, the credentials and the network, and run again",
            ) from error

    def _said(self, place: str) -> str:
        return place if place == self.url else f"{self.url}/{place}"


def is_address(place: str | Path) -> bool:
    """Tell whether a place is an address and not a folder."""
    return isinstance(place, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place) is not None


def manifest_text(listing: Mapping[str, Mapping[str, int]]) -> bytes:
    """Return the content of a manifest."""
    fields = {"version": MANIFEST_VERSION, "folders": listing}
    return json.dumps(fields, sort_keys=True, indent=1).encode() + b"\n"


def _manifest_listing(fields: dict[str, Any]) -> Listing:
    if fields["version"] != MANIFEST_VERSION:
        raise ValueError(f"manifest version {fields['version']}")
    folders = cast("dict[str, dict[str, int]]", fields["folders"])
    return {
        folder: {name: int(size) for name, size in files.items() if _is_plain(name)}
        for folder, files in folders.items()
        if _is_plain(folder)
    }


def _is_plain(name: str) -> bool:
    """Tell whether a name from elsewhere names something in the folder it is put into."""
    return re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name) is not None


def _raise_without_manifest(url: str) -> Listing:
    raise CacheError(
        f"{url} has no {MANIFEST}, and http does not say what else is there",
        "check the address; where the cache is kept, `anima-pipe cache manifest` writes the file",
    )


@lru_cache(maxsize=8)
def _filesystem(url: str, process: int) -> tuple[Any, str]:
    """Return fsspec's file system for an address, and the address as a path in it."""
    del process
    import fsspec

    protocol = url.partition("://")[0]
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = PACKAGES.get(protocol, f"the package that fsspec names: {error}")
        raise CacheError(
            f"{url}: {protocol}:// needs {package}, which is not installed",
            f"pip install {PACKAGES[protocol]}" if protocol in PACKAGES else "install it",
        ) from error
    except ValueError as error:
        raise CacheError(
            f"{url}: {error}", f"use a folder, or one of {', '.join(f'{p}://' for p in PACKAGES)}"
        ) from error


def _tried(act: Callable[[], _Result]) -> _Result:
    """Do something that may fail for a moment, several times if need be."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return act()
        except (*_HOPELESS, PipeError):
            raise
        # Every protocol's package has exceptions of its own, few of them OSErrors.
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    return act()


def _told(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
