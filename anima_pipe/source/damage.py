"""Pictures that decode, but not to what was saved: a JPEG of which a part is grey, or shifted.

libjpeg goes on where data is damaged, and Pillow drops its warnings. So the data of a JPEG is
decoded once more, at an eighth of the size, by simplejpeg, which raises what libjpeg warns of.
Damaged PNGs do not decode at all; WebP, AVIF, GIF, JPEG 2000 and BMP hold nothing that would tell.

Such pictures are remembered by the hash of their bytes in `<cache_dir>/scan/damaged.jsonl`, an
object a line: the content, the name that it had, and the reason. Nobody decodes what is cached.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anima_pipe.errors import OutputError
from anima_pipe.files import refusals_named
from anima_pipe.plain_text import in_utf8, parsed_json
from anima_pipe.records import ImageFile, Skipped

_JPEG: Final = b"\xff\xd8\xff"

_DAMAGE: Final = ("Corrupt JPEG data", "Premature end of JPEG", "Inconsistent progression")
"""How libjpeg's warnings of the data begin; others are of headers that many programs write so."""


@dataclass(frozen=True, slots=True)
class Damaged:
    """A picture whose data is damaged."""

    image: ImageFile
    reason: str

    def named(self) -> Skipped:
        """Return how it is told."""
        return Skipped(name=str(self.image.path), reason=f"its data is damaged: {self.reason}")


def damage_of(path: Path) -> str | None:
    """Return what is damaged in a picture that decodes; None: nothing that can be told.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        begins = file.read(len(_JPEG))
        return _jpeg_damage(begins + file.read()) if begins == _JPEG else None


def _jpeg_damage(encoded: bytes) -> str | None:
    import simplejpeg  # Imports numpy, which reading of settings does without.

    try:
        # One channel, at an eighth: all of the data is read, and little made of it.
        simplejpeg.decode_jpeg(encoded, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        warning = " ".join(str(error).split())
        return warning if warning.startswith(_DAMAGE) else None
    return None


def remember(cache_dir: Path, damaged: Iterable[Damaged]) -> None:
    """Remember pictures, if the folder can be written; several processes may do so at once."""
    # A line end first: what a killed process wrote half of spoils no other line.
    lines = [f"\n{json.dumps(_entry(one))}\n" for one in damaged]
    file = _file(cache_dir)
    if lines:
        with suppress(OutputError), refusals_named(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("ab", buffering=0) as notes:
                notes.write("".join(lines).encode())


def remembered(cache_dir: Path) -> dict[str, str]:
    """Return what is damaged in pictures, by their content; what cannot be read is left out."""
    known: dict[str, str] = {}
    with suppress(OSError):
        for line in _file(cache_dir).read_bytes().splitlines():
            with suppress(ValueError, KeyError, TypeError):
                entry = parsed_json(line)
                known[str(entry["content"])] = str(entry["reason"])
    return known


def _entry(damaged: Damaged) -> dict[str, str]:
    name = in_utf8(damaged.image.path.name)
    return {"content": damaged.image.content, "name": name, "reason": damaged.reason}


def _file(cache_dir: Path) -> Path:
    return cache_dir / "scan" / "damaged.jsonl"
