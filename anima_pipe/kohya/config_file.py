"""Config files with the line that each key stands on, which tomllib does not tell."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast

from anima_pipe.errors import ConfigError
from anima_pipe.files import read_small

MOST_NESTED: Final = 64
"""Tables and lists within each other, and parts of a dotted key."""

LARGEST_NUMBER: Final = 2**63
"""TOML's own: whole numbers are smaller."""

KeyPath = tuple[str | int, ...]
"""Keys from the top; whole numbers count the elements of arrays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFile:
    """A parsed file."""

    path: Path
    table: dict[str, Any]
    lines: Mapping[KeyPath, int]

    def place(self, key_path: KeyPath) -> str:
        """Return "file line N" of a key, or of the innermost table around it that has a line."""
        for length in range(len(key_path), 0, -1):
            if line := self.lines.get(key_path[:length]):
                return f"{self.path.name} line {line}"
        return self.path.name


def read_toml(path: Path) -> ConfigFile:
    """Read a TOML file.

    Raises:
        ConfigError: There is no such file, or it is not TOML in UTF-8.
    """
    text = read_text(path)
    _refuse_long_keys(text, path)
    try:
        table = tomllib.loads(text)
        lines = key_lines(text)
    except RecursionError as error:
        raise _too_deep(path) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}", _syntax_remedy(str(error))) from error
    except ValueError as error:
        raise _endless_number(path) from error
    _refuse_absurd(table, path)
    return ConfigFile(path=path, table=table, lines=lines)


def read_json(path: Path) -> ConfigFile:
    """Read a JSON file whose top is an object; its keys have no lines.

    Raises:
        ConfigError: There is no such file, or it is no JSON object in UTF-8.
    """
    table = parsed_json(read_text(path), path)
    if not isinstance(table, dict):
        raise ConfigError(f"{path} is not a JSON object", "write its keys between { and }")
    return ConfigFile(path=path, table=cast("dict[str, Any]", table), lines={})


def parsed_json(text: str, path: Path) -> object:
    """Return what the text of a JSON file says.

    Raises:
        ConfigError: It is not JSON, or has values that nobody means.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise _too_deep(path) from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}", "correct that place") from error
    except ValueError as error:
        raise _endless_number(path) from error
    _refuse_absurd(value, path)
    return value


def _refuse_long_keys(text: str, path: Path) -> None:
    """Check that no dotted key has so many parts that reading it would take hours.

    Raises:
        ConfigError: One has.
    """
    if found := _LONG_KEY.search(_QUOTED.sub('""', text)):
        raise ConfigError(
            f"{path} has a key of more than {MOST_NESTED} parts: {found[0][:40]}...",
            "correct that key",
        )


def _refuse_absurd(value: object, path: Path) -> None:
    """Check values before they are used: no recursion, and no number that is no float either.

    Raises:
        ConfigError: Something is nested without end, or a number has hundreds of digits.
    """
    waiting = [(value, 0)]
    while waiting:
        inner, depth = waiting.pop()
        if depth > MOST_NESTED:
            raise _too_deep(path)
        if isinstance(inner, int) and abs(inner) >= LARGEST_NUMBER:
            raise _endless_number(path)
        if isinstance(inner, dict | list):
            several = cast("dict[str, object] | list[object]", inner)
            parts = several.values() if isinstance(several, dict) else several
            waiting += ((part, depth + 1) for part in parts)


def _endless_number(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} has a whole number of more than 18 digits, which nothing here takes",
        "correct that number",
    )


def _too_deep(path: Path) -> ConfigError:
    return ConfigError(
        f"{path} is nested more than {MOST_NESTED} deep",
        "correct its brackets, or the path",
    )


