"""Where a cache is: a folder, or an address with a mirror; and what differs between the two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from anima_pipe.errors import ConfigError
from anima_pipe.files import refusals_named
from anima_pipe.runtime import home
from anima_pipe.secrecy import keep_secrets_of
from anima_pipe.shards.addresses import checked_address, is_address, shown_address
from anima_pipe.shards.manifest import MANIFEST
from anima_pipe.shards.mirror import Mirror, give, mirror_at
from anima_pipe.shards.mirrored import (
    MIRROR,
    Mirrored,
    describe,
    described,
    mirror_name,
    name_with_user,
)
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
        ConfigError: No cache can lie at the address, the mirror's folder is one itself, or the
            folder is a mirror.
    """
    if not is_address(place):
        return _plain_folder(Path(place).expanduser())
    url = checked_address(str(place))
    if cache_mirror_dir is not None and is_address(str(cache_mirror_dir)):
        raise ConfigError(
            f"cache_mirror_dir {cache_mirror_dir} is no folder", "give a local folder"
        )
    keep_secrets_of(url)
    folder = _mirror_folder(cache_mirror_dir or home() / "caches", url)
    noted = described(folder)
    if cache_mirror_gb is not None or noted is None:
        limit_gb = DEFAULT_LIMIT_GB if cache_mirror_gb is None else cache_mirror_gb
        noted = Mirrored(url=url, limit_bytes=int(limit_gb * 1e9))
    describe(folder, replace(noted, url=shown_address(url)))
    give(Mirror(folder=folder, url=url, limit_bytes=noted.limit_bytes))
    return folder


def _mirror_folder(mirrors: Path, url: str) -> Path:
    """Return where the mirror of an address is, having renamed one with a user in its name."""
    folder, former = mirrors / mirror_name(url), mirrors / name_with_user(url)
    if former != folder and former.is_dir() and not folder.exists():
        with refusals_named(folder):
            former.rename(folder)
    return folder


def _plain_folder(folder: Path) -> Path:
    """Return a folder that was given as one, having made sure that it is no mirror.

    What is encoded into a mirror past its address would never be uploaded.

    Raises:
        ConfigError: It is the mirror of an address that this process was not given.
    """
    if mirror_at(folder) is None and (noted := described(folder)):
        address = shown_address(noted.url)
        raise ConfigError(
            f"{folder} is a mirror of {address}, and not a cache of its own",
            f"give the address (cache_dir {address}), or remove {folder / MIRROR} to take what "
            "is there for a cache",
        )
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
