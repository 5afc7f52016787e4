"""Secrets that were typed: out of what other programs read of this process's command line.

Everybody on a machine reads command lines (`ps`), and Weights & Biases logs `sys.argv`. A stage
that another command starts gets such values through its environment, which only its user reads.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from anima_pipe.secrecy import SECRET_OPTIONS, keep_secret, redacted, secrets_in

HANDED_OVER: Final = "ANIMA_PIPE_HANDED_OVER"
"""The environment's variable of options that are not to stand on a command line, in JSON."""

_ARG_START, _ARG_END = 48, 49
"""Columns of /proc/PID/stat, counted from 1: where in its memory a process has its command line."""


def hide_typed_secrets() -> None:
    """Keep what is secret on this process's command line from whoever looks at processes."""
    typed = {secret for secret in _secrets_among(sys.argv) if secret}
    for secret in typed:
        keep_secret(secret)
    sys.argv[:] = [_without(argument, typed) for argument in sys.argv]
    if typed and sys.platform == "linux":
        with suppress(OSError, ValueError, IndexError):
            _overwrite_command_line(typed)


def is_secret(name: str, value: object) -> bool:
    """Tell whether an option's value is not to stand on a command line."""
    return name in SECRET_OPTIONS or (isinstance(value, str) and redacted(value) != value)


def handing_over(given: Mapping[str, object]) -> dict[str, str]:
    """Return the environment by which a command gets what its command line must not hold."""
    return {HANDED_OVER: json.dumps(dict(given))} if given else {}


def handed_over() -> dict[str, object]:
    """Take the options that another command handed over to this one; its own children get none."""
    return json.loads(os.environ.pop(HANDED_OVER, "{}"))


def _secrets_among(arguments: Sequence[str]) -> Iterator[str]:
    for argument, following in zip(arguments, [*arguments[1:], ""], strict=True):
        yield from secrets_in(argument)
        name, equals, value = argument.partition("=")
        if name.removeprefix("--").replace("-", "_") in SECRET_OPTIONS:
            yield value if equals else following


def _without(argument: str, secrets: set[str]) -> str:
    for secret in sorted(secrets, key=len, reverse=True):
        argument = argument.replace(secret, "*" * len(secret))
    return argument


def _overwrite_command_line(secrets: set[str]) -> None:
    """Write over secrets where the system shows them, byte by byte, so that nothing moves."""
    # The second column, a name in parentheses, may hold spaces.
    columns = Path("/proc/self/stat").read_text(encoding="latin-1").rpartition(")")[2].split()
    start, end = (int(columns[column - 3]) for column in (_ARG_START, _ARG_END))
    with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
        memory.seek(start)
        shown = memory.read(end - start)
        for secret in map(os.fsencode, secrets):
            shown = shown.replace(secret, b"*" * len(secret))
        memory.seek(start)
        memory.write(shown)
