"""A run that caches encoded captions and prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from anima_pipe.dataset.links import LinksOut, links_out, refusal
from anima_pipe.dataset.picture_captions import PictureTexts, uncaptioned
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.probes import probes_wanted
from anima_pipe.fill import FillSummary, fill_text
from anima_pipe.hub.tokenizer import complete_t5_tokenizer
from anima_pipe.records import Skipped
from anima_pipe.runs.rejects import Rejects
from anima_pipe.runs.reports import (
    NAMED,
    report_captions,
    report_fill,
    report_links,
    report_long,
    report_skipped,
    report_uncaptioned,
)
from anima_pipe.runs.settings.caching import EncodeTextSettings
from anima_pipe.runtime import launched_rank
from anima_pipe.shards.places import shown_place
from anima_pipe.source.prompts import prompt_texts


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSummary:
    """Counts of distinct texts."""

    encoded: int
    reused: int
    elsewhere: int
    """Missing at the start, and for the other processes of this launch to encode."""
    skipped: int
    """Captions left out, unreadable."""
    failed: int
    links_out: int
    """Links out of the dataset's folders, followed or not."""
    links_out_first: list[str]
    """The first of them, each with where it leads."""
    problems: int
    """Found in the cache as it was: damaged samples, sidecars that had to be rebuilt."""
    shards: int
    """Written in this run."""
    kept_in_bf16: int
    """Of the encoded, those whose values an fp16 cache cannot hold."""
    over_limit: int
    """Of the encoded and the reused, those of more than 512 T5 tokens; they are kept whole."""
    over_limit_first: list[str]
    """How the first of these begin, and how many tokens they have."""
    seconds: float
    cache_dir: str


def encode_text(settings: EncodeTextSettings) -> TextSummary:
    """Collect the texts of datasets and previews, and encode those that the cache lacks.

    Of processes that were launched together, each encodes its part of them.

    Raises:
        CheckpointError: The text encoder's files are not what they should be.
        ConfigError: The T5 tokenizer's files are damaged, or some are missing and there is nowhere
            to fetch them from; or the device is not there.
        DataError: A folder is missing or holds no pictures, no picture of a subset has a caption,
            or, under `strict`, a caption is missing or cannot be used.
        FetchError: No source had the tokenizer's files.
        OutputError: The cache cannot be written; what was encoded until then is kept.
    """
    complete_t5_tokenizer(settings.text.t5_tokenizer_dir, settings.tokenizer_sources)
    refused = refusal(settings.text.cache.folder, follow_links=settings.follow_links)
    pictures = find_pictures(settings.datasets, links_refused=refused)
    links = links_out(pictures)
    rank = launched_rank()
    if rank.number == 0:
        report_links(links)
        report_uncaptioned(uncaptioned(pictures), strict=settings.strict)
    probes = probes_wanted(settings.leakage, pictures)
    texts = PictureTexts(
        pictures,
        caption_variants=settings.caption_variants,
        others=[*prompt_texts(settings.prompts), *(probes.texts if probes else ())],
    )
    filled = fill_text(texts, settings.text, rank)
    report_fill("texts", filled, rank)
    report_long(filled.long)
    if rank.number == 0:
        report_captions(texts.notes, texts.weighted)
    # Every process finds the same unreadable captions: the first one names them.
    unreadable = texts.skipped if rank.number == 0 else ()
    rejects = Rejects.of("encode-text", settings.rejects, settings.text.cache.folder)
    report_skipped([*unreadable, *filled.failed], strict=settings.strict, rejects=rejects)
    return _summary(filled, texts.skipped, links, shown_place(settings.text.cache.folder))


def _summary(
    filled: FillSummary, skipped: Sequence[Skipped], links: LinksOut, cache_dir: str
) -> TextSummary:
    return TextSummary(
        encoded=filled.encoded,
        reused=filled.reused,
        elsewhere=filled.elsewhere,
        skipped=len(skipped),
        failed=len(filled.failed),
        links_out=links.count,
        links_out_first=list(links.first),
        problems=len(filled.problems),
        shards=filled.shards,
        kept_in_bf16=filled.kept_in_bf16,
        over_limit=len(filled.long),
        over_limit_first=[f"{text.name}: {text.reason}" for text in filled.long[:NAMED]],
        seconds=round(filled.seconds, 3),
        cache_dir=cache_dir,
    )
