"""What was written for an option, checked and turned into a value."""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeGuard, cast

from anima_pipe.errors import did_you_mean
from anima_pipe.kohya.config_file import LARGEST_NUMBER
from anima_pipe.kohya.rows import Kind, Option
from anima_pipe.shards.addresses import is_address


class UnfitValueError(ValueError):
    """A value that an option does not take: what is wrong with it, and what to write instead."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy


def is_blank(given: object) -> bool:
    """Return whether something written means "not set": nothing, an empty text or list."""
    return given is None or (isinstance(given, str | list | tuple) and len(given) == 0)


def is_harmless(option: Option, value: object) -> bool:
    """Return whether a value is what holds anyway, or another way to say "off"."""
    harmless = (option.default, *option.asks_nothing)
    elements = cast("list[object]", value) if isinstance(value, list | tuple) else [value]
    return all(
        element in harmless or (isinstance(element, str) and literal(element) in harmless)
        for element in elements
    )


def read_value(option: Option, given: object, *, typed: bool) -> object:
    """Return the value of an option.

    Args:
        option: The row of the table.
        given: What was written.
        typed: Whether the source has types of its own, as TOML does: then a number in quotes is
            a mistake. On the command line everything is text.

    Returns:
        str, Path, bool, int or float by the option's kind; (width, height) for a size; a tuple of
        str for a list; a dict for a list of key=value.

    Raises:
        UnfitValueError: It is of the wrong type, out of range or not among the choices.
    """
    value = _READERS[option.kind](given if typed else _from_text(option.kind, given))
    if isinstance(value, str) and option.choices:
        return _choice(option, value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        _check_range(option, value)
    return value


def key_values(items: Iterable[str]) -> dict[str, object]:
    """Return a list of key=value as a dict, the values as Python would read them.

    Numbers, tuples, lists, None and quoted texts become what they say; true and false in any case
    become bools; everything else stays text.

    Raises:
        UnfitValueError: An item has no key, or a key stands twice.
    """
    result: dict[str, object] = {}
    for item in items:
        key, equals, written = item.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UnfitValueError(f"{item!r} is not of the form key=value", "write key=value")
        if key in result:
            raise UnfitValueError(f"{key} stands twice", "keep one of the two")
        result[key] = literal(written.strip())
    return result


def literal(written: str) -> object:
    """Return what Python reads in a text, or the text itself where it reads nothing."""
    if written.lower() in ("true", "false"):
        return written.lower() == "true"
    try:
        value = ast.literal_eval(written)
        return written if isinstance(value, int) and abs(value) >= LARGEST_NUMBER else value
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return written


def _choice(option: Option, value: str) -> str:
    value = option.same_as.get(value, value)
    if value in option.choices:
        return value
    if stand_in := option.stand_ins.get(value):
        return stand_in.choice
    words = option.words_of_unknown.format(value)
    if reason := option.refused_values.get(value):
        refused = f"{words}; {reason.why}" if words else f"{value!r} is refused: {reason.why}"
        raise UnfitValueError(refused, reason.instead)
    hint = did_you_mean(value, (*option.choices, *option.same_as))
    listed = f"use one of {', '.join(option.choices)}"
    raise UnfitValueError(words or f"{value!r} is unknown", hint + listed)


def _check_range(option: Option, value: float) -> None:
    low, high = option.minimum, option.maximum
    if low is not None and value < low:
        limits = f"from {low:g} to {high:g}" if high is not None else f"of at least {low:g}"
        raise UnfitValueError(f"{value:g} is too small", f"use a number {limits}")
    if high is not None and value > high:
        limits = f"from {low:g} to {high:g}" if low is not None else f"of at most {high:g}"
        raise UnfitValueError(f"{value:g} is too large", f"use a number {limits}")


def _from_text(kind: Kind, given: object) -> object:
    """Return a value from the command line as TOML would have typed it."""
    if not isinstance(given, str):
        return list(given) if isinstance(given, tuple) else given
    if kind in (Kind.TEXTS, Kind.PAIRS):
        return [given]
    if kind in (Kind.INTEGER, Kind.NUMBER, Kind.COUNT_OR_SHARE, Kind.FLAG):
        return _number_or_flag(given.strip())
    return given


def _number_or_flag(written: str) -> object:
    if written.lower() in ("true", "false"):
        return written.lower() == "true"
    for read in (int, float):
        try:
            number = read(written)
        except ValueError:
            continue
        # A whole number that is no float either is nobody's.
        return number if abs(number) < LARGEST_NUMBER or isinstance(number, float) else written
    return written


def _read_text(given: object) -> str:
    if not isinstance(given, str):
        raise UnfitValueError(f"{_shown(given)} is not a text", "put it in quotes")
    return given


def _read_path(given: object) -> Path:
    if not isinstance(given, str | Path):
        raise UnfitValueError(f"{_shown(given)} is not a path", "give a path, in quotes")
    return Path(given).expanduser()


def _read_place(given: object) -> Path | str:
    path = _read_path(given)
    return given if isinstance(given, str) and is_address(given) else path


def _read_flag(given: object) -> bool:
    if not isinstance(given, bool):
        raise UnfitValueError(
            f"{_shown(given)} is neither true nor false", "write true or false, without quotes"
        )
    return given


def _read_integer(given: object) -> int:
    if not isinstance(given, int) or isinstance(given, bool):
        raise UnfitValueError(
            f"{_shown(given)} is not a whole number", "write a whole number, without quotes"
        )
    return given


def is_number(given: object) -> TypeGuard[float]:
    """Return whether something written is a finite number."""
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def _read_number(given: object) -> float:
    if not is_number(given):
        raise UnfitValueError(f"{_shown(given)} is not a number", "write a number, without quotes")
    return float(given)


def _read_count_or_share(given: object) -> int | float:
    if isinstance(given, str) and given.rstrip().endswith("%"):
        return _read_percentage(given)
    number = _read_number(given)
    if number >= 1 and not number.is_integer():
        raise UnfitValueError(
            f"{number:g} is neither a whole number nor a share",
            "write a whole number of steps, or a share of the run below 1",
        )
    return number if isinstance(given, float) and number < 1 else int(number)


def _read_percentage(given: str) -> float:
    """Return "10%" as the share 0.1."""
    share = _number_or_flag(given.rstrip().removesuffix("%").strip())
    if not is_number(share) or not 0 <= share < 100:
        raise UnfitValueError(
            f"{given!r} is no percentage of a run", "write a percentage below 100, such as 10%"
        )
    return share / 100


def _read_size(given: object) -> tuple[int, int]:
    sides: object = given
    if isinstance(given, str):
        sides = [_number_or_flag(side.strip()) for side in given.split(",")]
    match sides:
        case [int(width), int(height)] | (int(width), int(height)):
            pass
        case [int(width)] | int(width):
            height = width
        case _:
            width = height = 0
    if min(width, height) < 1 or isinstance(width, bool) or isinstance(height, bool):
        raise UnfitValueError(f"{_shown(given)} is not a size", "write it as 1024 or 832,1216")
    return width, height


def _read_range(given: object) -> tuple[float, float]:
    ends: object = given
    if isinstance(given, str):
        ends = [_number_or_flag(end.strip()) for end in given.split(",")]
    match ends:
        case [low, high] if is_number(low) and is_number(high) and 0 < low <= high:
            return float(low), float(high)
        case _:
            raise UnfitValueError(f"{_shown(given)} is not a range", "write it as 2.0,4.0")


def _read_texts(given: object) -> tuple[str, ...]:
    items = cast("list[object]", given) if isinstance(given, list) else [given]
    return tuple(str(item) for item in items)


def _read_pairs(given: object) -> dict[str, object]:
    items = cast("list[object]", given) if isinstance(given, list) else [None]
    written = [item for item in items if isinstance(item, str)]
    if len(written) != len(items):
        raise UnfitValueError(
            f"{_shown(given)} is not a list of texts",
            'write a list such as ["weight_decay=0.01", "eps=1e-8"]',
        )
    return key_values(written)


def _read_table(given: object) -> dict[str, object]:
    if not isinstance(given, dict):
        raise UnfitValueError(f"{_shown(given)} is not a table", "write { key = value }")
    return cast("dict[str, object]", given)


def _shown(given: object) -> str:
    return str(given).lower() if isinstance(given, bool) else repr(given)


_READERS: Final[Mapping[Kind, Callable[[object], object]]] = {
    Kind.TEXT: _read_text,
    Kind.PATH: _read_path,
    Kind.PLACE: _read_place,
    Kind.FLAG: _read_flag,
    Kind.INTEGER: _read_integer,
    Kind.NUMBER: _read_number,
    Kind.COUNT_OR_SHARE: _read_count_or_share,
    Kind.SIZE: _read_size,
    Kind.RANGE: _read_range,
    Kind.TEXTS: _read_texts,
    Kind.PAIRS: _read_pairs,
    Kind.TABLE: _read_table,
}
