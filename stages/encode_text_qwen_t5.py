"""Stage 3: render every caption's variants, and cache what Qwen3 and the T5 tokenizer make of them.

Reads   the dataset's captions, Qwen3, the T5 tokenizer, the prompts of previews
Writes  text shards under the cache folder; texts already there are not encoded again
Costs   Qwen3's time; a second when nothing has changed

Launched several times at once (accelerate launch --num_processes N -m ...), on one machine or on
several that share the folders, each process encodes its part of what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.kohya.resolved import Resolved


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


def run(options: Resolved) -> TextSummary:
    """Collect the dataset's texts and encode those that the cache lacks."""
    from anima_pipe.dataset.picture_captions import PictureTexts, uncaptioned
    from anima_pipe.dataset.pictures import find_pictures
    from anima_pipe.fill import fill_text
    from anima_pipe.kohya.model_files import with_tokenizer
    from anima_pipe.kohya.settings import (
        dataset_configs,
        preview_prompts,
        text_settings,
    )
    from anima_pipe.runs.reports import (
        NAMED,
        report_captions,
        report_fill,
        report_long,
        report_skipped,
        report_uncaptioned,
    )
    from anima_pipe.runtime import launched_rank
    from anima_pipe.shards.places import shown_place
    from anima_pipe.source.prompts import prompt_texts

    options = with_tokenizer(options).options
    settings = text_settings(options)
    pictures = find_pictures(dataset_configs(options))
    strict = options.value("strict")
    rank = launched_rank()
    if rank.number == 0:
        report_uncaptioned(uncaptioned(pictures), strict=strict)
    texts = PictureTexts(
        pictures,
        caption_variants=options.value("caption_variants"),
        others=prompt_texts(preview_prompts(options)),
    )
    filled = fill_text(texts, settings, rank)
    report_fill("texts", filled, rank)
    report_long(filled.long)
    if rank.number == 0:
        report_captions(texts.notes, texts.weighted)
    # Every process finds the same unreadable captions: the first one names them.
    report_skipped([*(texts.skipped if rank.number == 0 else ()), *filled.failed], strict=strict)
    return TextSummary(
        encoded=filled.encoded,
        reused=filled.reused,
        elsewhere=filled.elsewhere,
        skipped=len(texts.skipped),
        failed=len(filled.failed),
        problems=len(filled.problems),
        shards=filled.shards,
        kept_in_bf16=filled.kept_in_bf16,
        over_limit=len(filled.long),
        over_limit_first=[f"{text.name}: {text.reason}" for text in filled.long[:NAMED]],
        seconds=round(filled.seconds, 3),
        cache_dir=shown_place(settings.cache.folder),
    )


command = stage_command("encode-text", run, __doc__)

if __name__ == "__main__":
    command()
