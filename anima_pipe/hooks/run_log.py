"""Where the numbers and pictures of a run go, and the file that holds them for anyone to read.

metrics.jsonl has one JSON object a line, in the order of writing: "step" (optimizer steps done),
"time" (seconds since 1970), and numbers by name; null stands for one that is not finite. A resumed
run goes on with the file, without the lines of steps that it takes again.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from anima_pipe.files import refusals_named, write_atomically
from anima_pipe.plain_text import parsed_json

if TYPE_CHECKING:
    from PIL.Image import Image

METRICS_FILE: Final = "metrics.jsonl"


class Sink(Protocol):
    """One place that numbers and pictures go to."""

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Take numbers by name."""
        ...

    def pictures(self, step: int, pictures: Mapping[str, Image]) -> None:
        """Take pictures by name."""
        ...

    def close(self) -> None:
        """Write what is still held back."""
        ...


class RunLog:
    """All of those places, of which there may be none."""

    def __init__(self, sinks: Sequence[Sink] = ()) -> None:
        self.sinks = sinks

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Pass numbers on."""
        for sink in self.sinks:
            sink.numbers(step, numbers)

    def pictures(self, step: int, pictures: Mapping[str, Image]) -> None:
        """Pass pictures on."""
        for sink in self.sinks:
            sink.pictures(step, pictures)

    def close(self) -> None:
        """Close every place."""
        for sink in self.sinks:
            sink.close()


class MetricsFile:
    """The file of numbers in a folder.

    Args:
        folder: Made where it is missing.
        steps_done: Where the run begins; what the file says of later steps is dropped, and so is a
            last line that was not written to its end.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, folder: Path, steps_done: int = 0) -> None:
        self.path = folder / METRICS_FILE
        with refusals_named(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            kept = _lines_until(self.path, steps_done)
            write_atomically(self.path, "".join(kept).encode())
            self._file = self.path.open("a", encoding="utf-8")

    def numbers(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a line."""
        finite = {name: n if math.isfinite(n) else None for name, n in numbers.items()}
        line = json.dumps({"step": step, "time": round(time.time(), 3), **finite})
        with refusals_named(self.path):
            self._file.write(f"{line}\n")
            self._file.flush()

    def pictures(self, step: int, pictures: Mapping[str, Image]) -> None:
        """Leave pictures to others."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lines_until(path: Path, step: int) -> list[str]:
    """Return the whole lines of a file, but for those of later steps."""
    if not path.exists():
        return []
    kept: list[str] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if line.endswith("\n") and parsed_json(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return kept
