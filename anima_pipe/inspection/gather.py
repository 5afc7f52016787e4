"""From a survey to everything that is known of its dataset."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Final

from anima_pipe.dataset.picture_captions import lacks_caption
from anima_pipe.dataset.samples import Sample
from anima_pipe.dataset.survey import Survey
from anima_pipe.inspection.entries import (
    OTHERS_KEPT,
    Box,
    Entry,
    Flag,
    Folder,
    Inspection,
    Look,
    Variant,
)
from anima_pipe.inspection.likeness import alike
from anima_pipe.records import BucketChoice

LONG: Final = 512
"""T5 tokens from which on a caption is longer than most programs keep."""

Count = Callable[[str], int]
"""Returns the number of tokens of a text."""


def inspect_survey(
    survey: Survey, looks: Sequence[Look], *, count_qwen: Count, count_t5: Count | None
) -> Inspection:
    """Put everything together.

    Args:
        survey: Of the dataset, with captions.
        looks: At each of its samples, in order.
        count_qwen: Counts Qwen's tokens.
        count_t5: Counts T5's; None: no tokenizer is known.
    """
    same = _same_bytes(survey.samples)
    near = _near(survey.samples, looks)
    counted = {text: _variant(text, count_qwen, count_t5) for text in survey.captions}
    entries = tuple(
        _entry(survey, number, looks[number], counted, same.get(number, ()), near.get(number, ()))
        for number in range(len(survey.samples))
    )
    return Inspection(
        entries=entries,
        skipped=survey.skipped,
        folders=tuple(_folders(survey.samples)),
        tags=_tags(survey.samples),
    )


def _entry(
    survey: Survey,
    number: int,
    look: Look,
    counted: Mapping[str, Variant],
    same: tuple[int, ...],
    near: tuple[int, ...],
) -> Entry:
    sample = survey.samples[number]
    requests = [survey.latents[key] for key in sample.latent_keys]
    variants = tuple(counted[text] for text in sample.captions)
    return Entry(
        number=number,
        path=sample.picture.path,
        size=sample.image.size,
        bucket=sample.choice.bucket,
        scale=sample.choice.resized[0] / sample.image.size[0],
        boxes=tuple(dict.fromkeys(_box(request.choice) for request in requests)),
        visits=sample.visits,
        mirrored=any(request.flipped for request in requests),
        variants=variants,
        look=look,
        flags=frozenset(_flags(sample, look, variants, same=bool(same), near=bool(near))),
        same=same,
        near=near,
    )


def _flags(
    sample: Sample, look: Look, variants: Sequence[Variant], *, same: bool, near: bool
) -> set[Flag]:
    tests: dict[Flag, bool] = {
        "broken": bool(look.problem),
        "duplicate": same,
        "alike": near,
        "enlarged": any(
            after > before
            for before, after in zip(sample.image.size, sample.choice.resized, strict=True)
        ),
        "uncaptioned": lacks_caption(sample.picture) or not any(v.text for v in variants),
        "long": any(v.tokens > LONG for v in variants),
        "held-out": sample.picture.held_out,
        "regularisation": sample.picture.subset.is_reg,
    }
    return {flag for flag, holds in tests.items() if holds}


def _box(choice: BucketChoice) -> Box:
    (width, height), (left, top) = choice.resized, choice.crop
    return Box(
        left=left / width,
        top=top / height,
        width=min(1.0, choice.bucket[0] / width),
        height=min(1.0, choice.bucket[1] / height),
    )


def _variant(text: str, count_qwen: Count, count_t5: Count | None) -> Variant:
    t5_tokens = count_t5(text) if count_t5 else None
    return Variant(text=text, qwen_tokens=count_qwen(text), t5_tokens=t5_tokens)


def _same_bytes(samples: Sequence[Sample]) -> dict[int, tuple[int, ...]]:
    """Return the other files of the same bytes; one file in several subsets is not another one."""
    by_content: dict[str, list[int]] = defaultdict(list)
    for number, sample in enumerate(samples):
        by_content[sample.image.content].append(number)
    return _others(
        by_content.values(), lambda a, b: samples[a].picture.path != samples[b].picture.path
    )


def _near(samples: Sequence[Sample], looks: Sequence[Look]) -> dict[int, tuple[int, ...]]:
    """Return the other pictures that look alike, but for those of the same bytes."""
    return _others(
        alike([look.likeness for look in looks]),
        lambda a, b: samples[a].image.content != samples[b].image.content,
    )


def _others(
    groups: Iterable[Sequence[int]], differ: Callable[[int, int], bool]
) -> dict[int, tuple[int, ...]]:
    """Return the members of each member's group that differ from it, up to so many."""
    others = {
        number: tuple(islice((o for o in group if differ(o, number)), OTHERS_KEPT))
        for group in groups
        if len(group) > 1
        for number in group
    }
    return {number: found for number, found in others.items() if found}


def _folders(samples: Sequence[Sample]) -> list[Folder]:
    members: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        members[id(sample.picture.subset)].append(sample)
    return [
        Folder(
            path=group[0].picture.subset.image_dir,
            pictures=len(group),
            repeats=group[0].picture.subset.num_repeats,
            visits=sum(sample.visits for sample in group),
        )
        for group in members.values()
    ]


def _tags(samples: Sequence[Sample]) -> Counter[str]:
    """Count the pictures in whose captions each tag is, in whichever of their variants."""
    tags: Counter[str] = Counter()
    for sample in samples:
        separator = sample.picture.subset.captions.caption_separator
        found = {tag.strip() for text in sample.captions for tag in text.split(separator)}
        tags.update(found - {""})
    return tags
