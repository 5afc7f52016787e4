r"""Texts that everything takes: terminals, logs, files in UTF-8, and other programs' readers.

The name of a file may be any bytes, and holds whatever signs somebody gave it. Python has halves of
characters for bytes that are not UTF-8, which nothing can write; a line end in a name begins a line
that looks like one of ours. Both are spelled as Python would: `\x8f`, `\n`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

_HALVES: Final = re.compile("[\ud800-\udfff]")
_UNSEEN: Final = re.compile(
    # Controls; ends of lines and paragraphs; what turns the direction of all that follows.
    "[\0-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
_BYTES: Final = range(0xDC80, 0xDD00)
"""Python's halves for the bytes 0x80 to 0xff of names that are not UTF-8."""
_SHORT: Final = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}


def in_utf8(text: str) -> str:
    """Return a text as UTF-8 can hold it, with halves of characters spelled.

    They come of names of files that are not UTF-8, and of JSON with escapes.
    """
    return _HALVES.sub(lambda half: _spelled(half[0]), text)


def on_one_line(text: str) -> str:
    """Return a text as one line of a terminal: nothing in it begins another or steers it."""
    return _UNSEEN.sub(lambda sign: _spelled(sign[0]), text)


def json_text(value: object, *, indent: int | None = None) -> str:
    """Return a value as JSON that every reader takes; what JSON knows nothing of, as a text."""
    text = json.dumps(value, indent=indent, default=str, ensure_ascii=False)
    # Halves stand in strings alone, where a backslash is written as two.
    return _HALVES.sub(lambda half: f"\\{_spelled(half[0])}", text)


def parsed_json(
    text: str | bytes, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Return what a JSON text says.

    Args:
        text: In UTF-8 where it is bytes.
        object_pairs_hook: What makes the value of an object; None: a dict.

    Raises:
        ValueError: It is no JSON, or nothing that Python can hold: nested without end, for one.
    """
    try:
        return json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def paragraphs(groups: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of several groups, and an empty one between each two."""
    for number, lines in enumerate(groups):
        if number:
            yield ""
        yield from lines


def _spelled(sign: str) -> str:
    if sign in _SHORT:
        return _SHORT[sign]
    number = ord(sign)
    if number in _BYTES:
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"
