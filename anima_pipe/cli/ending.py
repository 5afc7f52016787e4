"""How every command ends: its exit code, and what is wrong in two lines."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Final

from anima_pipe.cli.typed import hide_typed_secrets
from anima_pipe.errors import PipeError
from anima_pipe.runs.interrupts import Terminated, terminations_raised
from anima_pipe.runtime import setup_messages, tell_error
from anima_pipe.secrecy import redacted

INTERRUPTED: Final = 130
"""Exit code of what Ctrl-C ended, as shells have it."""

TERMINATED: Final = 143
"""The same for SIGTERM."""


def ending_of(work: Callable[[], int], *, debug: bool = False) -> int:
    """Do a command's work; return its exit code, or that of the error it ended with.

    Args:
        work: Returns the exit code.
        debug: Show an error's traceback too.
    """
    hide_typed_secrets()
    setup_messages(verbose=debug)
    try:
        with terminations_raised():
            return work()
    except PipeError as error:
        if debug:
            tell_error(*redacted(traceback.format_exc()).rstrip().split("\n"))
        first, *others = error.lines()
        tell_error(f"error: {first}", *others)
        return error.exit_code
    except Terminated:
        tell_error("terminated")
        return TERMINATED
    except KeyboardInterrupt:
        tell_error("interrupted")
        return INTERRUPTED
