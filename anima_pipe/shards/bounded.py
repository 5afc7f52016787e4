"""The end of transfers that bring more than was promised: a server may send without end.

Imported with the first transfer, for it imports fsspec.
"""

from __future__ import annotations

from fsspec.callbacks import Callback


class TooManyBytesError(Exception):
    """A transfer goes on behind its promised end."""


class Bounded(Callback):
    """What fsspec tells of a transfer; ends it.

    Args:
        most: Bytes that may come.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def set_size(self, size: int | None) -> None:
        """Hear how many bytes are announced; file systems that try again begin with this."""
        self.value = 0
        super().set_size(size)
        if size is not None:
            self._check(size)

    def relative_update(self, inc: int = 1) -> None:
        """Hear that so many bytes more have come."""
        super().relative_update(inc)
        self._check(self.value)

    def absolute_update(self, value: int) -> None:
        """Hear how many bytes have come in all."""
        super().absolute_update(value)
        self._check(value)

    def _check(self, size: int) -> None:
        if size > self._most:
            raise TooManyBytesError
