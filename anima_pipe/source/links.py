"""Links that lead out of a dataset's folders: where they lead, and whether they are followed.

What a user names is the dataset's, wherever it is: a folder that is a link itself, a path in a
metadata file. What is found within it may be anybody's: in a folder that was unpacked, a caption
can be a link to a file of the user's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from anima_pipe.errors import DataError


class WayOut(NamedTuple):
    """A link that leads out of the folders of a dataset."""

    link: Path
    target: Path
    """Where it leads, behind all links that follow."""

    def __str__(self) -> str:
        return f"{self.link} -> {self.target}"


class Bounds:
    """The folders of a dataset. Several threads may ask for ways out of them.

    Args:
        folders: Those that were named.
        refused: Why links that lead out of them are not followed; None: they are.
    """

    def __init__(self, folders: Iterable[Path] = (), refused: str | None = None) -> None:
        self.refused = refused
        self._named = {_spelt(folder) for folder in folders}
        self._real = {_real(folder) for folder in self._named}
        self._known: dict[Path, WayOut | Path] = {}

    def way_out(self, path: Path) -> WayOut | None:
        """Return the link that takes a file out of the folders; None: it is within them."""
        folder = self._folder(path.parent)
        if isinstance(folder, WayOut):
            return folder
        if not os.path.islink(path):  # noqa: PTH114 - Path's method takes twice as long
            return None
        target = _real(path)
        if _is_within(target, self._real) or _is_within(target, {folder}):
            return None
        return WayOut(path, target)

    def admit(self, path: Path) -> None:
        """Check that a file may be read.

        Raises:
            DataError: A link takes it out of the folders, and such links are not followed.
        """
        if self.refused and (way := self.way_out(path)):
            raise DataError(
                f"{way.link} leads to {way.target}, out of the dataset's folders: {self.refused}",
                "put a copy in the place of the link, or name the folder that it leads to",
            )

    def _folder(self, folder: Path) -> WayOut | Path:
        """Return where the files of a folder really are, or the link that takes them elsewhere."""
        if folder not in self._known:
            self._known[folder] = self._looked_up(folder)
        return self._known[folder]

    def _looked_up(self, folder: Path) -> WayOut | Path:
        spelt = _spelt(folder)
        real = _real(spelt)
        # A folder of no named one was named itself, by the path of a file in it.
        if _is_within(real, self._real) or not _is_within(spelt, self._named):
            return real
        for parent in (*reversed(spelt.parents), spelt):
            target = _real(parent)
            if _is_within(parent, self._named) and not _is_within(target, self._real):
                return WayOut(parent, target)
        return real


def _spelt(path: Path) -> Path:
    """Return a path from the root, whose links are left as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100 - Path.absolute leaves `..` in it


def _real(path: Path) -> Path:
    """Return where a path leads; the last link of those that lead in a circle."""
    return Path(os.path.realpath(path))


def _is_within(path: Path, folders: set[Path]) -> bool:
    return path in folders or any(parent in folders for parent in path.parents)
