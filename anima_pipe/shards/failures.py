"""What storage elsewhere fails with: what is tried again, and what is said of what fails for good.

Every protocol's package has exceptions of its own, few of them OSErrors: they are known by what
they carry.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from anima_pipe.errors import PipeError
from anima_pipe.files import NO_ROOM
from anima_pipe.secrecy import redacted

ATTEMPTS: Final = 3
"""Of every transfer; most protocols' packages try several times themselves."""

FIRST_PAUSE_SECONDS: Final = 0.5
"""Before the second attempt; doubled before each further one."""

_HOPELESS: Final = (FileNotFoundError, PermissionError, NotImplementedError, IsADirectoryError)
_REFUSED: Final = (401, 403)
"""Statuses of http that stay the same however often one asks."""

_Result = TypeVar("_Result")


def tried(act: Callable[[], _Result]) -> _Result:
    """Do something that may fail for a moment, several times if need be."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return act()
        except (*_HOPELESS, PipeError):
            raise
        except Exception as error:
            if _is_refusal(error) or lacks_room(error):
                raise
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
    return act()


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it was raised from: some packages wrap what the storage said."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _is_refusal(error: Exception) -> bool:
    """Tell whether the storage knows who asks, or wants to, and says no."""
    for cause in _causes(error):
        answer = getattr(cause, "response", None)
        for holder, name in ((cause, "status"), (cause, "code"), (answer, "status_code")):
            if str(getattr(holder, name, "")) in map(str, _REFUSED):
                return True
        # botocore's NoCredentialsError, google.auth's DefaultCredentialsError
        if isinstance(cause, PermissionError) or "Credentials" in type(cause).__name__:
            return True
        if isinstance(cause, OSError) and str(cause).startswith("Forbidden"):  # gcsfs says it so
            return True
    return False


def lacks_room(error: Exception) -> bool:
    """Tell whether this machine's disk is full."""
    return isinstance(error, OSError) and error.errno in NO_ROOM


def remedy_of(error: Exception) -> str:
    """Return what is to be done about it."""
    if _is_refusal(error):
        return "check the credentials, and that they may do this; then run again"
    if isinstance(error, FileNotFoundError):
        return "check the address; a bucket or a repository must be there before a cache is"
    return "check the address, the credentials and the network, and run again"


def told(error: Exception) -> str:
    """Return what the storage said, in one line and without what is secret in an address."""
    first = list(_causes(error))[-1]
    lines = str(first).strip().splitlines()
    return redacted(lines[0]) if lines else type(first).__name__
