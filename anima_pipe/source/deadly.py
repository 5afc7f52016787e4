"""Pictures that kill the process that decodes them, remembered by the hash of their bytes.

They are in `<cache_dir>/scan/deadly.jsonl`, beside what is remembered of scans: an object a line,
with the picture's content and the name that it had. Without the file they are tried again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from anima_pipe.errors import DataError, OutputError
from anima_pipe.files import write_atomically
from anima_pipe.plain_text import in_utf8, parsed_json
from anima_pipe.records import ImageFile


class DeadlyPictures:
    """Those that are known in a cache folder.

    Args:
        cache_dir: The folder; None: nothing is remembered.
    """

    def __init__(self, cache_dir: Path | None) -> None:
        self._file = cache_dir / "scan" / "deadly.jsonl" if cache_dir else None

    def forget(self) -> None:
        """Let all of them be tried again."""
        if self._file:
            with suppress(OSError):
                self._file.unlink()

    def add(self, images: Iterable[ImageFile]) -> None:
        """Remember pictures, if the folder can be written."""
        added = {image.content: in_utf8(image.path.name) for image in images}
        if self._file and added:
            known = self.known() | added
            lines = [json.dumps({"content": each, "name": known[each]}) for each in sorted(known)]
            with suppress(OutputError):
                write_atomically(self._file, "".join(f"{line}\n" for line in lines).encode())

    def known(self) -> dict[str, str]:
        """Return their contents, and the names that they had; what cannot be read is forgotten."""
        known: dict[str, str] = {}
        with suppress(OSError, ValueError, KeyError, TypeError):
            for line in self._file.read_text("utf-8").splitlines() if self._file else ():
                entry = parsed_json(line)
                known[str(entry["content"])] = str(entry["name"])
        return known


def deadly_picture(path: Path) -> DataError:
    """Return what is wrong with one of them."""
    return DataError(
        f"{path} kills the process that decodes it, most likely for want of memory; it is left out "
        "until --rehash",
        "scale it down or save it anew; --rehash tries it again",
    )
