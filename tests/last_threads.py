"""Trains as anima_train_network.py does, and notes which threads are there when Python ends.

Takes the folder for the notes before the options; each process writes one, named by its rank.
"""

from __future__ import annotations

import atexit
import os
import runpy
import sys
from pathlib import Path

THREADS = Path("/proc/self/task")
"""Linux tells of all of a process's threads, C++'s included."""


def note_threads_at_exit(folder: Path) -> None:
    """Write the threads' names, at the end of all that Python does at exit: call it early."""
    folder.mkdir(exist_ok=True)
    atexit.register(_note_threads, folder / f"threads{os.environ['RANK']}.txt")


def _note_threads(note: Path) -> None:
    names = [(thread / "comm").read_text() for thread in THREADS.iterdir()]
    note.write_text("".join(sorted(names)))


def gloo_threads(folder: Path, rank: int) -> list[str]:
    """Return which of a noted process's threads were gloo's."""
    noted = (folder / f"threads{rank}.txt").read_text().split()
    return [name for name in noted if "gloo" in name]


if __name__ == "__main__":
    note_threads_at_exit(Path(sys.argv.pop(1)))
    root = Path(__file__).parents[1]
    sys.path.insert(0, str(root))
    runpy.run_path(str(root / "anima_train_network.py"), run_name="__main__")
