"""From records to one HTML file: no server, nothing from elsewhere, usable without JavaScript.

Everything that comes from the user's files goes through `_safe`. The browser lays cards out, and
decodes their pictures, only when they come near the screen (`content-visibility`).
"""

from __future__ import annotations

import html
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Final

from anima_pipe.inspection.gather import FLAGS, OTHERS_KEPT, Box, Entry, Inspection, Variant
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


def render_page(inspection: Inspection, *, title: str, shown: Sequence[Entry]) -> str:
    """Return the page.

    Args:
        inspection: Of the whole dataset, which the summary counts.
        title: What the user calls it.
        shown: The pictures that have a card.
    """
    assets = files(__package__ or "")
    parts = {name: (assets / f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    names = {entry.number: entry.path.name for entry in inspection.entries}
    cards = {entry.number for entry in shown}
    return Template(parts["html"]).substitute(
        title=_safe(title),
        style=parts["css"],
        script=parts["js"],
        lead=_lead(inspection),
        notes="\n".join(_notes(inspection, shown)),
        panels="\n".join(_panels(inspection)),
        skipped=_skipped(inspection),
        buckets="\n".join(
            f'<option value="{_sides(bucket)}">{_sides(bucket)}</option>'
            for bucket in sorted({entry.bucket for entry in shown})
        ),
        chips="\n".join(_chips(shown)),
        shown=f"{len(shown)} shown",
        cards="\n".join(_card(entry, names, cards) for entry in shown),
    )


def _safe(text: object) -> str:
    # A file name may hold bytes that are no text: they are shown as such, and the page stays UTF-8.
    return html.escape(str(text).encode("utf-8", "backslashreplace").decode("utf-8"))


def _sides(size: tuple[int, int]) -> str:
    return f"{size[0]}\N{MULTIPLICATION SIGN}{size[1]}"


def _lead(inspection: Inspection) -> str:
    visits = sum(entry.visits for entry in inspection.entries)
    folders = len(inspection.folders)
    return (
        f"{_counted(len(inspection.entries), 'picture')} in {_counted(folders, 'folder')}, "
        f"{visits:,} visits per epoch. Frames show what is cropped; captions are shown as they "
        "are encoded, without dropout."
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _notes(inspection: Inspection, shown: Sequence[Entry]) -> Iterator[str]:
    if len(shown) < len(inspection.entries):
        yield (
            f'<p class="note">The page has cards for {len(shown):,} of '
            f"{len(inspection.entries):,} pictures, those that are marked first; the summary "
            "counts all of them. <code>--limit 0</code> makes a card for each.</p>"
        )
    if any(v.t5_tokens is None for entry in inspection.entries for v in entry.variants[:1]):
        yield (
            '<p class="note">T5 tokens are not counted: no T5 tokenizer is known here. '
            "<code>--t5_tokenizer_dir</code> names its folder; "
            "<code>anima-pipe fetch-tokenizer</code> fetches one.</p>"
        )


def _panels(inspection: Inspection) -> Iterator[str]:
    yield _panel("At a glance", _numbers(inspection), wide=True)
    yield _panel("Buckets", _bucket_table(inspection.entries))
    yield _panel("Shapes, width to height", _shape_bars(inspection.entries))
    yield _panel("Folders", _folder_table(inspection))
    if inspection.tags:
        yield _panel("Tags, by pictures", _tag_buttons(inspection.tags), wide=True)


def _panel(heading: str, content: str, *, wide: bool = False) -> str:
    kind = "panel wide" if wide else "panel"
    return f'<div class="{kind}"><h2>{heading}</h2>{content}</div>'


def _numbers(inspection: Inspection) -> str:
    flags = Counter(flag for entry in inspection.entries for flag in entry.flags)
    pairs = [
        ("pictures", len(inspection.entries)),
        ("skipped", len(inspection.skipped)),
        *((FLAGS[flag][0], flags[flag]) for flag in FLAGS),
        ("most tokens of a caption", max((_tokens(e) for e in inspection.entries), default=0)),
    ]
    rows = (
        f"<div class={'some' if count else 'zero'}><dt>{name}</dt><dd>{count:,}</dd></div>"
        for name, count in pairs
    )
    return f'<dl class="numbers">{"".join(rows)}</dl>'


def _bucket_table(entries: Sequence[Entry]) -> str:
    pictures = Counter(entry.bucket for entry in entries)
    visits = Counter[tuple[int, int]]()
    for entry in entries:
        visits[entry.bucket] += entry.visits
    rows = [
        (_sides(bucket), count, visits[bucket], count / max(pictures.values()))
        for bucket, count in pictures.most_common()
    ]
    body = "".join(
        f"<tr><td>{name}</td><td>{count:,}</td><td>{per_epoch:,}</td>"
        f'<td class="bar"><i style="width:{share:.1%}"></i></td></tr>'
        for name, count, per_epoch, share in rows
    )
    head = "<tr><th>size</th><th>pictures</th><th>visits</th><th></th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _shape_bars(entries: Sequence[Entry]) -> str:
    counts = Counter(_shape(entry.size) for entry in entries)
    tallest = max(counts.values(), default=1)
    bars = (
        f'<div title="{counts[name]:,} near {name}"><b>{counts[name] or ""}</b>'
        f'<i style="height:{counts[name] / tallest * 74:.1f}%"></i>{name}</div>'
        for name, _ in SHAPES
    )
    return f'<div class="shapes">{"".join(bars)}</div>'


def _shape(size: tuple[int, int]) -> str:
    aspect = math.log(size[0] / size[1])
    return min(SHAPES, key=lambda shape: abs(math.log(shape[1]) - aspect))[0]


def _folder_table(inspection: Inspection) -> str:
    body = "".join(
        f'<tr><td class="path">{_safe(folder.path)}</td><td>{folder.pictures:,}</td>'
        f"<td>{folder.repeats}</td><td>{folder.visits:,}</td></tr>"
        for folder in inspection.folders
    )
    head = "<tr><th>folder</th><th>pictures</th><th>repeats</th><th>visits</th></tr>"
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'


def _tag_buttons(tags: Counter[str]) -> str:
    common = sorted(tags.items(), key=lambda item: (-item[1], item[0]))[:COMMON_TAGS]
    buttons = (
        f'<button type="button" data-find="{_safe(tag.lower())}" title="{_safe(tag)}">'
        f"<span>{_safe(tag)}</span><small>{count:,}</small></button>"
        for tag, count in common
    )
    left = len(tags) - len(common)
    more = f" <small>and {left:,} more</small>" if left else ""
    return f'<div class="scroll"><div class="tags">{"".join(buttons)}{more}</div></div>'


def _skipped(inspection: Inspection) -> str:
    if not inspection.skipped:
        return ""
    named = inspection.skipped[:SKIPPED_NAMED]
    items = [f"<li>{_safe(_reason(item))}</li>" for item in named]
    if left := len(inspection.skipped) - len(named):
        items.append(f"<li>and {left:,} more</li>")
    count = _counted(len(inspection.skipped), "file")
    return (
        f'<details class="skipped" open><summary>{count} skipped, and not trained on</summary>'
        f"<ul>{''.join(items)}</ul></details>"
    )


def _reason(skipped: Skipped) -> str:
    """Return why a file is skipped; most reasons name it themselves."""
    if skipped.name in skipped.reason:
        return skipped.reason
    return f"{skipped.name}: {skipped.reason}"


def _chips(shown: Sequence[Entry]) -> Iterator[str]:
    counts = Counter(flag for entry in shown for flag in entry.flags)
    for flag, (name, meaning) in FLAGS.items():
        if counts[flag]:
            yield (
                f'<button type="button" data-flag="{flag}" aria-pressed="false" '
                f'title="{meaning}">{name} <small>{counts[flag]:,}</small></button>'
            )


def _card(entry: Entry, names: Mapping[int, str], cards: set[int]) -> str:
    width, height = entry.size
    facts = {
        "name": entry.path.name,
        "flags": " ".join(sorted(entry.flags)),
        "bucket": _sides(entry.bucket),
        "scale": f"{entry.scale:.4f}",
        "area": width * height,
        "aspect": f"{width / height:.4f}",
        "tokens": _tokens(entry),
        "kin": _kin(entry),
    }
    data = " ".join(f'data-{name}="{_safe(value)}"' for name, value in facts.items())
    return (
        f'<article class="card" id="p{entry.number}" {data}>{_stage(entry)}<div class="body">'
        f'<h3 title="{_safe(entry.path)}">{_safe(entry.path.name)}</h3>'
        f"{_facts(entry)}{_flags(entry)}{_texts(entry)}"
        f"{_others('Same bytes as', entry.same, names, cards)}"
        f"{_others('Looks like', entry.near, names, cards)}</div></article>"
    )


def _tokens(entry: Entry) -> int:
    """Return the tokens of the longest variant."""
    return max((v.tokens for v in entry.variants), default=0)


def _kin(entry: Entry) -> int:
    """Return a number that like pictures share; those that are like none come last."""
    kin = (*entry.same, *entry.near)
    return min(entry.number, *kin) if kin else 10**9 + entry.number


def _stage(entry: Entry) -> str:
    if entry.look.problem:
        return f'<div class="stage"><p class="gone">{_safe(entry.look.problem)}</p></div>'
    frames = "".join(_frame(box, several=len(entry.boxes) > 1) for box in entry.boxes)
    width, height = entry.size
    return (
        f'<div class="stage"><div class="frame"><img loading="lazy" decoding="async" '
        f'width="{width}" height="{height}" style="aspect-ratio:{width}/{height}" '
        f'src="{entry.look.thumbnail}" alt="{_safe(entry.path.name)}">{frames}</div></div>'
    )


def _frame(box: Box, *, several: bool) -> str:
    kind = "crop several" if several else "crop"
    return (
        f'<i class="{kind}" style="left:{box.left:.2%};top:{box.top:.2%};'
        f'width:{box.width:.2%};height:{box.height:.2%}"></i>'
    )


def _facts(entry: Entry) -> str:
    crops = f", {len(entry.boxes)} crops" if len(entry.boxes) > 1 else ""
    mirrored = ", also mirrored" if entry.mirrored else ""
    return (
        f'<p class="facts">{_sides(entry.size)} to <b>{_sides(entry.bucket)}</b>, scaled '
        f"by {entry.scale:.2f}{crops}{mirrored}, {_counted(entry.visits, 'visit')} per epoch</p>"
    )


def _flags(entry: Entry) -> str:
    marks = (
        f'<span class="flag {flag}" title="{meaning}">{name}</span>'
        for flag, (name, meaning) in FLAGS.items()
        if flag in entry.flags
    )
    return f'<p class="flags">{"".join(marks)}</p>' if entry.flags else ""


def _texts(entry: Entry) -> str:
    first, *others = entry.variants
    caption = (
        f'<p class="caption">{_safe(first.text)}</p>'
        if first.text
        else '<p class="caption empty">the empty caption</p>'
    )
    variants = ""
    if others:
        items = (
            f"<li>{_safe(v.text) or '<i>the empty caption</i>'}<small>{_counts(v)}</small></li>"
            for v in entry.variants
        )
        variants = (
            f"<details><summary>{len(entry.variants)} variants</summary>"
            f"<ol>{''.join(items)}</ol></details>"
        )
    return f'<div class="texts">{caption}<p class="tokens">{_counts(first)}</p>{variants}</div>'


def _counts(variant: Variant) -> str:
    t5 = "" if variant.t5_tokens is None else f", T5 {variant.t5_tokens}"
    return f"tokens: Qwen {variant.qwen_tokens}{t5}"


def _others(what: str, others: Sequence[int], names: Mapping[int, str], cards: set[int]) -> str:
    if not others:
        return ""
    links = [
        f'<a href="#p{number}">{_safe(names[number])}</a>'
        if number in cards
        else _safe(names[number])
        for number in others
    ]
    more = ", ..." if len(others) == OTHERS_KEPT else ""
    return f'<p class="kin">{what} {", ".join(links)}{more}</p>'
