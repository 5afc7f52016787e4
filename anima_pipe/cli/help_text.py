"""From a command's docstring to its help: filled to the terminal, its small table kept a table."""

from __future__ import annotations

import re
import textwrap
from typing import Final

WIDTH: Final = 76
"""Of the table's lines: with click's indentation they fit a terminal of 80 columns."""
LABEL_WIDTH: Final = 8
"""Of `Reads`, `Writes` and `Costs`, with the blanks behind them."""


def help_text(docstring: str | None) -> str:
    r"""Return a docstring as click takes it, which fills every paragraph but those marked by \b.

    Args:
        docstring: Paragraphs; the one that begins with `Reads` is a table of labels and texts.
    """
    paragraphs = (docstring or "").strip().split("\n\n")
    return "\n\n".join(
        f"\b\n{_table(text)}" if text.startswith("Reads ") else text for text in paragraphs
    )


def _table(text: str) -> str:
    """Fill a table's texts anew; its lines begin with a label, or go on from the line before."""
    rows: list[tuple[str, str]] = []
    for line in text.splitlines():
        if found := re.match(r"(\w+) {2,}(.*)", line):
            rows.append((found[1], found[2]))
        else:
            label, begun = rows.pop()
            rows.append((label, f"{begun} {line.strip()}"))
    filled = (
        textwrap.fill(
            words,
            WIDTH,
            initial_indent=label.ljust(LABEL_WIDTH),
            subsequent_indent=" " * LABEL_WIDTH,
        )
        for label, words in rows
    )
    return "\n".join(filled)
