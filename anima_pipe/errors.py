"""The errors that a user can mend."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence

from anima_pipe.plain_text import on_one_line
from anima_pipe.secrecy import redacted


class PipeError(Exception):
    """Something a user can mend: what is wrong, where, and what to do about it.

    The command line prints it in two lines and exits with code 2. Programming mistakes are not
    PipeErrors; they keep their traceback. What is secret in the texts is left out of them.

    Args:
        problem: One sentence with the offending value and its place (file, key, line).
        remedy: One sentence that says what to do.
        parts: What the problem is made of, where it ends in a colon, each with its own remedy.
    """

    exit_code = 2

    def __init__(self, problem: str, remedy: str, parts: Sequence[tuple[str, str]] = ()) -> None:
        problem, remedy = redacted(problem), redacted(remedy)
        parts = tuple((redacted(part), redacted(its_remedy)) for part, its_remedy in parts)
        super().__init__(problem, remedy, parts)
        self.problem = problem
        self.remedy = remedy
        self.parts = parts

    def __str__(self) -> str:
        return "\n".join(map(on_one_line, self.lines()))

    def lines(self) -> Iterator[str]:
        """Yield what is shown of it, line by line."""
        yield self.problem
        for problem, remedy in self.parts:
            yield f"  {problem}"
            yield f"    Fix: {remedy}"
        yield f"  Fix: {self.remedy}"


class ConfigError(PipeError):
    """An option, a key of a config file or a pair of them cannot be honoured."""


class CheckpointError(PipeError):
    """A file of weights is not what it should be: wrong model, missing tensors, truncated."""


class DataError(PipeError):
    """An image, a caption or a folder of them cannot be used."""


class CacheError(PipeError):
    """A cache is missing something, was made with something else, or is damaged."""


class OutputError(PipeError):
    """Something cannot be written: no permission, no room, not a folder."""


class FetchError(PipeError):
    """A file could not be had from any of its sources, each of which is named with its cause."""


def check_number(name: str, value: float | None, *, least: float, most: float = math.inf) -> None:
    """Check the number of a setting; None, for none, is right.

    Args:
        name: Of the setting.
        value: What it is.
        least: No less than this.
        most: No more than this.

    Raises:
        ConfigError: It is not within these, or not finite.
    """
    # A comparison with NaN is false; whole numbers may be larger than any float.
    if value is None or (least <= value <= most and value != math.inf):
        return
    limits = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
    raise ConfigError(f"{name} is {value}", f"set it to a number {limits}")


def check_above_zero(name: str, value: float | None) -> None:
    """Check the number of a setting that cannot be 0; None, for none, is right.

    Raises:
        ConfigError: It is 0 or below, or not finite.
    """
    if value is not None and not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value}", "set it to a number above 0, or to None for none")


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Check a setting that is one of several words.

    Raises:
        ConfigError: It is none of them.
    """
    words = tuple(known)
    if value not in words:
        hint = did_you_mean(value, words)
        raise ConfigError(f"{name} is {value!r}", f"{hint}use one of {', '.join(words)}")


def did_you_mean(wrong: str, names: Iterable[str]) -> str:
    """Return "did you mean NAME? " for the name that a misspelt one is nearest to, in any case.

    Where no name is near, the text is empty: it begins a remedy that lists them.
    """
    spelt = {name.lower(): name for name in names}
    near = difflib.get_close_matches(wrong.lower(), list(spelt), n=1)
    return f"did you mean {spelt[near[0]]}? " if near else ""
