"""What `info` prints of an adapter file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from anima_pipe.plain_text import in_utf8, parsed_json

if TYPE_CHECKING:
    from anima_pipe.adapters.contents import ContentsRow

SHOWN_LETTERS: Final = 66
"""Of a value of the metadata: a hash and a little more."""


def overview(facts: Mapping[str, Any]) -> list[str]:
    """Return the lines that describe a file as a whole, its metadata last."""
    depths = [f"{count} {path}" for path, count in facts["model_depths"].items()]
    labelled = {
        "file": facts["file"],
        "kind": ", ".join(facts["kinds"]),
        "dtype": facts["dtype"],
        "base": ", ".join(depths) or "of a depth that the file does not say",
        "modules": f"{facts['modules']:,}",
        "parameters": f"{facts['parameters']:,}",
        **_made_of(facts["metadata"]),
    }
    width = max(map(len, facts["metadata"]), default=0)
    metadata = [
        f"  {key:<{width}}  {_shortened(value)}" for key, value in facts["metadata"].items()
    ]
    return [
        *(f"{label:<12}{fact}" for label, fact in labelled.items()),
        *(["", "metadata", *metadata] if metadata else []),
    ]


def _made_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return what a file says of the files that it was made of, if it says it as ours do."""
    try:
        made = parsed_json(metadata["made_of"])
        files = [
            file["name"] + (f" at {file['strength']:g}" if "strength" in file else "")
            for file in made["files"]
        ]
        return {"made of": in_utf8(f"{', '.join(files)}, by {made['command']}")}
    except (KeyError, TypeError, ValueError):
        return {}


def _shortened(value: str) -> str:
    """Return the beginning of what would fill a screen: the tags of a dataset, its buckets."""
    if len(value) <= SHOWN_LETTERS:
        return value
    return f"{value[:SHOWN_LETTERS]}... ({len(value):,} letters; --json shows them all)"


def as_json_text(facts: Mapping[str, Any], rows: Sequence[ContentsRow]) -> str:
    """Return facts and rows as JSON, which has no numbers that are not finite: they are null."""
    blocks = [asdict(row) for row in rows]
    for block in blocks:
        block["alphas"] = [alpha if math.isfinite(alpha) else None for alpha in block["alphas"]]
        block["norm"] = block["norm"] if math.isfinite(block["norm"]) else None
    return json.dumps({**facts, "blocks": blocks}, indent=2, allow_nan=False)


def table(rows: Sequence[ContentsRow]) -> list[str]:
    """Return the lines of a table, one per block and kind."""
    width = max(len(row.place) for row in rows)
    lines = [f"{'place':<{width}}  {'kind':<16}modules  rank      alpha     parameters  norm"]
    for row in rows:
        ranks, alphas = (_several(numbers) for numbers in (row.ranks, row.alphas))
        lines.append(
            f"{row.place:<{width}}  {row.kind:<16}{row.modules:>7}  {ranks:<10}{alphas:<10}"
            f"{row.parameters:>10,}  {row.norm:.4g}"
        )
    return lines


def _several(numbers: tuple[float, ...]) -> str:
    return ",".join(f"{number:g}" for number in numbers)
