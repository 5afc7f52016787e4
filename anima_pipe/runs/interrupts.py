"""Ctrl-C and SIGTERM: they end a command in order, and training only after the step in progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from anima_pipe.runtime import say

if TYPE_CHECKING:
    from anima_pipe.trainer import StopRequest


class Terminated(KeyboardInterrupt):
    """SIGTERM, from `kill`, a container that is stopped or a cluster's scheduler."""


@contextmanager
def terminations_raised() -> Generator[None]:
    """Make SIGTERM act as Ctrl-C does: worker processes end, unfinished files are removed.

    Raises:
        Terminated: It came.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stopped_by_signals(stop: StopRequest) -> Generator[None]:
    """Make the first Ctrl-C or SIGTERM a request to stop; a second of the same signal acts at once.

    One of the other signal does not: `accelerate launch` sends SIGTERM after the user's Ctrl-C.

    Outside the main thread, which gets no signals, this does nothing.

    Args:
        stop: Made when one of them comes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {int(n): signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.ask()
        signal.signal(number, before[number])
        say("stopping after this step; once more to stop at once, without saving")

    for number in before:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
