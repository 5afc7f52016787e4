"""Files by the client of ModelScope, which its package modelscope brings along.

The client is imported by itself and only for a fetch: 0.1 seconds, where modelscope takes over a
second and imports torch.

MODELSCOPE_ENDPOINT, MODELSCOPE_API_TOKEN, MODELSCOPE_CACHE, its timeouts, its retries and
HTTPS_PROXY are its own to honour.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from anima_pipe.hub.causes import SourceError, Trouble, explained
from anima_pipe.hub.remote_file import RemoteFile
from anima_pipe.hub.sources import Source

if TYPE_CHECKING:
    from modelscope_hub import HubApi


def look_up(source: Source, path: str) -> RemoteFile:
    """Look for a file in the repository's listing; the cache answers where nobody else does.

    A hub that cannot be reached is given up sooner for the listing than for a file.
    """
    from modelscope_hub.errors import NotExistError

    client = _client()
    try:
        files = client.list_repo_files(source.repo, "model", revision=source.revision)
    except NotExistError as error:
        raise SourceError(
            f"there is no repository {source.repo} with a revision {source.revision} (HTTP 404)",
            f"check both at {source.page}",
        ) from error
    except Exception as error:
        cached = None
        if explained(error, source, path).trouble is Trouble.UNREACHABLE:
            cached = _cached(client, source, path)
        if cached is None:
            raise
        size = cached.stat().st_size
        return RemoteFile(source=source, path=path, size=size, checksum=None, cached=cached)
    for file in files:
        if file.path == path:
            return RemoteFile(source=source, path=path, size=file.size, checksum=file.sha256)
    raise SourceError(
        f"{source.repo} lists no file {path}",
        f"look up its place at {source.page}",
        Trouble.ABSENT,
    )


def fetch_to_cache(file: RemoteFile, *, afresh: bool) -> Path:
    """Return the file in the client's cache, where it is put unless it is there."""
    if file.cached is not None and not afresh:
        return file.cached
    return _client().download_file(
        file.source.repo,
        "model",
        file.path,
        revision=file.source.revision,
        force=afresh,
        expected_sha256=file.checksum or None,
        file_size=file.size,
    )


def fetch_to_folder(file: RemoteFile, folder: Path) -> Path:
    """Fetch the file past the cache; the client goes on from what it left in the folder itself."""
    return _client().download_file(
        file.source.repo,
        "model",
        file.path,
        revision=file.source.revision,
        local_dir=folder,
        expected_sha256=file.checksum or None,
        file_size=file.size,
    )


def _cached(client: HubApi, source: Source, path: str) -> Path | None:
    from modelscope_hub.errors import CacheNotFound

    try:
        return client.download_file(
            source.repo, "model", path, revision=source.revision, local_files_only=True
        )
    except CacheNotFound:
        return None


def _client() -> HubApi:
    """Return the client; its log lines are kept back unless its own variable asks for them.

    Each failure gets one line of ours instead.
    """
    from modelscope_hub import HubApi
    from modelscope_hub.config import HubConfig

    if "MODELSCOPE_LOG_LEVEL" not in os.environ:
        logging.getLogger("modelscope_hub").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # MODELSCOPE_DOMAIN is an old name that the client still honours.
        warnings.simplefilter("ignore", FutureWarning)
        return HubApi(config=HubConfig())
