"""Where a cache is: a folder, or an address with a mirror; and what differs between the two."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Final

from anima_pipe.errors import ConfigError
from anima_pipe.files import refusals_named, write_atomically
from anima_pipe.runtime import home
from anima_pipe.shards.addresses import checked_address, is_address, split_query
from anima_pipe.shards.manifest import MANIFEST
from anima_pipe.shards.mirror import MIRROR, mirror_at
from anima_pipe.shards.remote import Remote

DEFAULT_LIMIT_GB: Final = 100.0


def open_place(
    place: Path | str, cache_mirror_dir: Path | None = None, cache_mirror_gb: float | None = None
) -> Path:
    """Return the folder of a cache: the place itself, or the mirror of an address.

    Args:
        place: A folder, or an address that fsspec opens.
        cache_mirror_dir: Where mirrors are; None: in the user's cache folder.
        cache_mirror_gb: Size of all shards in there, in 10^9 bytes; None: what the mirror has
            been given before, or 100.

    Raises:
        OutputError: The mirror cannot be made.
        ConfigError: No cache can lie at the address, or the mirror's folder is one itself.
    """
    if not is_address(place):
        return Path(place).expanduser()
    url = checked_address(str(place))
    if cache_mirror_dir is not None and is_address(str(cache_mirror_dir)):
        raise ConfigError(
            f"cache_mirror_dir {cache_mirror_dir} is no folder", "give a local folder"
        )
    # The query is a key to the place and not its name: a new key opens the same mirror.
    base, query = split_query(url)
    name = re.sub(r"[^A-Za-z0-9]+", "-", base.partition("://")[2])[-40:].strip("-")
    digest = hashlib.blake2b(base.encode(), digest_size=4).hexdigest()
    folder = (cache_mirror_dir or home() / "caches") / f"{name}-{digest}"
    content = json.dumps(
        {"url": url, "limit_bytes": _limit_bytes(folder, cache_mirror_gb)}, indent=1
    )
    if not _holds(folder / MIRROR, content.encode() + b"\n"):
        write_atomically(folder / MIRROR, content.encode() + b"\n")
        if query:
            with refusals_named(folder / MIRROR):
                (folder / MIRROR).chmod(0o600)
    return folder


def shown_place(cache_dir: Path) -> str:
    """Return what the user calls a cache: its address, or its folder."""
    mirror = mirror_at(cache_dir)
    return mirror.shown if mirror else str(cache_dir)


def shown_path(cache_dir: Path, path: Path) -> str:
    """Return what the user calls something in a cache: where it is, not where its copy is."""
    return f"{shown_place(cache_dir)}/{path.relative_to(cache_dir).as_posix()}"


def refresh(cache_dir: Path) -> None:
    """Bring a mirror up to date; nothing is to be done for a folder.

    Raises:
        CacheError: The storage does not answer.
    """
    if mirror := mirror_at(cache_dir):
        mirror.pull()


def publish_manifest(cache_dir: Path) -> str:
    """Write the list of a cache's files, by which it can be read over http; return its place.

    Raises:
        CacheError: The storage does not answer.
        OutputError: It refuses the file.
    """
    mirror = mirror_at(cache_dir)
    remote = mirror.remote if mirror else Remote(f"file://{cache_dir.absolute()}")
    remote.publish_manifest()
    return f"{shown_place(cache_dir)}/{MANIFEST}"


def refresh_manifest(cache_dir: Path) -> None:
    """Bring the list of files of a mirrored cache up to date after files have gone.

    Raises:
        CacheError: The storage does not answer.
        OutputError: It refuses the file.
    """
    if mirror_at(cache_dir):
        publish_manifest(cache_dir)


def require_writable(cache_dir: Path) -> None:
    """Find out, before anything is encoded, that a cache can only be read.

    Raises:
        OutputError: It can.
    """
    if mirror := mirror_at(cache_dir):
        mirror.remote.require_writable()


def _limit_bytes(folder: Path, limit_gb: float | None) -> int:
    if limit_gb is None and (mirror := mirror_at(folder)):
        return mirror.limit_bytes
    return int((DEFAULT_LIMIT_GB if limit_gb is None else limit_gb) * 1e9)


def _holds(file: Path, content: bytes) -> bool:
    return file.is_file() and file.read_bytes() == content
