"""Arguments that users give to classes of other packages, checked before these see them.

What Python says of an argument that does not fit is about the package's code, not the user's text.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, cast

from anima_pipe.errors import ConfigError, did_you_mean

_BY_NAME: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def check_arguments(
    problem: str, build: Callable[..., object], given: Mapping[str, object], ours: Collection[str]
) -> None:
    """Check that a class or function takes these arguments, by their names and kinds.

    Args:
        problem: What it is that does not fit, such as "optimizer_args do not fit AdamW".
        build: The class or function.
        given: Arguments by name.
        ours: Names that are set for the user and are not in `given`.

    Raises:
        ConfigError: It takes no argument of a name, lacks one, or takes another kind of value.
    """
    parameters = inspect.signature(build).parameters
    known = [name for name, p in parameters.items() if p.kind in _BY_NAME and name not in ours]
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for name, value in given.items():
        if name in ours:
            raise ConfigError(f"{problem}: {name} is set by other options", f"remove {name}")
        if name in known:
            _check_value(problem, name, value, parameters[name].default)
        elif not takes_any:
            raise ConfigError(
                f"{problem}: there is no argument {name}",
                f"{did_you_mean(name, known)}it takes {', '.join(known)}",
            )
    required = [name for name in known if parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in required if name not in given]:
        raise ConfigError(f"{problem}: {missing[0]} is missing", f"add {missing[0]}=...")


def unfit(problem: str, given: Mapping[str, object], error: Exception) -> str:
    """Return what is wrong with arguments that passed and were still refused.

    A ValueError is what the package's author has to say of a value. A TypeError is Python's.
    """
    said = str(error) if isinstance(error, ValueError) else ""
    return f"{problem}: {said or ' '.join(f'{name}={value}' for name, value in given.items())}"


def _check_value(problem: str, name: str, value: object, default: Any) -> None:
    """Check a value by the default that it replaces; where that says nothing, let it pass."""
    wanted = ""
    if isinstance(default, bool):
        wanted = "" if value in (True, False) else "true or false"
    elif isinstance(default, int | float):
        wanted = "" if _is_number(value) else f"a number, such as {default:g}"
    elif isinstance(default, tuple):
        numbers = cast("tuple[object, ...]", default)
        example = f"({','.join(map(str, numbers))})"
        wanted = "" if _is_like(value, numbers) else f"{len(numbers)} numbers, such as {example}"
    if wanted and value is not None:
        raise ConfigError(f"{problem}: {name} is {value!r}", f"give {name} {wanted}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_like(value: object, numbers: Collection[object]) -> bool:
    values = cast("Collection[object]", value) if isinstance(value, tuple | list) else ()
    return len(values) == len(numbers) and all(map(_is_number, values))
