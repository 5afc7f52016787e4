"""Links that lead out of a dataset's folders: when they are followed, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anima_pipe.dataset.pictures import Picture
from anima_pipe.shards.mirror import mirror_at
from anima_pipe.source.caption_files import caption_file

NOT_WANTED: Final = "--no-follow_links is set"

NAMED: Final = 20
"""Links that are named; of the others there is a count."""


@dataclass(frozen=True, slots=True)
class LinksOut:
    """The links of a dataset that lead out of its folders."""

    count: int = 0
    first: tuple[str, ...] = ()
    """Each with where it leads."""
    refused: str | None = None
    """Why they are not followed; None: they are."""


def refusal(cache_dir: Path, *, follow_links: bool) -> str | None:
    """Return why a run does not follow links out of its dataset's folders; None: it does.

    Args:
        cache_dir: Of the run. What is read for a cache at an address leaves this machine.
        follow_links: Whether the user lets it.
    """
    if not follow_links:
        return NOT_WANTED
    mirror = mirror_at(cache_dir)
    return f"none is followed for a cache at an address, {mirror.shown}" if mirror else None


def links_out(pictures: Iterable[Picture], *, captions: bool = True) -> LinksOut:
    """Find the links that lead out of a dataset's folders, without reading what they lead to.

    Args:
        pictures: From `find_pictures`.
        captions: Whether the files of their captions are looked at too.
    """
    seen: set[int] = set()  # hashes of paths: a dataset may be made of a million links
    first: list[str] = []
    refused = None
    for picture in pictures:
        refused = picture.bounds.refused
        for path in _files(picture, captions=captions):
            way = picture.bounds.way_out(path)
            if way is None or hash(way.link) in seen:
                continue
            seen.add(hash(way.link))
            if len(first) < NAMED:
                first.append(str(way))
    return LinksOut(len(seen), tuple(first), refused)


def _files(picture: Picture, *, captions: bool) -> Iterator[Path]:
    """Yield the files that are read for a picture."""
    yield picture.path
    if picture.subset.metadata_file:
        yield picture.subset.metadata_file
    if picture.mask:
        yield picture.mask
    if captions and picture.caption is None:
        with suppress(OSError):  # reading it will say what is wrong
            if file := caption_file(picture.path, picture.subset.caption_extension):
                yield file
