"""The clients of the two hubs: one file at a time, with its checksum.

Caches, tokens, mirrors, proxies, retries and resumes are theirs, and so are the environment
variables that govern them (HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN, MODELSCOPE_ENDPOINT ...).
"""

from __future__ import annotations

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from anima_pipe.hub.causes import SourceError, explained
from anima_pipe.hub.sources import Hub, Source

if TYPE_CHECKING:
    from modelscope_hub import HubApi

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_GIT: Final = re.compile(r"[0-9a-f]{40}")
_CHUNK_BYTES: Final = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """What a hub says of a file before it is fetched."""

    source: Source
    """With the revision that was asked, or the commit that it stood for."""
    path: str
    """In the repository."""
    size: int
    """Bytes."""
    checksum: str | None
    """SHA-256, or git's name of the content; None where the hub tells neither."""


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
    try:
        if source.hub is Hub.MODELSCOPE:
            cached = _modelscope().download_file(
                source.repo, "model", path, revision=source.revision, force=afresh
            )
            shutil.copyfile(cached, target)
        else:
            _copy_from_hugging_face(source, path, target, afresh=afresh)
    except SourceError:
        raise
    # Whatever a client raises means that this source fails; the next one is tried.
    except Exception as error:
        raise explained(error, source, path) from error


def look_up(source: Source, path: str) -> RemoteFile:
    """Ask a hub for the size and the checksum of a file.

    Raises:
        SourceError: It cannot be had; the cause in one line.
    """
    try:
        if source.hub is Hub.MODELSCOPE:
            return _listed_by_modelscope(source, path)
        return _announced_by_hugging_face(source, path)
    except SourceError:
        raise
    except Exception as error:
        raise explained(error, source, path) from error


def fetch_large(file: RemoteFile, folder: Path) -> Path:
    """Fetch a file past the client's cache, for large ones need not lie on the disk twice.

    Args:
        file: As `look_up` gave it.
        folder: The client's working folder; unfinished files stay in it for the client to resume.

    Returns:
        The path within the folder, checked.

    Raises:
        SourceError: It cannot be had; the cause in one line.
    """
    source = file.source
    try:
        if source.hub is Hub.MODELSCOPE:
            fetched = _modelscope().download_file(
                source.repo,
                "model",
                file.path,
                revision=source.revision,
                local_dir=folder,
                expected_sha256=file.checksum,
                file_size=file.size,
            )
        else:
            from huggingface_hub import hf_hub_download

            fetched = Path(
                hf_hub_download(source.repo, file.path, revision=source.revision, local_dir=folder)
            )
    except Exception as error:
        raise explained(error, source, file.path) from error
    if not content_matches(fetched, file.checksum):
        fetched.unlink()
        raise _wrong_checksum(file.path)
    return fetched


def content_matches(path: Path, checksum: str | None) -> bool:
    """Compare a file with its SHA-256 or with git's name of it; without either it matches."""
    if checksum and _SHA256.fullmatch(checksum):
        digest = hashlib.sha256()
    elif checksum and _GIT.fullmatch(checksum):
        # git's name of a file, which is what hubs tell of files outside of large-file storage.
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    else:
        return True
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest() == checksum


def _copy_from_hugging_face(source: Source, path: str, target: Path, *, afresh: bool) -> None:
    from huggingface_hub import hf_hub_download

    # The client compares sizes alone. A file that is damaged in its cache would be found there
    # again by every later command, so that it is fetched a second time past the cache.
    for anew in (True,) if afresh else (False, True):
        cached = hf_hub_download(source.repo, path, revision=source.revision, force_download=anew)
        shutil.copyfile(cached, target)
        if content_matches(target, _checksum_in_cache(Path(cached))):
            return
    raise _wrong_checksum(path)


def _checksum_in_cache(cached: Path) -> str | None:
    """Return the ETag of a cached file: a snapshot links to a file that is named by it."""
    return cached.readlink().name if cached.is_symlink() else None


def _announced_by_hugging_face(source: Source, path: str) -> RemoteFile:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    told = get_hf_file_metadata(
        hf_hub_url(source.repo, path, revision=source.revision), retry_on_errors=True
    )
    return RemoteFile(source=source, path=path, size=told.size or 0, checksum=told.etag)


def _listed_by_modelscope(source: Source, path: str) -> RemoteFile:
    files = _modelscope().list_repo_files(source.repo, "model", revision=source.revision)
    for file in files:
        if file.path == path:
            return RemoteFile(source=source, path=path, size=file.size, checksum=file.sha256)
    raise SourceError(
        f"{source.repo} has no file {path}",
        f"look up its place at {source.page}",
        no_such_file=True,
    )


def _modelscope() -> HubApi:
    import warnings

    from modelscope_hub import HubApi
    from modelscope_hub.config import HubConfig

    with warnings.catch_warnings():
        # MODELSCOPE_DOMAIN is an old name that the client still honours.
        warnings.simplefilter("ignore", FutureWarning)
        return HubApi(config=HubConfig())


def _wrong_checksum(path: str) -> SourceError:
    return SourceError(
        f"{path} came with a wrong checksum",
        "run the command again; if it comes damaged again, a proxy on the way changes files",
    )
