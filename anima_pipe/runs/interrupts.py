"""Ctrl-C and SIGTERM: they end a command in order, and training only after the step in progress."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

from anima_pipe.runtime import say


class Terminated(KeyboardInterrupt):
    """SIGTERM, from `kill`, a container that is stopped or a cluster's scheduler."""


@contextmanager
def terminations_raised() -> Generator[None]:
    """Make SIGTERM end the work in here as Ctrl-C does: in order, with helpers and files put away.

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


class StopRequest:
    """Whether the user, or the machine, asked the run to stop."""

    def __init__(self) -> None:
        self.made = False

    def __call__(self) -> bool:
        """Tell whether it was made."""
        return self.made


@contextmanager
def stop_request() -> Generator[StopRequest]:
    """Take the first Ctrl-C or SIGTERM as a request; a second one of its kind acts at once.

    One of the other kind does not: `accelerate launch` sends SIGTERM behind the user's Ctrl-C.
    """
    request = StopRequest()
    before = {int(n): signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, _frame: FrameType | None) -> None:
        request.made = True
        signal.signal(number, before[number])
        say("stopping after this step; once more to stop at once, without saving")

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
