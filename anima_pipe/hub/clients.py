"""One file at a time from either hub, by the hub's own client, compared with its checksum.

Caches, tokens, mirrors, proxies, retries and timeouts are the clients', and so are the environment
variables that govern them.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from anima_pipe.hub import hugging_face, modelscope
from anima_pipe.hub.causes import SourceError, explained
from anima_pipe.hub.remote_file import RemoteFile, content_matches
from anima_pipe.hub.sources import Hub, Source


class Client(Protocol):
    """What the module of each hub does; anything may be raised."""

    def look_up(self, source: Source, path: str) -> RemoteFile:
        """Ask for the size and the checksum of a file."""
        ...

    def fetch_to_cache(self, file: RemoteFile, *, afresh: bool) -> Path:
        """Return the file in the client's cache."""
        ...

    def fetch_to_folder(self, file: RemoteFile, folder: Path) -> Path:
        """Fetch the file past the cache, going on from what is there of it."""
        ...


_CLIENTS: Final[dict[Hub, Client]] = {Hub.HUGGING_FACE: hugging_face, Hub.MODELSCOPE: modelscope}


def look_up(source: Source, path: str) -> RemoteFile:
    """Ask a hub for the size and the checksum of a file.

    Raises:
        SourceError: It cannot be had; the cause in one line.
    """
    with _failures_explained(source, path):
        return _CLIENTS[source.hub].look_up(source, path)


def fetch_small(source: Source, path: str, target: Path, *, afresh: bool = False) -> None:
    """Copy a file through the client's cache.

    Args:
        source: The repository and revision.
        path: The file's path in the repository.
        target: Where to write it; not a final name, for it is written in place.
        afresh: Fetch it even where the client has it cached.

    Raises:
        SourceError: It cannot be had; the cause in one line.
    """
    client = _CLIENTS[source.hub]
    with _failures_explained(source, path):
        file = client.look_up(source, path)
        # Clients compare sizes alone. A file that is damaged in its cache would be found there
        # again by every later command, so that it is fetched a second time past the cache.
        for anew in (True,) if afresh else (False, True):
            shutil.copyfile(client.fetch_to_cache(file, afresh=anew), target)
            if content_matches(target, file.checksum):
                return
    raise _wrong_checksum(path)


def fetch_large(file: RemoteFile, folder: Path) -> Path:
    """Fetch a file past the client's cache, for large ones need not lie on the disk twice.

    Args:
        file: As `look_up` gave it.
        folder: What is unfinished stays in it, for the next call to go on from.

    Returns:
        The path within the folder, checked.

    Raises:
        SourceError: It cannot be had; the cause in one line.
    """
    with _failures_explained(file.source, file.path):
        fetched = _CLIENTS[file.source.hub].fetch_to_folder(file, folder)
        if content_matches(fetched, file.checksum):
            return fetched
        fetched.unlink()
    raise _wrong_checksum(file.path)


@contextmanager
def _failures_explained(source: Source, path: str) -> Generator[None]:
    try:
        yield
    except SourceError:
        raise
    # Whatever a client raises means that this source fails; the next one is tried.
    except Exception as error:
        raise explained(error, source, path) from error


def _wrong_checksum(path: str) -> SourceError:
    return SourceError(
        f"{path} came with a wrong checksum",
        "run the command again; if it comes damaged again, a proxy on the way changes files",
    )
