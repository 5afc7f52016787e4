"""Values as TOML writes them: the few forms that configuration files need."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from anima_pipe.errors import ConfigError
from anima_pipe.plain_text import in_utf8


def toml_value(value: object) -> str:
    """Return a value as it stands behind `key =`.

    Args:
        value: A text, path, bool, number, list or table of such; anything else is written as text.

    Raises:
        ConfigError: A text is not UTF-8, as the name of a file may be.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        # TOML's names of what is no number are Python's; 1e-08 needs no point.
        return repr(value) if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[str, object]", value).items()
        return (
            "{ " + ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in items) + " }"
        )
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        items = cast("Sequence[object]", value)
        return f"[{', '.join(map(toml_value, items))}]"
    return _text(value.as_posix() if isinstance(value, Path) else str(value))


def toml_key(key: str) -> str:
    """Return a key, in quotes where it needs them."""
    plain = key.isascii() and key.replace("_", "a").replace("-", "a").isalnum()
    return key if plain else _text(key)


def toml_lines(table: Mapping[str, object]) -> Iterator[str]:
    """Yield a table's lines, one `key = value` each."""
    for key, value in table.items():
        yield f"{toml_key(key)} = {toml_value(value)}"


def _text(text: str) -> str:
    if in_utf8(text) != text:
        raise ConfigError(
            f"TOML cannot hold {text}, which is not UTF-8",
            "rename it, or give that option on the command line alone",
        )
    # JSON's escapes are TOML's too, but JSON leaves DEL as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
