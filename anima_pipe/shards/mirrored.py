"""mirror.json: which address a folder mirrors, and what it may keep.

It is a note for the next process that is given the same address, and says to nobody else that a
folder is a mirror: whoever packs a cache can put any file into it.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anima_pipe.files import write_atomically
from anima_pipe.plain_text import parsed_json
from anima_pipe.shards.addresses import shown_address, split_query

MIRROR: Final = "mirror.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrored:
    """What is noted of a mirror."""

    url: str
    """As it may be shown."""
    limit_bytes: int
    """Of all shards in all mirrors that lie beside it."""


def mirror_name(url: str) -> str:
    """Return what the mirror of an address is called.

    A user and a query are keys to the place and not its name: a new key opens the same mirror.
    """
    return _name_of(shown_address(url))


def name_with_user(url: str) -> str:
    """Return what the mirror of an address was called by versions that wrote users into names."""
    return _name_of(split_query(url)[0])


def _name_of(place: str) -> str:
    name = re.sub(r"[^A-Za-z0-9]+", "-", place.partition("://")[2])[-40:].strip("-")
    return f"{name}-{hashlib.blake2b(place.encode(), digest_size=4).hexdigest()}"


def described(folder: Path) -> Mirrored | None:
    """Return what is noted in a folder; None unless it is called as the mirror of that address."""
    try:
        fields = parsed_json((folder / MIRROR).read_bytes())
        mirrored = Mirrored(url=str(fields["url"]), limit_bytes=int(fields["limit_bytes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mirrored if folder.name == mirror_name(mirrored.url) else None


def describe(folder: Path, mirrored: Mirrored) -> None:
    """Note what a folder mirrors, where it is not noted already.

    Raises:
        OutputError: It cannot be written.
    """
    if described(folder) == mirrored:
        return
    fields = {"url": mirrored.url, "limit_bytes": mirrored.limit_bytes}
    write_atomically(folder / MIRROR, f"{json.dumps(fields, indent=1)}\n".encode())
