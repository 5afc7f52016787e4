"""Prefetching: how long each window took to read, and a warning where one takes too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Final

from anima_pipe.dataset.batches import Window
from anima_pipe.runtime import warn

PATIENCE_SECONDS: Final = 60.0
"""A batch that takes longer to read is warned of, and again after each such time."""


class Prefetched:
    """Windows, each with the seconds that reading it took.

    Args:
        windows: Where they come from.
        patience_seconds: After how long a warning is given, from a thread of its own.
    """

    def __init__(
        self, windows: Iterator[Window], patience_seconds: float = PATIENCE_SECONDS
    ) -> None:
        self.windows = windows
        self.patience_seconds = patience_seconds

    def __iter__(self) -> Iterator[tuple[Window, float]]:
        """Return itself."""
        return self

    def __next__(self) -> tuple[Window, float]:
        """Return the next window, and how long it took."""
        began, arrived = time.monotonic(), threading.Event()
        watcher = threading.Thread(target=self._watch, args=(arrived, began), daemon=True)
        watcher.start()
        try:
            window = next(self.windows)
        finally:
            arrived.set()
        return window, time.monotonic() - began

    def _watch(self, arrived: threading.Event, began: float) -> None:
        while not arrived.wait(self.patience_seconds):
            waited = time.monotonic() - began
            warn(
                f"no batch for {waited:.0f} s: the cache's disk does not answer, or is very slow; "
                "training goes on when it does"
            )
