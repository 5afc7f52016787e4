r"""Prompts as ComfyUI reads them: `\(` and `\)` are parentheses, bare ones give tokens a weight.

What `(x)` encloses weighs 1.1 times what is around it, what `(x:1.2)` encloses weighs 1.2, wherever
it stands. Each stretch of one weight is tokenised by itself. Square brackets mean nothing there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Final

from anima_pipe.records import PreviewPrompt, Text, WeightedText

EMPHASIS: Final = 1.1
"""Factor of the weight of what stands in parentheses without a number."""

# Stand for escaped parentheses; Unicode never assigns these two, so no prompt has them.
_OPENING, _CLOSING = "\ufdd2", "\ufdd3"
_ESCAPED = re.compile(r"\\([()])")
_WEIGHT = re.compile(r"(?<!\\)\([^()]+:\s*[-+]?(?:\d+(?:\.\d*)?|\.\d+)\s*(?<!\\)\)")


def prompt_texts(prompts: Iterable[PreviewPrompt]) -> list[Text]:
    """Return the texts that drawing the prompts needs."""
    return [read_prompt(text) for prompt in prompts for text in (prompt.prompt, prompt.negative)]


def read_prompt(prompt: str) -> Text:
    r"""Return what a prompt asks for.

    Unlike ComfyUI, a number that is not finite is no weight but text: `(x:inf)` draws black there.

    Args:
        prompt: As a user writes it.

    Returns:
        A plain text, as a caption is one, where nothing is weighted; else its stretches.
    """
    marked = prompt.replace(r"\)", _CLOSING).replace(r"\(", _OPENING)
    parts = tuple(
        (text.replace(_OPENING, "(").replace(_CLOSING, ")"), weight)
        for text, weight in _stretches(marked)
    )
    if len(parts) <= 1 and all(weight == 1 for _, weight in parts):
        return "".join(text for text, _ in parts)
    return WeightedText(parts)


def unescaped(text: str) -> str:
    r"""Return a text with `\(` and `\)` as the parentheses that they stand for."""
    return _ESCAPED.sub(r"\1", text)


def escaped(text: str) -> str:
    r"""Return the prompt that is read as a text: with `\(` and `\)` for its parentheses."""
    return text.replace("(", r"\(").replace(")", r"\)")


def has_escapes(text: str) -> bool:
    r"""Tell whether a text has `\(` or `\)` in it."""
    return _ESCAPED.search(text) is not None


def has_weights(text: str) -> bool:
    """Tell whether a text has something like `(x:1.2)` in it, a weight in prompts."""
    return _WEIGHT.search(text) is not None


def half_character(text: str) -> str | None:
    """Return the first lone half of a character, which JSON can say; None: all are whole.

    No tokenizer takes such a text.
    """
    return next((rf"\u{ord(sign):04x}" for sign in text if "\ud800" <= sign <= "\udfff"), None)


def _stretches(marked: str) -> Iterator[tuple[str, float]]:
    """Yield the texts that no parentheses part, each with its weight."""
    # A stack, because prompts may be nested deeper than Python's calls.
    waiting = [(marked, 1.0)]
    while waiting:
        text, weight = waiting.pop()
        parts = list(_outermost(text))
        if parts == [text] and not _is_enclosed(text):
            yield text, weight
            continue
        waiting += [
            _weighted(part[1:-1], weight) if _is_enclosed(part) else (part, weight)
            for part in reversed(parts)
        ]


def _outermost(text: str) -> Iterator[str]:
    """Yield the parts of a text, what its outermost parentheses enclose apart, with these.

    ComfyUI counts a closing one that nothing opened, so that what follows it is not parted until
    an opening one more than closing ones has come.
    """
    start = depth = 0
    for place, letter in enumerate(text):
        if letter == "(":
            if depth == 0 and place > start:
                yield text[start:place]
                start = place
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                yield text[start : place + 1]
                start = place + 1
    if start < len(text):
        yield text[start:]


def _is_enclosed(part: str) -> bool:
    """Tell whether a part stands in parentheses; a lone one encloses nothing."""
    return len(part) > 1 and part[0] == "(" and part[-1] == ")"


def _weighted(inner: str, around: float) -> tuple[str, float]:
    """Return what is enclosed, without its number, and its weight."""
    text, colon, number = inner.rpartition(":")
    try:
        weight = float(number) if colon and text else math.nan
    except ValueError:
        weight = math.nan
    return (text, weight) if math.isfinite(weight) else (inner, around * EMPHASIS)
