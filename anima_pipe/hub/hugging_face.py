"""Files by the client of Hugging Face.

HF_ENDPOINT, HF_TOKEN, HF_HOME, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT, HTTPS_PROXY and all the
rest are its own to honour.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from anima_pipe.hub.causes import Trouble, explained
from anima_pipe.hub.remote_file import Bounded, RemoteFile, content_matches
from anima_pipe.hub.sources import Source

if TYPE_CHECKING:
    from types import ModuleType

    from huggingface_hub import HfFileMetadata

PAUSE_SECONDS: Final = 1.0
"""Before a hub that did not answer is asked a second and last time."""


def look_up(source: Source, path: str) -> RemoteFile:
    """Ask for the size and the checksum of a file; the cache answers where nobody else does."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    hub = _client()
    try:
        told = _told(hub, source, path)
    except Exception as error:
        offline = isinstance(error, OfflineModeIsEnabled)
        unreachable = explained(error, source, path).trouble is Trouble.UNREACHABLE
        cached = _cached(hub, source, path, source.revision) if offline or unreachable else None
        if cached is None:
            raise
        return RemoteFile(
            source=source,
            path=path,
            size=cached.stat().st_size,
            # A snapshot links to a file that is named by its checksum.
            checksum=cached.readlink().name if cached.is_symlink() else None,
            cached=cached,
        )
    return RemoteFile(
        source=source,
        path=path,
        size=told.size or 0,
        checksum=told.etag,
        cached=_cached(hub, source, path, told.commit_hash),
    )


def fetch_to_cache(file: RemoteFile, *, afresh: bool) -> Path:
    """Return the file in the client's cache, where it is put unless it is there."""
    source = file.source
    if file.cached is not None and not afresh:
        return file.cached
    return Path(
        _client().hf_hub_download(
            source.repo, file.path, revision=source.revision, force_download=afresh
        )
    )


def fetch_to_folder(file: RemoteFile, folder: Path) -> Path:
    """Fetch the file past the cache; what an earlier run left of it in the folder is gone on from.

    The client's own download of a file begins at the beginning each time, and a killed one leaves
    nothing that a later one would use. Its transport below goes on where it is told to, with its
    headers, retries and timeouts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = PurePosixPath(file.path).name
    part = folder / f"{file.checksum or name}.part"
    if file.cached is not None:
        shutil.copyfile(file.cached, part)
        return part
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    there = part.stat().st_size if part.exists() else 0
    if file.size and there > file.size:
        part.unlink()
        there = 0
    with Bounded(part, file) as stream:
        http_get(
            _client().hf_hub_url(file.source.repo, file.path, revision=file.source.revision),
            stream,
            resume_size=there,
            headers=build_hf_headers(),
            expected_size=file.size or None,
            displayed_filename=name,
        )
    if there and not content_matches(part, file.checksum):
        # A power cut may leave blocks that were never written.
        part.unlink()
        return fetch_to_folder(file, folder)
    return part


def _told(hub: ModuleType, source: Source, path: str) -> HfFileMetadata:
    """Ask for a file's description: twice where no answer comes, else as often as the client does.

    The client by itself asks a hub that cannot be reached for a minute and more, before the next
    source gets its turn.
    """
    url = hub.hf_hub_url(source.repo, path, revision=source.revision)
    try:
        return hub.get_hf_file_metadata(url)
    except Exception as error:
        trouble = explained(error, source, path).trouble
        if trouble is Trouble.BUSY:
            return hub.get_hf_file_metadata(url, retry_on_errors=True)
        if trouble is not Trouble.UNREACHABLE:
            raise
    time.sleep(PAUSE_SECONDS)
    return hub.get_hf_file_metadata(url)


def _cached(hub: ModuleType, source: Source, path: str, revision: str | None) -> Path | None:
    found = hub.try_to_load_from_cache(source.repo, path, revision=revision)
    # Beside a path and None there is a mark for files that are known not to exist.
    return Path(found) if isinstance(found, str) else None


def _client() -> ModuleType:
    """Return the client; its log lines are kept back unless its own variables ask for them.

    Each failure gets one line of ours instead.
    """
    import huggingface_hub
    from huggingface_hub.utils import logging

    if not os.environ.keys() & {"HF_HUB_VERBOSITY", "HF_DEBUG"}:
        logging.set_verbosity_error()
    return huggingface_hub
