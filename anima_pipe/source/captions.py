"""From the caption in a file to the text that is trained on: Kohya's caption rules.

Every rule is one function here, and `render_caption` applies them in Kohya's order, drawing from
the random generator exactly when Kohya draws, so that a seed gives the same text in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import takewhile
from math import floor
from typing import TYPE_CHECKING

from anima_pipe.errors import ConfigError

if TYPE_CHECKING:
    from random import Random

_FULL_STOP = re.compile(r"\.\s+[\"'“«(]?(?=\w)")
_CLAUSE_END = re.compile(r"[,.]")
_SENTENCE_WORDS = 4
"""So many words and more up to the next comma are no tag's name behind an abbreviation."""
_LOWER_SHARE = 0.7
"""Of the words of a sentence; of a title fewer begin with a small letter."""
_WEIGHTED = re.compile(r"[(\[{]+(?P<tag>.*?)(?::[\d.]+)?[)\]}]+")
_ARTIST = re.compile(r"@(?![_ ]?@)\w")
_LEADING_TAG = re.compile(
    r"masterpiece|(?:best|amazing|great|high|good|normal|average|low|bad|worst) quality"
    r"|(?:very )?(?:aesthetic|displeasing)|score \d+(?: up)?"
    r"|highres|absurdres|lowres|incredibly absurdres|anime screenshot|official art|jpeg artifacts"
    r"|year \d{4}|newest|recent|mid|early|old"
    r"|(?:rating ?: ?)?(?:safe|general|sensitive|questionable|nsfw|explicit)"
    r"|\d+\+?(?:girl|boy|other)s?|multiple (?:girls|boys|others)|no humans|solo",
    re.IGNORECASE,
)
"""Tags of quality, file, year and safety, and the count, as Anima's captions begin."""

