"""How facts of a run are written into its states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from anima_pipe.encoders.fingerprints import file_digest

DIGEST_LETTERS: Final = 16
"""Of a hash."""


def short_digest(path: Path) -> str:
    """Return the beginning of a file's hash."""
    return file_digest(path)[:DIGEST_LETTERS]


def each(name: str, arguments: Mapping[str, object]) -> dict[str, object]:
    """Return arguments by name.argument, so that an error can say which one differs."""
    return {f"{name}.{key}": value for key, value in sorted(arguments.items())}
