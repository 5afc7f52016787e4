"""What a part finds, row by row: each is on disk before the next one is begun."""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


class Results:
    """Appends the rows of one part to a file, a JSON object a line.

    Args:
        path: The file. A part that is killed leaves in it what it found until then.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed = False

    def check(self, what: str, error: float, within: float) -> None:
        """Note a claim and whether it holds.

        Args:
            what: The claim.
            error: How far off it is; one that is not a number never passes.
            within: How far off it may be.
        """
        ok = math.isfinite(error) and error <= within
        self._write({"kind": "check", "what": what, "error": error, "within": within, "ok": ok})
        self.failed |= not ok

    def holds(self, what: str, *, so: bool) -> None:
        """Note a claim that holds or does not, without a measure."""
        self.check(what, 0.0 if so else 1.0, 0.0)

    def figure(self, table: str, **columns: object) -> None:
        """Note one row of a table; None stands for what this device does not tell."""
        self._write({"kind": "figure", "table": table, "columns": columns})

    def note(self, what: str, text: str) -> None:
        """Note something that is neither a claim nor a figure, such as what was not possible."""
        self._write({"kind": "note", "what": what, "text": text})

    @contextmanager
    def attempt(self, what: str) -> Generator[None]:
        """Let an error cost no more than what is inside: it is noted, and the part goes on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is, the other rows are wanted
            traceback.print_exc()
            reason = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
            self._write({"kind": "failure", "what": what, "error": reason[:600]})
            self.failed = True

    def _write(self, row: dict[str, object]) -> None:
        # JSON has no number that is none.
        row = {name: _finite(value) for name, value in row.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, allow_nan=False) + "\n")


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return value


def read_rows(path: Path) -> list[dict[str, object]]:
    """Return the rows of a part; of one that was killed within a line, all before that line."""
    if not path.exists():
        return []
    rows: list[dict[str, object]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
