"""What went wrong with a source of files, in one line each: the cause and what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from enum import Enum, auto
from typing import Final

from anima_pipe.hub.sources import Hub, Source
from anima_pipe.secrecy import redacted

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_LONGEST: Final = 200
"""Characters of a client's own words that are repeated."""


class Trouble(Enum):
    """Kinds of failure that are met in different ways."""

    ABSENT = auto()
    """As far as can be known, the repository has the file in another place, if any."""
    UNREACHABLE = auto()
    """No answer came: what the client has in its cache may still serve."""
    BUSY = auto()
    """The hub answered that it cannot answer now: the client waits and asks again."""
    OTHER = auto()


class SourceError(Exception):
    """One source did not give a file.

    Args:
        cause: One line.
        remedy: One sentence that says what to do.
        trouble: Its kind.
    """

    def __init__(self, cause: str, remedy: str, trouble: Trouble = Trouble.OTHER) -> None:
        super().__init__(cause, remedy)
        self.cause = cause
        self.remedy = remedy
        self.trouble = trouble


def explained(error: BaseException, source: Source, file: str) -> SourceError:
    """Return what a client's exception means.

    The clients wrap causes in causes ("no file in the cache" around "no network"), so that the
    whole chain is searched, for the most telling kind first.

    Args:
        error: What the client raised.
        source: The repository that was asked.
        file: Path of the file in it.
    """
    chain = list(_chain(error))
    for explain in (_disk, _offline, _refusal, _damage, _time, _network):
        for link in chain:
            if (found := explain(link, source, file)) is not None:
                return found
    words = f"{type(error).__name__}: {_first_line(error)}"
    return SourceError(f"{file}: {words}", f"look at {source.page} with a browser")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _disk(error: BaseException, _source: Source, file: str) -> SourceError | None:
    number = error.errno if isinstance(error, OSError) else None
    if number in _NO_ROOM:
        return SourceError(
            f"{file}: the disk is full ({_first_line(error)})",
            "make room, or let HF_HOME and MODELSCOPE_CACHE name caches on another disk",
        )
    if number in _NOT_ALLOWED:
        return SourceError(
            f"{file}: cannot be written ({_first_line(error)})",
            "check the permissions of that folder",
        )
    return None


def _offline(error: BaseException, _source: Source, file: str) -> SourceError | None:
    if type(error).__name__ != "OfflineModeIsEnabled":
        return None
    return SourceError(
        f"{file} is not in the client's cache, and HF_HUB_OFFLINE forbids the network",
        "unset HF_HUB_OFFLINE for this one command",
        # It may be cached from another folder of the repository.
        Trouble.ABSENT,
    )


def _refusal(error: BaseException, source: Source, file: str) -> SourceError | None:
    """Explain an answer of the hub that is an error."""
    status = _status(error)
    if status is None:
        return None
    kind = type(error).__name__
    login = _login(source)
    if kind == "GatedRepoError" or status == 403:
        return SourceError(
            f"access to {source.repo} is refused or gated (HTTP {status})",
            f"accept its terms at {source.page}, then {login}",
        )
    if status == 401:
        return SourceError(
            f"{source.repo} does not exist, or asks for a token (HTTP 401)",
            f"check the name at {source.page}, or {login}",
        )
    if kind == "RevisionNotFoundError":
        return SourceError(
            f"{source.repo} has no revision {source.revision} (HTTP 404)",
            f"choose one of those listed at {source.page}",
        )
    if kind == "RepositoryNotFoundError":
        return SourceError(
            f"there is no repository {source.repo} (HTTP 404)", f"check the name, or {login}"
        )
    if status == 404:
        return SourceError(
            f"{source.repo} has no file {file} (HTTP 404)",
            f"look up its place at {source.page}",
            Trouble.ABSENT,
        )
    if status == 429:
        return SourceError(
            f"{source.hub.value} asks for fewer requests (HTTP 429)",
            f"wait some minutes and run the command again; {login} raises the limit",
            Trouble.BUSY,
        )
    words = "is out of order" if status >= 500 else "does not take the request"
    return SourceError(
        f"{source.hub.value} {words} (HTTP {status})",
        "run the command again in some minutes",
        Trouble.BUSY if status >= 500 else Trouble.OTHER,
    )


def _damage(error: BaseException, _source: Source, file: str) -> SourceError | None:
    """Explain a file that came in another size or with another content than announced."""
    words = str(error)
    kind = type(error).__name__
    if "Consistency check failed" in words or "IncompleteRead" in words or "Incomplete" in kind:
        problem = f"{file} came incomplete"
    elif "Integrity" in kind or "SizeMismatch" in kind:
        problem = f"{file} came with a wrong checksum or size"
    else:
        return None
    return SourceError(
        f"{problem} ({_first_line(error)})",
        "run the command again; if it comes damaged again, a proxy on the way changes files",
    )


def _time(error: BaseException, source: Source, file: str) -> SourceError | None:
    if _is_kind(error, "DeadlineError"):
        return SourceError(
            f"{file}: timeout, it did not arrive in the time that ModelScope's client allows",
            "run the command again, it goes on where it stopped; MODELSCOPE_DOWNLOAD_TOTAL_TIMEOUT "
            "allows more seconds",
        )
    if not (isinstance(error, TimeoutError) or _is_kind(error, "Timeout")):
        return None
    return SourceError(
        f"{file}: timeout, {source.hub.value} did not answer in time",
        f"run the command again; {_patience(source)} allow more seconds",
        Trouble.UNREACHABLE,
    )


def _network(error: BaseException, source: Source, file: str) -> SourceError | None:
    kinds = (
        "ConnectError",
        "ConnectionError",
        "NetworkError",
        "ProtocolError",
        "ProxyError",
        "ReadError",
    )
    if not (isinstance(error, ConnectionError) or _is_kind(error, *kinds)):
        return None
    # The innermost error says why in the system's own words, those around it whose call it was.
    reasons = [link.strerror for link in _chain(error) if isinstance(link, OSError)]
    reason = next(filter(None, reversed(reasons)), _first_line(error))
    return SourceError(
        f"{file}: no network connection to {source.hub.value} ({reason})",
        f"check the network, HTTPS_PROXY and {_mirror(source)}",
        Trouble.UNREACHABLE,
    )


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception of either client carries."""
    for holder in (error, getattr(error, "response", None)):
        status = getattr(holder, "status_code", None)
        if isinstance(status, int) and status >= 400:
            return status
    return None


def _is_kind(error: BaseException, *pieces: str) -> bool:
    """Tell a kind by its name: the clients use libraries that are no requirement of ours."""
    return any(piece in type(error).__name__ for piece in pieces)


def _login(source: Source) -> str:
    if source.hub is Hub.HUGGING_FACE:
        return "log in with `hf auth login` or set HF_TOKEN"
    return "set MODELSCOPE_API_TOKEN"


def _patience(source: Source) -> str:
    if source.hub is Hub.HUGGING_FACE:
        return "HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT"
    return "MODELSCOPE_REPO_TREE_PAGE_TIMEOUT_SECONDS and MODELSCOPE_DOWNLOAD_TIMEOUT"


def _mirror(source: Source) -> str:
    return "HF_ENDPOINT" if source.hub is Hub.HUGGING_FACE else "MODELSCOPE_ENDPOINT"


def _first_line(error: BaseException) -> str:
    lines = redacted(str(error)).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= _LONGEST else f"{lines[0][:_LONGEST]}..."
