"""Captions in JSON, by category, as tools for Anima's tags write them.

quality, count, character, series and artist stand first and stay in place; the tags of appearance,
tags and environment are shuffled and dropped within their category; nl, a sentence, comes last:

    {"quality": "newest", "count": "1girl", "artist": "@name", "tags": ["smile"], "nl": "She ..."}

The fields may also lie one level down: all of them in "tags", with "meta" beside it, or some in
each of "fixed", "from_path" and "ai_output". There, a list of tags at the top is what its user
edited, and stands for all others. "meta" is about the caption; of it the trigger alone is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Final, cast

from anima_pipe.errors import DataError
from anima_pipe.plain_text import parsed_json
from anima_pipe.source.captions import CaptionRules, render_caption, tags_shown

FIXED: Final = ("quality", "count", "character", "series", "artist")
SHUFFLED: Final = ("appearance", "tags", "environment")
SENTENCE: Final = "nl"
EXTRA: Final = {"appearance": "extra_appearance", "tags": "extra_tags"}
"""What the folders' names add to a category."""
LEVELS: Final = ("fixed", "from_path", "ai_output")
"""Objects within the caption that may hold some of its fields."""
CHARACTER: Final = ("full", "name", "variant")
"""Of a character that is an object."""
NOT_TEXT: Final = ("meta", "path", "path_parts")
"""What is about the caption, or where its picture was."""

_KNOWN: Final = (*FIXED, *SHUFFLED, SENTENCE, *EXTRA.values())
_BLANKS: Final = re.compile(r"[ \t\r\n]+")

Fields = Mapping[str, object]


class _UnfitFieldError(Exception):
    """A field of a caption cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedCaption:
    """A caption by category."""

    fixed: tuple[str, ...]
    """In front, in their order."""
    groups: tuple[tuple[str, ...], ...]
    """Tags of each category that may change places within it."""
    sentence: str
    """Behind all tags."""

    @property
    def written(self) -> str:
        """All of its text."""
        return " ".join(
            [*self.fixed, *(tag for group in self.groups for tag in group), self.sentence]
        )

    def render(self, rules: CaptionRules, rng: Random, *, step: int = 0) -> str:
        """Return the text of one visit; every other rule is applied to it as to a plain caption.

        Args:
            rules: What is done to the caption.
            rng: The only source of randomness.
            step: Of the token warmup, which shows the first so many of all categories' tags.
        """
        left = tags_shown(sum(map(len, self.groups)), rules, step)
        free: list[list[str]] = []
        for whole in self.groups:
            free.append(list(whole[:left]))
            left = max(0, left - len(whole))
        for group in free:
            if rules.shuffle_caption:
                rng.shuffle(group)
            if (rate := rules.caption_tag_dropout_rate) > 0:
                group[:] = [tag for tag in group if rng.random() >= rate]
        tags = f"{rules.caption_separator} ".join(
            [*self.fixed, *(t for group in free for t in group)]
        )
        text = ". ".join(part for part in (tags, self.sentence) if part)
        others = replace(
            rules, shuffle_caption=False, caption_tag_dropout_rate=0.0, token_warmup_step=0
        )
        return render_caption(text, others, rng=rng)


def parse_json_caption(text: str, place: str) -> GroupedCaption | str:
    """Read a caption; one that has no categories is plain text.

    Args:
        text: A JSON text, or an object of "caption", of the categories, or of "tags" and "meta".
        place: Where it stands, for messages.

    Raises:
        DataError: It is no JSON, or has none of the fields; one of them is of the wrong type, or
            there is text in a field that is none of them.
    """
    try:
        found: object = parsed_json(text)
    except ValueError as error:
        raise DataError(f"{place} is not JSON: {error}", "correct that place") from error
    if isinstance(found, str):
        return _one_line(found)
    fields = cast("Fields", found) if isinstance(found, dict) else {}
    try:
        return _caption_of(fields, place)
    except RecursionError as error:
        raise DataError(f"{place} is nested too deeply", "correct that place") from error


def _caption_of(fields: Fields, place: str) -> GroupedCaption | str:
    known = ", ".join(("caption", *FIXED, *SHUFFLED, SENTENCE))
    try:
        caption = _plain(fields) if _has_text(fields.get("caption")) else _grouped(fields)
    except _UnfitFieldError as error:
        recognised = any(_has_text(fields.get(name)) for name in ("caption", *_KNOWN, *LEVELS))
        raise DataError(
            f"{place}: {error}" if recognised else f"{place} holds no caption: {error}",
            f"correct it; read are {known}; what is no part of the caption belongs into meta",
        ) from error
    if not (caption if isinstance(caption, str) else caption.written.strip()):
        raise DataError(f"{place} holds no caption", f"give it one of the fields {known}")
    return caption


def _plain(fields: Fields) -> str:
    """Return the text of a caption that is one, behind the trigger and before its tags."""
    _refuse_unread(fields, "", ("caption", "tags", *NOT_TEXT))
    trigger = _trigger(fields)
    caption = fields["caption"]
    if not isinstance(caption, str):
        raise _UnfitFieldError(f"field caption is {_kind(caption)}, not a text")
    first = {text.casefold() for text in trigger}
    # The trigger moves to the front; otherwise the text stays as it is written.
    parts = [part for part in caption.split(",") if part.strip().casefold() not in first]
    seen = first | {part.strip().casefold() for part in parts}
    tags = (tag for tag in _texts(fields.get("tags"), "tags") if tag.casefold() not in seen)
    return ", ".join(
        text for text in (*trigger, _one_line(",".join(parts)), *_unique(tags)) if text
    )


def _grouped(fields: Fields) -> GroupedCaption:
    levels = list(_levels(fields))
    fixed = [
        text
        for name in FIXED
        for place, level in levels
        for text in _fixed(name, level.get(name), f"{place}{name}")
    ]
    groups = [[text for level in levels for text in _group(name, *level)] for name in SHUFFLED]
    sentences = (_sentence(level.get(SENTENCE), f"{place}nl") for place, level in levels)
    edited = _edited(fields)
    if edited:
        fixed, groups = [], [edited]
    seen: set[str] = set()
    return GroupedCaption(
        fixed=_unique([*_trigger(fields), *fixed], seen),
        groups=tuple(_unique(group, seen) for group in groups),
        sentence=" ".join(_unique(sentence for sentence in sentences if sentence)),
    )


def _levels(fields: Fields) -> Iterator[tuple[str, Fields]]:
    """Yield the objects that hold fields of the caption, each with what to put before their names.

    Raises:
        _UnfitFieldError: A level is no object, or has text that is in no field.
    """
    _refuse_unread(fields, "", (*_KNOWN, *LEVELS, *NOT_TEXT))
    names, top = LEVELS, fields
    if isinstance(fields.get("tags"), dict):
        names = ("tags", *LEVELS)
        top = {name: value for name, value in fields.items() if name != "tags"}
    yield "", top
    for name in names:
        level = _object(fields.get(name), name)
        _refuse_unread(level, f"{name}.", (*_KNOWN, *NOT_TEXT))
        yield f"{name}.", level


def _edited(fields: Fields) -> list[str]:
    """Return the tags that a user has edited: a list at the top beside what a tool wrote below."""
    tags = fields.get("tags")
    below = any(_has_text(fields.get(name)) for name in LEVELS)
    return _texts(tags, "tags") if below and isinstance(tags, list) else []


def _trigger(fields: Fields) -> list[str]:
    """Return the words that a tagger's user put before everything."""
    return _texts(_object(fields.get("meta"), "meta").get("trigger"), "meta.trigger")


