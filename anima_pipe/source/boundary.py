"""What goes wrong with one picture or caption is its own affair: it is left out, not the others."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from anima_pipe.errors import DataError, PipeError

SHOWN_LETTERS: Final = 300
"""Of what a library says is wrong."""


@contextmanager
def one_item(name: str | Path, remedy: str) -> Generator[None]:
    """Make a DataError that names the item of whatever is raised within.

    Errors that users can mend are left as they are, and so is the end of this process's memory: it
    is not the item's.

    Args:
        name: Of the item.
        remedy: What to do about it.

    Raises:
        DataError: Anything was raised.
    """
    try:
        yield
    except (PipeError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{name} cannot be used: {reason_of(error)}", remedy) from error


def reason_of(error: Exception) -> str:
    """Return what an error says, in one line and not much of it."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    line = " ".join(str(said).split())
    return line if len(line) <= SHOWN_LETTERS else f"{line[:SHOWN_LETTERS]}..."
