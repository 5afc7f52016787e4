"""The report of a run so far: gpu.json for programs, gpu.md for people."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class ReportedPart(Protocol):
    """What is reported of a part."""

    name: str
    limit: float
    state: str
    seconds: float
    rows: list[dict[str, Any]]


def write_report(folder: Path, about: Mapping[str, object], parts: Sequence[ReportedPart]) -> None:
    """Replace gpu.json and gpu.md by what is known now."""
    fields = ("name", "state", "seconds", "limit", "rows")
    known = [{field: getattr(part, field) for field in fields} for part in parts]
    replace(folder / "gpu.json", json.dumps({**about, "parts": known}, indent=1) + "\n")
    replace(folder / "gpu.md", markdown(about, parts))


def replace(path: Path, text: str) -> None:
    """Write a file that is never seen half written."""
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def markdown(about: Mapping[str, object], parts: Sequence[ReportedPart]) -> str:
    """Return the report as a page: parts, claims, what went wrong, figures by table."""
    title = "# A rehearsal: no figure here means anything" if about["small"] else "# On one card"
    states = [(part.name, part.state, f"{part.seconds:.1f}", f"{part.limit:.0f}") for part in parts]
    rows = [(part.name, row) for part in parts for row in part.rows]
    claims = [
        (
            part,
            row["what"],
            number(row["error"]),
            number(row["within"]),
            "yes" if row["ok"] else "NO",
        )
        for part, row in rows
        if row["kind"] == "check"
    ]
    notes = [
        (part, row["what"], row.get("text") or row.get("error"))
        for part, row in rows
        if row["kind"] in ("note", "failure")
    ]
    sections = [
        title,
        f"On {about['device']}, {about['seconds']} s in all.",
        *section("Parts", ("part", "state", "s", "limit, s"), states),
        *section("Proof", ("part", "claim", "error", "within", "holds"), claims),
        *section("What else is to be said", ("part", "of", ""), notes),
    ]
    figures = [row for _part, row in rows if row["kind"] == "figure"]
    for name in dict.fromkeys(row["table"] for row in figures):
        own = [row["columns"] for row in figures if row["table"] == name]
        columns = [*dict.fromkeys(column for row in own for column in row)]
        lines = [tuple(number(row.get(column)) for column in columns) for row in own]
        sections += section(name.capitalize(), columns, lines)
    return "\n\n".join(sections) + "\n"


def section(title: str, head: Sequence[str], lines: Iterable[Sequence[object]]) -> list[str]:
    """Return a headed table; nothing where there are no lines."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    if not cells:
        return []
    rows = [head, ["---"] * len(head), *cells]
    return [f"## {title}", "\n".join(f"| {' | '.join(row)} |" for row in rows)]


def number(value: object) -> str:
    """Return a number short enough to read; what is not known is a dash."""
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
