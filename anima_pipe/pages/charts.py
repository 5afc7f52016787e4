"""From numbers to the places of a chart's parts; `chart.html` draws them.

Places are shares of the chart's width and height, so that a chart fills whatever room it has while
its words keep their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

LEAST: Final = 0.01
"""Share of the longest bar that the shortest ones have, however small their numbers."""

_TALLEST: Final = 0.74
_BASE: Final = 0.8857
"""Where columns stand: room for a line of names is below, room for a number above the tallest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A count to be drawn."""

    name: str
    """Short: it stands below."""
    count: int
    meaning: str
    """Is told to who points at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One number, drawn as a rectangle."""

    left: float
    top: float
    width: float
    height: float
    value: str = ""
    """Stands above it."""
    name: str = ""
    """Stands below it."""
    meaning: str = ""
    """Is told to who points at it."""

    @property
    def middle(self) -> float:
        """From the left."""
        return self.left + self.width / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """What `chart.html` draws."""

    kind: str
    """Its class in the stylesheet, which gives it its height."""
    label: str
    """What it shows, for who does not see it; empty where words beside it say the same."""
    bars: tuple[Bar, ...]


def chart_of_columns(columns: Sequence[Column], *, label: str) -> Chart:
    """Return a chart of columns, from left to right.

    Args:
        columns: What they stand for; a column of zero is a line, with a name but without a number.
        label: What all of them count.
    """
    tallest = max([1, *(column.count for column in columns)])
    bars: list[Bar] = []
    for place, column in enumerate(columns):
        height = _TALLEST * max(column.count / tallest, LEAST)
        bar = Bar(
            left=place / len(columns),
            top=_BASE - height,
            width=1 / len(columns),
            height=height,
            value=f"{column.count:,}" if column.count else "",
            name=column.name,
            meaning=column.meaning,
        )
        bars.append(bar)
    return Chart(kind="columns", label=label, bars=tuple(bars))


def chart_of_row(share: float) -> Chart:
    """Return the bar of a table's row, whose other cells say what it shows.

    Args:
        share: Of the table's longest bar, in [0, 1].
    """
    bar = Bar(left=0, top=0, width=max(share, LEAST), height=1)
    return Chart(kind="row", label="", bars=(bar,))
