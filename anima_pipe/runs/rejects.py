"""All that runs left out, where a terminal shows the first: `rejects.jsonl`.

An object a line: "stage" that left it out, "name" of the picture or caption, and "reason". Stages
that write to one file keep each other's lines, and replace their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from anima_pipe.errors import OutputError
from anima_pipe.files import write_atomically
from anima_pipe.plain_text import parsed_json
from anima_pipe.records import Skipped
from anima_pipe.runtime import launched_rank, warn

NAME: Final = "rejects.jsonl"


@dataclass(frozen=True, slots=True)
class Rejects:
    """Where a stage lists what it leaves out; of processes launched together each has its own."""

    stage: str
    file: Path

    @classmethod
    def of(cls, stage: str, file: Path | None, cache_dir: Path) -> Rejects:
        """Return a stage's list, in the folder of its cache where no file is named."""
        path, rank = file or cache_dir / NAME, launched_rank().number
        own = path.with_name(f"{path.stem}.rank{rank}{path.suffix}") if rank else path
        return cls(stage, own)

    def write(self, skipped: Sequence[Skipped]) -> Path | None:
        """List all that was left out; return where, or None where that cannot be written."""
        others = [entry for entry in self._entries() if entry.get("stage") != self.stage]
        own = [{"stage": self.stage, "name": one.name, "reason": one.reason} for one in skipped]
        try:
            if entries := [*others, *own]:
                write_atomically(self.file, _as_lines(entries))
            else:
                with suppress(OSError):  # mostly there is none
                    self.file.unlink()
        except OutputError as error:
            if skipped:
                warn(f"not all that is left out is listed: {error.problem}")
            return None
        return self.file

    def _entries(self) -> Iterator[dict[str, Any]]:
        """Yield what the file lists, as far as it can be read."""
        with suppress(OSError, ValueError):
            for line in self.file.read_text("utf-8").splitlines():
                entry = parsed_json(line)
                if isinstance(entry, dict):
                    yield entry


def _as_lines(entries: Iterable[dict[str, Any]]) -> bytes:
    # In ASCII: so a name that is not UTF-8 can be read back as it is.
    return "".join(f"{json.dumps(entry)}\n" for entry in entries).encode()
