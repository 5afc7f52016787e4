"""What the commands of a cache print: its statistics, and what gc does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from anima_pipe.runtime import counted
from anima_pipe.shards.places import shown_path

if TYPE_CHECKING:
    from anima_pipe.shards.pruning import Waste
    from anima_pipe.shards.statistics import FolderStatistics


def statistics_lines(folder: FolderStatistics) -> Iterator[str]:
    """Yield what one encoder's folder holds, line by line."""
    yield f"{folder.folder.name}  ({folder.identity.encoder_name})"
    samples, shards = counted(folder.samples, "sample"), counted(folder.shards, "shard")
    yield f"  {samples} in {shards}, {_size(folder.total_bytes)}"
    if folder.copies:
        yield f"  {folder.copies} second copies"
    if folder.unfinished_bytes:
        yield f"  {_size(folder.unfinished_bytes)} being written, or left by a writer that died"
    if folder.buckets:
        by_count = sorted(folder.buckets.items(), key=lambda item: (-item[1], item[0]))
        yield "  buckets " + ", ".join(f"{w}x{h} ({count})" for (w, h), count in by_count)
    if folder.tokens:
        middle = folder.tokens[len(folder.tokens) // 2]
        yield f"  tokens {folder.tokens[0]} to {folder.tokens[-1]}, median {middle}"
    for problem in folder.problems:
        yield f"  {problem}"


def statistics_json(folder: FolderStatistics) -> dict[str, object]:
    """Return what one encoder's folder holds, for JSON."""
    return {
        "folder": shown_path(folder.folder.parent, folder.folder),
        **asdict(folder.identity),
        "shards": folder.shards,
        "samples": folder.samples,
        "copies": folder.copies,
        "total_bytes": folder.total_bytes,
        "unfinished_bytes": folder.unfinished_bytes,
        "buckets": {f"{w}x{h}": count for (w, h), count in folder.buckets.items()},
        "tokens": list(folder.tokens),
        "problems": list(map(str, folder.problems)),
    }


def waste_line(waste: Waste) -> str:
    """Return what becomes of a shard."""
    kept = len(waste.kept_rows)
    fate = f"keeps {kept} of {kept + waste.samples} samples" if kept else "goes"
    place = shown_path(waste.tar.parent.parent, waste.tar)
    return f"{place}: {fate}, {_size(waste.freed_bytes)} freed"


def sum_of(wastes: Sequence[Waste]) -> str:
    """Return how many samples and bytes of several shards go."""
    freed = _size(sum(waste.freed_bytes for waste in wastes))
    return f"{counted(sum(waste.samples for waste in wastes), 'sample')}, {freed}"


def _size(count: int) -> str:
    units = ("bytes", "kB", "MB", "GB", "TB")
    size, unit = float(count), 0
    while size >= 1000 and unit < len(units) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:.3g} {units[unit]}" if unit else f"{count} bytes"
