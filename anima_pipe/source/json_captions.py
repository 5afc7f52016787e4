"""Captions in JSON, by category, as tools for Anima's tags write them.

quality, count, character, series and artist stand first and stay in place; the tags of appearance,
tags and environment are shuffled and dropped within their category; nl, a sentence, comes last:

    {"quality": "newest", "count": "1girl", "artist": "@name", "tags": ["smile"], "nl": "She ..."}

The fields may also lie one level down, in "fixed", "character" (name, variant), "from_path" and
"ai_output". There, a list of tags at the top is what its user edited, and stands for all others.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Final, cast

from anima_pipe.errors import DataError
from anima_pipe.source.captions import CaptionRules, render_caption, tags_shown

FIXED: Final = ("quality", "count", "character", "series", "artist")
SHUFFLED: Final = ("appearance", "tags", "environment")
SENTENCE: Final = "nl"
LEVELS: Final = ("fixed", "from_path", "ai_output")
"""Objects within the caption that may hold some of its fields."""

Fields = Mapping[str, object]


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
        DataError: It is no JSON, or has none of the fields.
    """
    try:
        found: object = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place} is not JSON: {error}", "correct that place") from error
    if isinstance(found, str):
        return found.strip()
    fields = cast("Fields", found) if isinstance(found, dict) else {}
    if isinstance(caption := fields.get("caption"), str):
        return ", ".join([part for part in (caption.strip(), *_tags(fields.get("tags"))) if part])
    grouped = _grouped(fields)
    if not (grouped.fixed or any(grouped.groups) or grouped.sentence):
        known = ", ".join(("caption", *FIXED, *SHUFFLED, SENTENCE))
        raise DataError(f"{place} holds no caption", f"give it one of the fields {known}")
    return grouped


def _grouped(fields: Fields) -> GroupedCaption:
    inner = [level for name in LEVELS if (level := _object(fields.get(name)))]
    levels = [fields, *inner]
    sentence = next((s for level in levels if (s := _sentence(level.get(SENTENCE)))), "")
    if inner and isinstance(fields.get("tags"), list):
        edited = tuple(_tags(fields["tags"]))
        return GroupedCaption(fixed=(), groups=(edited,), sentence=sentence)
    # Of a tagger that knows no categories: its trigger word stays in front.
    trigger = _tags(_object(fields.get("meta")).get("trigger"))
    fixed = [text for name in FIXED for level in levels for text in _fixed(level.get(name))]
    groups = [_unique(t for level in levels for t in _tags(level.get(name))) for name in SHUFFLED]
    return GroupedCaption(
        fixed=_unique([*trigger, *fixed]), groups=tuple(groups), sentence=sentence
    )


def _object(value: object) -> Fields:
    return cast("Fields", value) if isinstance(value, dict) else {}


def _fixed(value: object) -> list[str]:
    """Return a field that stays whole: one text, several, or a character's name and variant."""
    if isinstance(value, dict):
        of_character = cast("Fields", value)
        return [*_fixed(of_character.get("name")), *_fixed(of_character.get("variant"))]
    if isinstance(value, list):
        return [text for item in cast("list[object]", value) for text in _fixed(item)]
    return [value.strip()] if isinstance(value, str) and value.strip() else []


def _tags(value: object) -> list[str]:
    if isinstance(value, str):
        value = value.split(",")
    return _fixed(value)


def _sentence(value: object) -> str:
    return " ".join(value.split()) if isinstance(value, str) else ""


def _unique(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))
