r"""Prompts as ComfyUI reads them: `\(` and `\)` are parentheses, bare ones give tokens a weight.

What `(x)` encloses weighs 1.1 times what is around it, what `(x:1.2)` encloses weighs 1.2, wherever
it stands. Each stretch of one weight is tokenised by itself. Square brackets mean nothing there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
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
    """Yield the texts that no parentheses part, each with its weight.

    Every letter is looked at a few times, however deep the parentheses are nested.
    """
    closing = _closing_places(marked)
    # A stack, because prompts may be nested deeper than Python's calls.
    levels = [(_outermost(marked, 0, len(marked), closing), 1.0)]
    while levels:
        parts, weight = levels[-1]
        part = next(parts, None)
        if part is None:
            levels.pop()
            continue
        start, end = part
        if end - start > 1 and marked[start] == "(" and marked[end - 1] == ")":
            inner_end, own = _weighted(marked, start + 1, end - 1, weight)
            levels.append((_outermost(marked, start + 1, inner_end, closing), own))
        else:
            yield marked[start:end], weight


def _closing_places(text: str) -> dict[int, int]:
    """Return where the parentheses are closed, by the places where they are opened."""
    closing: dict[int, int] = {}
    opened: list[int] = []
    for place, letter in enumerate(text):
        if letter == "(":
            opened.append(place)
        elif letter == ")" and opened:
            closing[opened.pop()] = place
    return closing


def _outermost(
    text: str, start: int, end: int, closing: Mapping[int, int]
) -> Iterator[tuple[int, int]]:
    """Yield start and end of the parts of a stretch, what its outermost parentheses enclose apart.

    ComfyUI counts a closing one that nothing opened, so that what follows it is not parted until
    an opening one more than closing ones has come. What is opened and not closed goes to the end.
    """
    place, too_many = start, 0
    while place < end:
        letter = text[place]
        if letter == "(" and not too_many:
            if place > start:
                yield start, place
            start, place = place, closing.get(place, end) + 1
            if place > end:
                break
            yield start, place
            start = place
            continue
        too_many += {")": 1, "(": -1}.get(letter, 0)
        place += 1
    if start < end:
        yield start, end


def _weighted(text: str, start: int, end: int, around: float) -> tuple[int, float]:
    """Return where the text of what is enclosed ends, before its number, and its weight."""
    colon = end - 1
    while colon > start and text[colon] not in "():":
        colon -= 1
    if colon > start and text[colon] == ":":
        with suppress(ValueError):
            weight = float(text[colon + 1 : end])
            if math.isfinite(weight):
                return colon, weight
    return end, around * EMPHASIS