# Doubled braces stand for themselves; Unicode never assigns these two, so no caption has them.
_OPENING, _CLOSING = "\ufdd0", "\ufdd1"


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionRules:
    """What is done to a caption each time it is used, in Kohya's words.

    Raises:
        ConfigError: A value is out of range.
    """

    caption_separator: str = ","
    """What stands between tags."""
    shuffle_caption: bool = False
    """Put the tags that are not kept in place into random order."""
    keep_tokens: int = 0
    """How many tags at the start are neither shuffled nor dropped."""
    keep_tokens_separator: str = ""
    """Mark between kept, free and (after a second mark) kept tags; where it is, it wins over
    keep_tokens and over the sections before the general tags."""
    keep_sections: bool = False
    """Leave what stands before and behind the general tags in place; not one of Kohya's rules.

    Anima's captions read `quality, meta, year, safety, count, character, series, @artist, general
    tags. Sentences.` Before: everything up to the last @artist, or else up to the last of the known
    tags at the start (characters and series are told from general tags by an @artist behind them
    only). Behind: sentences, from the first full stop that a capital letter or several words
    follow, or from the first text between commas that reads like one. Tags may be written with
    underscores and weights.
    """
    secondary_separator: str | None = None
    """Mark that holds tags together as one, replaced by caption_separator at the end."""
    enable_wildcard: bool = False
    """Draw one of several lines, and one of the options of each {a|b}."""
    caption_prefix: str | None = None
    """Put before the caption and a space."""
    caption_suffix: str | None = None
    """Put behind the caption and a space."""
    caption_tag_dropout_rate: float = 0.0
    """Chance, in [0, 1], that a free tag is left out."""
    token_warmup_min: int = 1
    """Free tags at the first step of the warmup."""
    token_warmup_step: float = 0
    """Steps until all free tags are used; below 1 a fraction of the training; 0: from the start."""
    caption_dropout_rate: float = 0.0
    """Chance, in [0, 1], that the whole caption is replaced by the empty one."""
    caption_dropout_every_n_epochs: int = 0
    """Every n-th epoch is trained with empty captions; 0: none."""
    caption_seed: int = 0
    """What the variants that are cached are drawn from, beside caption and number; not one of
    Kohya's rules."""
    keep_backslashes: bool = False
    r"""Encode `\(` and `\)` as they are, as Kohya does. Else, behind all other rules, they become
    the parentheses that they stand for in prompts, so that training meets what inference meets."""

    def __post_init__(self) -> None:
        if not self.caption_separator:
            raise ConfigError(
                "caption_separator is empty", "give the text between tags, such as a comma"
            )
        for key in ("caption_tag_dropout_rate", "caption_dropout_rate"):
            if not 0 <= getattr(self, key) <= 1:
                raise ConfigError(
                    f"{key} is {getattr(self, key)}", "give a chance between 0 (never) and 1"
                )
        for key in (
            "keep_tokens",
            "token_warmup_min",
            "token_warmup_step",
            "caption_dropout_every_n_epochs",
        ):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"{key} is {getattr(self, key)}", "give 0 or more")

    @property
    def takes_tags_apart(self) -> bool:
        """Whether captions are split into tags at all; if not, their spacing is left alone."""
        return (
            self.shuffle_caption or self.token_warmup_step > 0 or self.caption_tag_dropout_rate > 0
        )

    @property
    def varies(self) -> bool:
        """Whether two renderings of a caption may differ."""
        return (
            self.takes_tags_apart
            or self.enable_wildcard
            or self.caption_dropout_rate > 0
            or self.caption_dropout_every_n_epochs > 0
        )

    def without_chance(self) -> CaptionRules:
        """Give the same rules, but all tags are there from the start, in their order."""
        return replace(
            self.without_dropout(),
            shuffle_caption=False,
            caption_tag_dropout_rate=0.0,
            token_warmup_step=0,
        )

    def without_dropout(self) -> CaptionRules:
        """Give the same rules, but never the empty caption: that is drawn when training."""
        return replace(self, caption_dropout_rate=0.0, caption_dropout_every_n_epochs=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tags:
    """A caption taken apart: tags kept in front, free ones, tags kept at the end."""

    front: list[str]
    free: list[str]
    end: list[str]
    sentences: str = ""
    """What follows the tags, from the full stop on."""


def render_caption(
    raw: str,
    rules: CaptionRules,
    *,
    rng: Random,
    step: int = 0,
    epoch: int = 0,
    max_train_steps: int = 0,
) -> str:
    """Turn a caption into the text of one visit.

    Args:
        raw: The caption, as `read_caption` gives it.
        rules: What to do to it.
        rng: The only source of randomness; drawn from only where a rule is a matter of chance.
        step: Optimizer steps done, for the warmup.
        epoch: The current epoch, counted from 1, for caption_dropout_every_n_epochs.
        max_train_steps: Steps of the whole training, for a warmup given as a fraction.
    """
    text = _with_prefix_and_suffix(raw, rules)
    if _is_dropped(rules, rng, epoch):
        return ""
    text = _with_choices_made(text, rng) if rules.enable_wildcard else text.split("\n")[0]
    if rules.takes_tags_apart:
        tags = _split(text, rules)
        free = tags.free[: tags_shown(len(tags.free), rules, step, max_train_steps)]
        if rules.shuffle_caption:
            rng.shuffle(free)
        free = _without_dropped_tags(free, rules.caption_tag_dropout_rate, rng)
        text = f"{rules.caption_separator} ".join([*tags.front, *free, *tags.end])
        loose = f". {rules.caption_separator}"
        text = f"{text}{tags.sentences}" if text else tags.sentences.lstrip(loose)
    if rules.secondary_separator:
        text = text.replace(rules.secondary_separator, rules.caption_separator)
    return text


def _with_prefix_and_suffix(text: str, rules: CaptionRules) -> str:
    if rules.caption_prefix:
        text = f"{rules.caption_prefix} {text}"
    if rules.caption_suffix:
        text = f"{text} {rules.caption_suffix}"
    return text


def _is_dropped(rules: CaptionRules, rng: Random, epoch: int) -> bool:
    if rules.caption_dropout_rate > 0 and rng.random() < rules.caption_dropout_rate:
        return True
    every = rules.caption_dropout_every_n_epochs
    return every > 0 and epoch % every == 0


def _with_choices_made(text: str, rng: Random) -> str:
    """Draw one of the lines, then one option of each {a|b}; {{ and }} become plain braces."""
    if "\n" in text:
        text = rng.choice(text.split("\n"))
    text = text.replace("{{", _OPENING).replace("}}", _CLOSING)
    text = "".join(_drawn(text, rng))
    return text.replace(_OPENING, "{").replace(_CLOSING, "}")


def _drawn(text: str, rng: Random) -> Iterator[str]:
    """Yield a text in parts: an option of what each brace begins and the next closing one ends.

    Not by an expression, which would look for the end of every brace that is never closed.
    """
    done = at = 0
    while (opening := text.find("{", at)) >= 0 and (closing := text.find("}", opening)) >= 0:
        at = opening + 1
        if closing > at:  # nothing is drawn from {}
            yield text[done:opening]
            yield rng.choice(text[opening + 1 : closing].split("|"))
            done = at = closing + 1
    yield text[done:]


def _split(text: str, rules: CaptionRules) -> _Tags:
    """Take a caption apart by its marks, else by its sections or by keep_tokens.

    Only the marks drop empty tags.
    """
    mark = rules.keep_tokens_separator
    sentences = ""
    if rules.keep_sections:
        text, sentences = _sentences_apart(text, rules)
    if mark and mark in text:
        parts = [
            [tag for tag in _tags_of(part, rules) if tag] for part in text.split(mark, maxsplit=2)
        ]
        front, free, end = parts if len(parts) > 2 else (*parts, [])
        return _Tags(front=front, free=free, end=end, sentences=sentences)
    tags = _tags_of(text, rules)
    kept = max(rules.keep_tokens, _length_of_sections(tags) if rules.keep_sections else 0)
    return _Tags(front=tags[:kept], free=tags[kept:], end=[], sentences=sentences)


def _sentences_apart(text: str, rules: CaptionRules) -> tuple[str, str]:
    """Return the tags of a caption in Anima's order and, from what ends them on, its sentences."""
    mark, text = rules.keep_tokens_separator, text.rstrip()
    start = text.rfind(mark) + len(mark) if mark and mark in text else 0
    ends = [
        stop.start()
        for stop in _FULL_STOP.finditer(text, start)
        if _goes_on_as_sentence(text, stop.end())
    ]
    place = start
    for piece in text[start:].split(rules.caption_separator):
        if _reads_as_sentence(piece):
            ends.append(max(start, place - len(rules.caption_separator)))
        place += len(piece) + len(rules.caption_separator)
    if re.search(r"[\w)]\.$", text):
        ends.append(len(text) - 1)
    end = min(ends, default=len(text))
    return text[:end], text[end:]


def _goes_on_as_sentence(text: str, start: int) -> bool:
    """Tell whether what follows a full stop is a sentence, and not the rest of "dr. stone"."""
    if text[start].isalpha() and not text[start].islower():
        return True
    end = _CLAUSE_END.search(text, start)
    return len(text[start : end.start() if end else None].split()) >= _SENTENCE_WORDS


def _reads_as_sentence(piece: str) -> bool:
    """Tell whether what stands between commas is a sentence's beginning, and not a title."""
    words = piece.split()
    if len(words) < _SENTENCE_WORDS or not words[0].lstrip("\"'“«(")[:1].isupper():
        return False
    return sum(word[0].islower() for word in words) >= _LOWER_SHARE * len(words)


def _length_of_sections(tags: list[str]) -> int:
    """Return how many tags stand before the general ones in Anima's order."""
    plain = [_plainly(tag) for tag in tags]
    artists = [number for number, tag in enumerate(plain, start=1) if _ARTIST.match(tag)]
    return artists[-1] if artists else sum(1 for _ in takewhile(_LEADING_TAG.fullmatch, plain))


def _plainly(tag: str) -> str:
    """Return a tag without weight and underscores: "(best_quality:1.2)" is best quality."""
    weighted = _WEIGHTED.fullmatch(tag)
    return (weighted["tag"] if weighted else tag).replace("_", " ").strip()


def _tags_of(text: str, rules: CaptionRules) -> list[str]:
    return [tag.strip() for tag in text.strip().split(rules.caption_separator)]


def tags_of_caption(text: str, rules: CaptionRules) -> list[str]:
    """Return the tags of a final text, as they are written; what reads as sentences is none."""
    tags = _tags_of(_sentences_apart(text, rules)[0], rules)
    return [tag for tag in tags if tag]


def plain_tag(tag: str) -> str:
    """Return what tags that say the same have in common: no weight, no underscores, no capitals."""
    return _plainly(tag).casefold()


def is_leading_tag(tag: str) -> bool:
    """Tell whether a tag is of quality, file, year or safety, or the count: of no one picture."""
    return _LEADING_TAG.fullmatch(_plainly(tag)) is not None


def warmup_steps(warmup: float, max_train_steps: int) -> int:
    """Return the steps of a token warmup that may be given as a share of the whole training."""
    return int(warmup * max_train_steps) if warmup < 1 else int(warmup)


def tags_shown(count: int, rules: CaptionRules, step: int, max_train_steps: int = 0) -> int:
    """Return how many of `count` free tags are used at this step, by the token warmup."""
    warmup = warmup_steps(rules.token_warmup_step, max_train_steps)
    if step >= warmup:
        return count
    added = floor(step * ((count - rules.token_warmup_min) / warmup))
    return rules.token_warmup_min + added


def _without_dropped_tags(tags: list[str], rate: float, rng: Random) -> list[str]:
    if rate <= 0:
        return tags
    return [tag for tag in tags if rng.random() >= rate]
