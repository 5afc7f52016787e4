"""How much memory the processes that decode may take at once."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

SHARE: Final = 4
"""Decoding may take one part in so many of the memory: the encoder needs most of it."""

_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
"""Where a container's limit stands, in either version of Linux' control groups."""


class Budget:
    """Bytes that several threads share; each waits until there are enough for it.

    Args:
        total: All of them; who wants more than that gets them all.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._taken = 0
        self._given_back = threading.Condition()

    @contextmanager
    def taking(self, count: int | None) -> Generator[None]:
        """Take so many bytes, all of them for None, and give them back at the end."""
        wanted = self._total if count is None else min(count, self._total)
        with self._given_back:
            self._given_back.wait_for(lambda: self._taken + wanted <= self._total)
            self._taken += wanted
        try:
            yield
        finally:
            with self._given_back:
                self._taken -= wanted
                self._given_back.notify_all()


def decoding_bytes() -> int:
    """Return how many bytes decoding may take: a share of this machine's or container's memory."""
    import psutil

    memory = psutil.virtual_memory().total
    for file in _LIMITS:
        # Version 2 says "max" where there is no limit, version 1 a number beyond any memory.
        with suppress(OSError, ValueError):
            memory = min(memory, int(file.read_text()))
    return memory // SHARE
