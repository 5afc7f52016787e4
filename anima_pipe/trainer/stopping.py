"""Asking a run to end before its planned end."""

from __future__ import annotations


class StopRequest:
    """Asks a run to end after the next step, on all processes and with its state saved.

    A signal, an alarm, a hook or data that cannot be read makes it on one process. The loop checks
    it before each step and sends it to the others with the step's measures, so that all end
    together: one that ended at once would leave the others waiting for it. It is of one run: once
    made, it stays made.
    """

    def __init__(self) -> None:
        self._is_asked = False
        self._error: Exception | None = None

    @property
    def is_made(self) -> bool:
        """Whether the run is to end."""
        return self._is_asked or self._error is not None

    def ask(self) -> None:
        """Ask the run to end in order."""
        self._is_asked = True

    def end_with(self, error: Exception) -> None:
        """Ask the run to end, and then to raise an error; of several errors, the first counts."""
        self._error = self._error or error

    def raise_error(self) -> None:
        """Raise the error that the run is to end with, if there is one."""
        if self._error is not None:
            raise self._error
