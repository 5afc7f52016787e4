"""The texts that one caption may become in training: all of them are encoded beforehand."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import cycle, islice
from random import Random
from typing import Final, Literal

from anima_pipe.source.captions import CaptionRules, render_caption
from anima_pipe.source.json_captions import GroupedCaption
from anima_pipe.source.prompts import has_escapes, has_weights, unescaped

DEFAULT_VARIANTS: Final = 8
"""Texts encoded per caption where its rules draw at random."""

WARMUP_PARTS: Final = 8
"""Equal parts of a token warmup: the number of tags grows from one to the next, not within."""

WARMUP_VARIANTS: Final = 2
"""Texts encoded per caption for each of these parts, where its rules draw at random."""

VARIANTS_DROP: Final = (0.0, 0.2, 0.1, 0.5, 0.0, 0.3, 0.1, 0.7)
"""Chance of a free tag to be left out of each variant, from the ninth on over again. It does not
depend on caption_tag_dropout_rate, which decides how often each variant is shown: so the texts that
were encoded for one rate serve for every other. Dense where rates usually are."""

DROP_SPREAD: Final = 0.2
"""How far from a rate variants are shown: standard deviation of a bell around it."""


CaptionNote = Literal["unescaped", "weights", "first line"]
r"""What is worth telling of how a caption is read: `\(` in it is read as `(`; what would be a
weight in a prompt is text; of its several lines the first alone counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionTexts:
    """Distinct final texts, of which one is drawn per visit."""

    full: tuple[str, ...]
    """With all tags that are not dropped; at least one."""
    chances: tuple[float, ...] = ()
    """How often each of them is drawn, 1 in all; empty: all alike."""
    warmup: tuple[tuple[str, ...], ...] = ()
    """In each part of the token warmup; empty without one."""
    warmup_chances: tuple[tuple[float, ...], ...] = ()
    """The same for those."""
    notes: tuple[CaptionNote, ...] = ()
    """What is true of the caption."""

    def __iter__(self) -> Iterator[str]:
        """Go over all of them, some perhaps more than once."""
        yield from self.full
        for texts in self.warmup:
            yield from texts


def caption_texts(
    raw: GroupedCaption | str, rules: CaptionRules, variants: int | None
) -> CaptionTexts:
    """Render a caption in all the ways that training may ask for.

    A token warmup shows more tags from step to step. At the beginning of each of `WARMUP_PARTS`
    parts of it the number is Kohya's, and it stays so until the next; how many steps a part has
    does not matter here, so that a warmup of another length needs no other texts.

    Args:
        raw: The caption.
        rules: What is done to it; dropping the whole caption is left to training.
        variants: Texts per caption, of which some may be the same; None: 1 where nothing is drawn
            at random, else 8.
    """
    plain = replace(rules.without_dropout(), token_warmup_step=0)
    if variants is None:
        variants = DEFAULT_VARIANTS if plain.varies else 1
    if not rules.token_warmup_step:
        full, chances = _rendered(raw, plain, variants)
        return CaptionTexts(full=full, chances=chances)
    by_part = replace(plain, token_warmup_step=WARMUP_PARTS)
    few = min(variants, WARMUP_VARIANTS)
    full, chances = _rendered(raw, by_part, variants, WARMUP_PARTS)
    parts = [_rendered(raw, by_part, few, part) for part in range(WARMUP_PARTS)]
    return CaptionTexts(
        full=full,
        chances=chances,
        warmup=tuple(texts for texts, _ in parts),
        warmup_chances=tuple(chances for _, chances in parts),
    )


def caption_notes(
    raw: GroupedCaption | str, rules: CaptionRules, *, has_more_lines: bool = False
) -> tuple[CaptionNote, ...]:
    """Tell what is true of how a caption is read.

    Args:
        raw: The caption.
        rules: What is done to it.
        has_more_lines: Whether lines have been left out of `raw`.
    """
    text = raw if isinstance(raw, str) else raw.written
    if not rules.enable_wildcard and "\n" in text:
        text, has_more_lines = text.split("\n")[0], True
    written = f"{rules.caption_prefix or ''} {text} {rules.caption_suffix or ''}"
    tests: dict[CaptionNote, bool] = {
        "unescaped": not rules.keep_backslashes and has_escapes(written),
        "weights": has_weights(written),
        "first line": has_more_lines,
    }
    return tuple(note for note, holds in tests.items() if holds)


def chances_of_variants(drops: Sequence[float], rate: float) -> list[float]:
    """Return how often each variant is shown for a tag to be left out at a rate, over all visits.

    They lie on a bell, of `DROP_SPREAD`, over the variants' own rates. Where its middle is follows
    from the mean, which rises with it.

    Args:
        drops: Chance of a tag to be left out of each variant.
        rate: Between the least and the greatest of them.
    """
    low, high = -100.0, 100.0
    weights: list[float] = []
    for _ in range(100):  # halves the interval, down to what a float can tell apart
        middle = (low + high) / 2
        exponents = [-(((drop - middle) / DROP_SPREAD) ** 2) / 2 for drop in drops]
        greatest = max(exponents)
        weights = [math.exp(exponent - greatest) for exponent in exponents]
        mean = sum(w * d for w, d in zip(weights, drops, strict=True)) / sum(weights)
        low, high = (middle, high) if mean < rate else (low, middle)
    return [weight / sum(weights) for weight in weights]


@lru_cache
def _ways(rules: CaptionRules, variants: int) -> tuple[tuple[int, CaptionRules, float], ...]:
    """Return each variant's number, rules and chance.

    Where tags are dropped at some rate, there is one more with none of the free tags: with it every
    rate can be reached.
    """
    rate = rules.caption_tag_dropout_rate
    if rate in (0, 1):
        return tuple((index, rules, 1 / variants) for index in range(variants))
    drops = [*islice(cycle(VARIANTS_DROP), variants), 1.0]
    numbers = [*range(variants), 0]
    return tuple(
        (number, replace(rules, caption_tag_dropout_rate=drop), chance)
        for number, drop, chance in zip(
            numbers, drops, chances_of_variants(drops, rate), strict=True
        )
    )


def _rendered(
    raw: GroupedCaption | str, rules: CaptionRules, variants: int, step: int = 0
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Return the distinct texts, and how often each of them is drawn; () where all are alike."""
    chances: dict[str, float] = {}
    for index, by_rules, chance in _ways(rules, variants):
        text = _variant(raw, by_rules, index, step)
        chances[text] = chances.get(text, 0.0) + chance
    alike = max(chances.values()) - min(chances.values()) < 1e-9
    return tuple(chances), () if alike else tuple(chances.values())


def _variant(raw: GroupedCaption | str, rules: CaptionRules, index: int, step: int) -> str:
    """Render one variant of a caption.

    It is drawn from the rules' own seed, the caption and the variant's number, and not from the
    run's seed: so runs with other seeds find their texts in the cache.
    """
    rng = Random(f"{rules.caption_seed}\x1f{index}\x1f{raw}")  # noqa: S311 - not a secret
    if isinstance(raw, GroupedCaption):
        text = raw.render(rules, rng, step=step)
    else:
        text = render_caption(raw, rules, rng=rng, step=step)
    return text if rules.keep_backslashes else unescaped(text)
