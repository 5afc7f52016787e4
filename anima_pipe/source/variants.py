"""The texts that one caption may become in training: all of them are encoded beforehand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from anima_pipe.source.captions import CaptionRules, render_caption
from anima_pipe.source.json_captions import GroupedCaption

DEFAULT_VARIANTS: Final = 8
"""Texts encoded per caption where its rules draw at random."""

WARMUP_PARTS: Final = 8
"""Equal parts of a token warmup: the number of tags grows from one to the next, not within."""

WARMUP_VARIANTS: Final = 2
"""Texts encoded per caption for each of these parts, where its rules draw at random."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionTexts:
    """Distinct final texts, of which one is drawn per visit."""

    full: tuple[str, ...]
    """With all tags; at least one."""
    warmup: tuple[tuple[str, ...], ...] = ()
    """In each part of the token warmup; empty without one."""

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
        variants: Texts per caption; None: 1 where nothing is drawn at random, else 8.
    """
    plain = replace(rules.without_dropout(), token_warmup_step=0)
    if variants is None:
        variants = DEFAULT_VARIANTS if plain.varies else 1
    if not rules.token_warmup_step:
        return CaptionTexts(full=_rendered(raw, plain, variants))
    by_part = replace(plain, token_warmup_step=WARMUP_PARTS)
    few = min(variants, WARMUP_VARIANTS)
    return CaptionTexts(
        full=_rendered(raw, by_part, variants, WARMUP_PARTS),
        warmup=tuple(_rendered(raw, by_part, few, part) for part in range(WARMUP_PARTS)),
    )


def _rendered(
    raw: GroupedCaption | str, rules: CaptionRules, variants: int, step: int = 0
) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_variant(raw, rules, index, step) for index in range(variants)))


def _variant(raw: GroupedCaption | str, rules: CaptionRules, index: int, step: int) -> str:
    """Render one variant of a caption.

    It is drawn from the caption and the variant's number alone, so that runs with other seeds
    find their texts in the cache.
    """
    rng = Random(f"{index}\x1f{raw}")  # noqa: S311 - not a secret
    if isinstance(raw, GroupedCaption):
        return raw.render(rules, rng, step=step)
    return render_caption(raw, rules, rng=rng, step=step)
