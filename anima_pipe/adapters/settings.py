"""Settings by name, as Kohya's network_args give them: values or text -> dataclass fields."""

from __future__ import annotations

import ast
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from anima_pipe.errors import ConfigError, did_you_mean
from anima_pipe.runtime import finite_number

Settings = TypeVar("Settings")

_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "y", "on"), True),
    **dict.fromkeys(("0", "false", "no", "n", "off"), False),
}


SAID_BY_THE_CALLER = {"rank": "network_dim", "dim": "network_dim", "alpha": "network_alpha"}
"""What is no setting by name, and the argument that says it."""


def check_names(given: Iterable[str], classes: Collection[type], kind: str) -> None:
    """Check that every setting given is a field of one of these dataclasses.

    Raises:
        ConfigError: It names the unknown setting, the nearest known one and all of them.
    """
    names = {name for each in classes for name in field_types(each)}
    known = sorted(names - SAID_BY_THE_CALLER.keys())
    for name in given:
        if name not in known:
            own = SAID_BY_THE_CALLER.get(name)
            hint = f"set {own} instead. " if own else did_you_mean(name, known)
            raise ConfigError(
                f"adapter kind {kind!r} has no setting {name!r}",
                f"{hint}The settings are {', '.join(known)}",
            )


def fill(settings: type[Settings], values: Mapping[str, object]) -> Settings:
    """Return settings with the values that are meant for them, in the types of their fields.

    Raises:
        ConfigError: A value is not of its field's type.
    """
    kinds = field_types(settings)
    return settings(
        **{
            name: _converted(name, value, kinds[name])
            for name, value in values.items()
            if name in kinds
        }
    )


def field_types(settings: type) -> dict[str, Any]:
    """Return the type of every field of a dataclass of settings."""
    hints = get_type_hints(settings)
    return {field.name: hints[field.name] for field in fields(settings)}


def _converted(name: str, value: object, hint: Any) -> object:
    """Return one value in the type of its field."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    kind = get_origin(hint) or hint
    try:
        if kind is bool:
            return _WORDS[str(value).lower()]
        return _READERS[kind](value) if kind in _READERS else kind(value)
    except (KeyError, TypeError, ValueError) as error:
        wanted = {bool: "true or false", tuple: "a pattern or a list of patterns"}
        raise ConfigError(
            f"{name} is {value!r}",
            f"give it {wanted.get(kind, f'a value of type {kind.__name__}')}",
        ) from error


def _texts(value: object) -> tuple[str, ...]:
    """Return patterns from a list, the text of a Python list, or one pattern alone."""
    if isinstance(value, str):
        listed = _python_list(value)
        value = [value] if listed is None else listed
    items: list[object] = list(value) if isinstance(value, list | tuple) else [value]
    texts = tuple(item for item in items if isinstance(item, str))
    if len(texts) != len(items):
        raise TypeError("not a list of texts")
    return texts


def _whole_number(value: Any) -> int:
    """Return a whole number; of a number with a fraction, int would drop it."""
    if isinstance(value, float) and not value.is_integer():
        raise ValueError("not a whole number")
    return int(value)


_READERS: dict[Any, Callable[[Any], object]] = {
    tuple: _texts,
    int: _whole_number,
    float: lambda value: finite_number(str(value)),
}


def _python_list(text: str) -> list[object] | None:
    """Return the list that a text writes, or None; a pattern may begin with a bracket too."""
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return None
    return value if isinstance(value, list) else None
