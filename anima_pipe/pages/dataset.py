"""The page of a dataset: what it shows, counted and put in order for its template.

The browser lays cards out, and decodes their pictures, only when they come near the screen
(`content-visibility`), and the page works without JavaScript.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from anima_pipe.inspection.entries import (
    FLAGS,
    OTHERS_KEPT,
    Entry,
    Flag,
    Folder,
    Inspection,
    Variant,
)
from anima_pipe.pages.charts import Chart, Column, chart_of_columns, chart_of_row
from anima_pipe.pages.rendering import write_page
from anima_pipe.records import Skipped

COMMON_TAGS: Final = 120
"""Tags that are listed, the most frequent ones."""

SKIPPED_NAMED: Final = 500

SHAPES: Final = (
    ("1:3", 1 / 3),
    ("1:2", 1 / 2),
    ("9:16", 9 / 16),
    ("2:3", 2 / 3),
    ("3:4", 3 / 4),
    ("4:5", 4 / 5),
    ("1:1", 1.0),
    ("5:4", 5 / 4),
    ("4:3", 4 / 3),
    ("3:2", 3 / 2),
    ("16:9", 16 / 9),
    ("2:1", 2.0),
    ("3:1", 3.0),
)
"""Aspect ratios, width to height, that pictures are counted under: each under the nearest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """One of the numbers at a glance."""

    name: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One row of the table of buckets."""

    size: tuple[int, int]
    pictures: int
    visits: int
    """Per epoch."""
    bar: Chart


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A tag that one can search for."""

    name: str
    find: str
    """What is searched for: searches know no capitals."""
    pictures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What pictures are marked with."""

    flag: Flag
    name: str
    meaning: str
    pictures: int
    """With a card and this mark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetPage:
    """All that `dataset.html` shows but for the cards."""

    title: str
    pictures: int
    cards: int
    """Pictures that have one."""
    visits: int
    """Per epoch."""
    t5_counted: bool
    """Whether a T5 tokenizer is known."""
    numbers: tuple[Number, ...]
    buckets: tuple[Bucket, ...]
    shapes: Chart
    folders: tuple[Folder, ...]
    tags: tuple[Tag, ...]
    other_tags: int
    """Tags that are not listed."""
    skipped: int
    skipped_reasons: tuple[str, ...]
    other_skipped: int
    """Skipped files whose reasons are not listed."""
    bucket_choices: tuple[tuple[int, int], ...]
    """Buckets of the pictures that have a card."""
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """Another picture that one is like."""

    number: int
    name: str
    has_card: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Others:
    """The other pictures that one is like."""

    how: str
    named: tuple[Other, ...]
    more: bool
    """Whether there may be more than are named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """One text that is encoded for a picture."""

    text: str
    tokens: str
    """Of each encoder that they are counted for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One picture."""

    entry: Entry
    flags: str
    """With spaces between."""
    marks: tuple[Mark, ...]
    area: int
    """In pixels."""
    aspect: float
    """Width to height."""
    tokens: int
    """Of the longest variant."""
    kin: int
    """A number that like pictures share; those that are like none come last."""
    texts: tuple[Text, ...]
    """Its caption and, if there are several variants, each of them."""
    others: tuple[Others, ...]


def write_dataset_page(
    path: Path, inspection: Inspection, *, title: str, shown: Sequence[Entry]
) -> None:
    """Write the page.

    Args:
        path: The file.
        inspection: Of the whole dataset, which the summary counts.
        title: What the user calls it.
        shown: The pictures that have a card.

    Raises:
        OutputError: The file cannot be written.
    """
    page = _page(inspection, title, shown)
    write_page(path, "dataset.html", page=page, cards=_cards(inspection, shown, page.marks))


def _page(inspection: Inspection, title: str, shown: Sequence[Entry]) -> DatasetPage:
    entries = inspection.entries
    tags = _common(inspection.tags)
    reasons = tuple(map(_reason, inspection.skipped[:SKIPPED_NAMED]))
    return DatasetPage(
        title=title,
        pictures=len(entries),
        cards=len(shown),
        visits=sum(entry.visits for entry in entries),
        t5_counted=all(v.t5_tokens is not None for entry in entries for v in entry.variants[:1]),
        numbers=tuple(_numbers(inspection)),
        buckets=tuple(_buckets(entries)),
        shapes=_shapes(entries),
        folders=inspection.folders,
        tags=tags,
        other_tags=len(inspection.tags) - len(tags),
        skipped=len(inspection.skipped),
        skipped_reasons=reasons,
        other_skipped=len(inspection.skipped) - len(reasons),
        bucket_choices=tuple(sorted({entry.bucket for entry in shown})),
        marks=tuple(_marks(shown)),
    )


def _numbers(inspection: Inspection) -> Iterator[Number]:
    flags = Counter(flag for entry in inspection.entries for flag in entry.flags)
    yield Number(name="pictures", count=len(inspection.entries))
    yield Number(name="skipped", count=len(inspection.skipped))
    for flag, (name, _) in FLAGS.items():
        yield Number(name=name, count=flags[flag])
    longest = max(map(_tokens, inspection.entries), default=0)
    yield Number(name="most tokens of a caption", count=longest)


def _tokens(entry: Entry) -> int:
    return max((variant.tokens for variant in entry.variants), default=0)


def _buckets(entries: Sequence[Entry]) -> Iterator[Bucket]:
    pictures = Counter(entry.bucket for entry in entries)
    visits = Counter[tuple[int, int]]()
    for entry in entries:
        visits[entry.bucket] += entry.visits
    for size, count in pictures.most_common():
        share = count / max(pictures.values())
        yield Bucket(size=size, pictures=count, visits=visits[size], bar=chart_of_row(share))


def _shapes(entries: Sequence[Entry]) -> Chart:
    counts = Counter(_shape(entry.size) for entry in entries)
    columns = [
        Column(name=name, count=counts[name], meaning=f"{counts[name]:,} near {name}")
        for name, _ in SHAPES
    ]
    return chart_of_columns(columns, label="Pictures by their shape")


def _shape(size: tuple[int, int]) -> str:
    aspect = math.log(size[0] / size[1])
    return min(SHAPES, key=lambda shape: abs(math.log(shape[1]) - aspect))[0]


def _common(tags: Counter[str]) -> tuple[Tag, ...]:
    common = sorted(tags.items(), key=lambda item: (-item[1], item[0]))[:COMMON_TAGS]
    return tuple(Tag(name=tag, find=tag.lower(), pictures=count) for tag, count in common)


def _reason(skipped: Skipped) -> str:
    """Return why a file is skipped; most reasons name it themselves."""
    if skipped.name in skipped.reason:
        return skipped.reason
    return f"{skipped.name}: {skipped.reason}"


def _marks(shown: Sequence[Entry]) -> Iterator[Mark]:
    counts = Counter(flag for entry in shown for flag in entry.flags)
    for flag, (name, meaning) in FLAGS.items():
        if counts[flag]:
            yield Mark(flag=flag, name=name, meaning=meaning, pictures=counts[flag])


def _cards(inspection: Inspection, shown: Sequence[Entry], marks: Sequence[Mark]) -> Iterator[Card]:
    """Yield the cards, each made when it is shown."""
    names = {entry.number: entry.path.name for entry in inspection.entries}
    with_card = {entry.number for entry in shown}
    for entry in shown:
        width, height = entry.size
        yield Card(
            entry=entry,
            flags=" ".join(sorted(entry.flags)),
            marks=tuple(mark for mark in marks if mark.flag in entry.flags),
            area=width * height,
            aspect=width / height,
            tokens=_tokens(entry),
            kin=_kin(entry),
            texts=tuple(map(_text, entry.variants)),
            others=tuple(
                _others(how, numbers, names, with_card)
                for how, numbers in (("Same bytes as", entry.same), ("Looks like", entry.near))
                if numbers
            ),
        )


def _kin(entry: Entry) -> int:
    kin = (*entry.same, *entry.near)
    return min(entry.number, *kin) if kin else 10**9 + entry.number


def _text(variant: Variant) -> Text:
    t5 = "" if variant.t5_tokens is None else f", T5 {variant.t5_tokens}"
    return Text(text=variant.text, tokens=f"Qwen {variant.qwen_tokens}{t5}")


def _others(
    how: str, numbers: Sequence[int], names: Mapping[int, str], with_card: Collection[int]
) -> Others:
    named = (Other(number=n, name=names[n], has_card=n in with_card) for n in numbers)
    return Others(how=how, named=tuple(named), more=len(numbers) == OTHERS_KEPT)
