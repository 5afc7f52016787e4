"""How far something is: a bar in a terminal, a line now and then in a file or pipe."""

from __future__ import annotations

import logging
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Self

from anima_pipe.runtime import LOGGER

SECONDS_BETWEEN_LINES: Final = 30.0


class Progress(ABC):
    """What is told of something's progress; it ends with the `with` that it stands in."""

    @abstractmethod
    def update(self, n: int = 1) -> None:
        """Tell that so many more are done."""

    @abstractmethod
    def tell(self, **notes: object) -> None:
        """Tell more, by name, for the next time that something is shown."""

    @abstractmethod
    def close(self) -> None:
        """Show where it ended."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close it."""
        self.close()


def progress_bar(total: int, unit: str, label: str | None = None, done: int = 0) -> Progress:
    """Return what shows progress: a bar where there is a terminal, else lines.

    Where the program's messages are not shown, this is not either.

    Args:
        total: How many there are.
        unit: What they are.
        label: What is being done, ahead of a bar.
        done: How many of them were done before; what is left is reckoned by the others' speed.
    """
    if not LOGGER.isEnabledFor(logging.INFO):
        return NoProgress()
    kind = ProgressBar if sys.stderr.isatty() else ProgressLines
    return kind(total, unit, label, done)


class NoProgress(Progress):
    """Shows nothing."""

    def update(self, n: int = 1) -> None:
        """Count nothing."""

    def tell(self, **notes: object) -> None:
        """Keep nothing."""

    def close(self) -> None:
        """Leave nothing behind."""


class ProgressBar(Progress):
    """A bar on standard error; messages are written above it.

    Args:
        total: As for `progress_bar`, and so are the others.
        unit: See there.
        label: See there.
        done: See there.
    """

    def __init__(self, total: int, unit: str, label: str | None = None, done: int = 0) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit=unit, desc=label, initial=done, dynamic_ncols=True)

    def update(self, n: int = 1) -> None:
        """Move on."""
        self._bar.update(n)

    def tell(self, **notes: object) -> None:
        """Take in what stands behind the bar from the next time on."""
        self._bar.set_postfix(notes, refresh=False)

    def close(self) -> None:
        """Leave the bar as it stands, and what follows to the next line."""
        self._bar.close()


class ProgressLines(Progress):
    """Lines on standard error: one now and then, and one at the end.

    Args:
        total: As for `progress_bar`, and so are the others.
        unit: See there.
        label: See there.
        done: See there.
        clock: Seconds, from whenever.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        label: str | None = None,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._unit = unit
        self._label = label or unit
        self._before = done
        self._done = done
        self._clock = clock
        self._began = self._told_at = clock()
        self._notes: dict[str, object] = {}
        self._told: int | None = None

    def update(self, n: int = 1) -> None:
        """Count on, and write a line where the last one is long ago."""
        self._done += n
        if self._clock() - self._told_at >= SECONDS_BETWEEN_LINES:
            self._write()

    def tell(self, **notes: object) -> None:
        """Take in what the next line says besides."""
        self._notes = notes

    def close(self) -> None:
        """Write where it ended."""
        if self._told != self._done:
            self._write()

    def _write(self) -> None:
        self._told, self._told_at = self._done, self._clock()
        share = self._done / self._total if self._total else 1.0
        parts = [f"{self._label} {self._done}/{self._total} ({share:.0%})"]
        seconds, new = self._told_at - self._began, self._done - self._before
        if new:
            each = seconds / new
            parts.append(f"{each:.2g} s each")
            if left := self._total - self._done:
                parts.append(f"{duration(each * left)} left")
        parts += [f"{name} {value}" for name, value in self._notes.items()]
        print(", ".join(parts), file=sys.stderr, flush=True)  # noqa: T201 - words of ours alone


def duration(seconds: float) -> str:
    """Write a time as people say it: 40 s, 12 min, 3 h 05 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