def read_text(path: Path) -> str:
    """Return the text of a file, without a byte order mark.

    Raises:
        ConfigError: It is not there, cannot be read, or is not UTF-8.
    """
    try:
        # A byte order mark is what Windows' own editor writes.
        text = read_small(path).decode("utf-8-sig")
    except OSError as error:
        problem = f"cannot read {path}: {error.strerror or error}"
        raise ConfigError(problem, "correct the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", "save it as UTF-8") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _syntax_remedy(message: str) -> str:
    if "escape" in message.lower() or "hex" in message.lower():
        return "write Windows paths in single quotes, or with forward slashes"
    return "correct that line; texts stand in quotes, and true and false are lower case"


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, counted from 1, of every table and key of a valid TOML text."""
    return dict(_Scanner(text.replace("\r\n", "\n")).key_lines())


_BLANK: Final = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_KEY: Final = re.compile(
    r"""[ \t]*((?:"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)
        (?:[ \t]*\.[ \t]*(?:"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+))*)[ \t]*""",
    re.VERBOSE,
)
_KEY_PART: Final = re.compile(r""""(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+""")
_SCALAR: Final = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}(?!")|\'{3}.*?\'{3,5}(?!\')'''
    r"""|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|[^,\]}#\n]+""",
    re.DOTALL,
)


_QUOTED: Final = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}(?!")|\'{3}.*?\'{3,5}(?!\')'''
    r"""|"(?:\\.|[^"\\\n])*"|'[^'\n]*'|#[^\n]*""",
    re.DOTALL,
)
_LONG_KEY: Final = re.compile(
    rf"""(?:[A-Za-z0-9_-]+|"")(?:[ \t]*\.[ \t]*(?:[A-Za-z0-9_-]+|"")){{{MOST_NESTED}}}"""
)


@dataclass(slots=True)
class _Scanner:
    """Walks over a valid TOML text; `at` is the offset of what comes next."""

    text: str
    at: int = 0
    lines_counted: tuple[int, int] = (0, 1)
    """An offset, and the line that it is on."""
    array_lengths: dict[KeyPath, int] = field(default_factory=dict[KeyPath, int])

    def key_lines(self) -> Iterator[tuple[KeyPath, int]]:
        """Yield each table's and each key's path and line."""
        table: KeyPath = ()
        self.skip(_BLANK)
        while self.at < len(self.text):
            line = self.line()
            if self.text[self.at] == "[":
                table = self.header()
                yield table, line
            else:
                yield from self.assignment(table)
            self.skip(_BLANK)

    def header(self) -> KeyPath:
        """Pass over [a.b] or [[a.b]]; return its path, elements of arrays counted."""
        brackets = 2 if self.text.startswith("[[", self.at) else 1
        self.at += brackets
        keys = self.keys()
        self.at += brackets
        path: KeyPath = ()
        for key in keys[:-1]:
            path = self.last_element((*path, key))
        path = (*path, keys[-1])
        if brackets == 1:
            return path
        self.array_lengths[path] = self.array_lengths.get(path, 0) + 1
        return self.last_element(path)

    def last_element(self, path: KeyPath) -> KeyPath:
        """Return the path of an array's last element so far, or of what is no array itself."""
        length = self.array_lengths.get(path)
        return path if length is None else (*path, length - 1)

    def assignment(self, table: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        """Pass over `key = value`; yield the key and the keys within the value."""
        line = self.line()
        path = (*table, *self.keys())
        yield path, line
        self.at += 1  # the equals sign
        yield from self.value(path)

    def value(self, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
        """Pass over a value; yield the keys within it."""
        self.skip(_BLANK)
        opening = self.text[self.at]
        if opening not in "[{":
            self.skip(_SCALAR)
            return
        self.at += 1
        for number in range(len(self.text)):
            self.skip(_BLANK)
            if self.text[self.at] in "]}":
                break
            if opening == "[":
                yield (*path, number), self.line()
                yield from self.value((*path, number))
            else:
                yield from self.assignment(path)
            self.skip(_BLANK)
            self.at += self.text[self.at] == ","
        self.at += 1

    def keys(self) -> list[str]:
        """Pass over a dotted key; return its parts."""
        match = _KEY.match(self.text, self.at)
        assert match, "the text was valid TOML"
        self.at = match.end()
        parts = _KEY_PART.findall(match[1])
        return [_unquoted(part) for part in parts]

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Pass over what the pattern matches."""
        match = pattern.match(self.text, self.at)
        assert match, "the text was valid TOML"
        self.at = match.end()

    def line(self) -> int:
        """Return the line of what comes next, counted from 1."""
        offset, line = self.lines_counted
        self.lines_counted = self.at, line + self.text.count("\n", offset, self.at)
        return self.lines_counted[1]


def _unquoted(part: str) -> str:
    return tomllib.loads(f"key = {part}")["key"] if part[0] in "\"'" else part