def _fixed(name: str, value: object, place: str) -> list[str]:
    """Return the texts of a field that stays in place."""
    if name != "character":
        return _texts(value, place)
    if isinstance(value, list):
        return [text for item in cast("list[object]", value) for text in _fixed(name, item, place)]
    if not isinstance(value, dict):
        return _texts(value, place)
    character = cast("Fields", value)
    _refuse_unread(character, f"{place}.", CHARACTER)
    full, *parts = (_texts(character.get(part), f"{place}.{part}") for part in CHARACTER)
    return full or [text for part in parts for text in part]


def _group(name: str, place: str, level: Fields) -> Iterator[str]:
    """Yield the tags of one category in one level."""
    for field in (name, EXTRA.get(name)):
        if field is not None:
            yield from _texts(level.get(field), f"{place}{field}")


def _texts(value: object, place: str) -> list[str]:
    """Return a field's texts: those between commas, in each text of a list too.

    Raises:
        _UnfitFieldError: It is of another type.
    """
    items: Sequence[object]
    if value is None or value == {}:
        return []
    if isinstance(value, str):
        items = [value]
    elif isinstance(value, list):
        items = cast("list[object]", value)
    else:
        raise _UnfitFieldError(f"field {place} is {_kind(value)}, not a text or a list of texts")
    texts: list[str] = []
    for item in items:
        if not isinstance(item, str):
            raise _UnfitFieldError(f"field {place} has {_kind(item)} in its list, not a text")
        texts += map(_one_line, item.split(","))
    return [text for text in texts if text]


def _sentence(value: object, place: str) -> str:
    if value is None or isinstance(value, str):
        return _one_line(value or "")
    raise _UnfitFieldError(f"field {place} is {_kind(value)}, not a text")


def _object(value: object, place: str) -> Fields:
    if isinstance(value, dict):
        return cast("Fields", value)
    if _has_text(value) or isinstance(value, int | float):
        raise _UnfitFieldError(f"field {place} is {_kind(value)}, not an object")
    return {}


def _refuse_unread(fields: Fields, place: str, known: Iterable[str]) -> None:
    """Make sure that no text is lost.

    Raises:
        _UnfitFieldError: There is text in a field that is none of the known.
    """
    known = set(known)
    for name, value in fields.items():
        if name not in known and _has_text(value):
            raise _UnfitFieldError(f"field {place}{name} holds text that nobody reads")


def _has_text(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_text, cast("dict[str, object]", value).values()))
    if isinstance(value, list):
        return any(map(_has_text, cast("list[object]", value)))
    return isinstance(value, str) and bool(value.strip())


def _kind(value: object) -> str:
    """Return what JSON calls a value."""
    match value:
        case bool():
            return "true or false"
        case dict():
            return "an object"
        case list():
            return "a list"
        case str():
            return "a text"
        case None:
            return "null"
        case _:
            return "a number"


def _one_line(text: str) -> str:
    """Return a text without line ends: a caption is one line, and the others would be lost."""
    return _BLANKS.sub(" ", text).strip()


def _unique(texts: Iterable[str], seen: set[str] | None = None) -> tuple[str, ...]:
    """Return the first of those that differ in case alone.

    Args:
        texts: Some of the caption's.
        seen: Those of the caption that came before, in lower case; these are added.
    """
    seen = set() if seen is None else seen
    kept: list[str] = []
    for text in texts:
        if text.casefold() not in seen:
            seen.add(text.casefold())
            kept.append(text)
    return tuple(kept)
