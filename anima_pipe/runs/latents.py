"""A run that caches latents and masks."""

from __future__ import annotations

from dataclasses import dataclass

from anima_pipe.dataset.damaged import damaged_pictures
from anima_pipe.dataset.links import refusal
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.survey import Survey, survey_pictures
from anima_pipe.fill import FillSummary, fill_latents, fill_masks
from anima_pipe.runs.rejects import Rejects
from anima_pipe.runs.reports import all_rejects_told, report_fill, report_links, report_skipped
from anima_pipe.runs.settings.caching import CacheLatentsSettings
from anima_pipe.runtime import launched_rank
from anima_pipe.shards.places import shown_place


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSummary:
    """Counts of latents; with flip_aug or random_crop a picture has several, and as many masks."""

    encoded: int
    reused: int
    elsewhere: int
    """Missing at the start, and for the other processes of this launch to encode."""
    skipped: int
    """Pictures left out, unreadable at first sight."""
    failed: int
    """Pictures left out because their pixels, or those of their masks, could not be read."""
    damaged: int
    """Pictures and masks of damaged data, which are used as they decode."""
    links_out: int
    """Links out of the dataset's folders, followed or not."""
    links_out_first: list[str]
    """The first of them, each with where it leads."""
    masks_encoded: int
    masks_reused: int
    problems: int
    """Found in the cache as it was: damaged samples, sidecars that had to be rebuilt."""
    shards: int
    """Written in this run."""
    seconds: float
    cache_dir: str


def cache_latents(settings: CacheLatentsSettings) -> LatentSummary:
    """Survey the pictures of datasets, and encode the latents and masks that the cache lacks.

    Of processes that were launched together, each encodes its part of them.

    Raises:
        CheckpointError: The VAE's file is not one.
        ConfigError: The device is not there.
        DataError: A folder is missing or holds no pictures, a picture has no mask in its subset's
            folder of masks, or no picture can be used; under `strict`, if one cannot.
        OutputError: The cache cannot be written; what was encoded until then is kept.
    """
    cache = settings.latents.cache.folder
    refused = refusal(cache, follow_links=settings.follow_links)
    rejects = Rejects.of("cache-latents", settings.rejects, cache)
    with all_rejects_told(rejects):
        survey = survey_pictures(
            find_pictures(settings.datasets, links_refused=refused),
            caption_variants=0,
            crop_variants=settings.crop_variants,
            cache_dir=cache,
            rehash=settings.rehash,
            max_image_pixels=settings.max_image_pixels,
        )
    rank = launched_rank()
    if rank.number == 0:
        report_links(survey.links)
    filled = fill_latents(survey.latents, settings.latents, rank)
    report_fill("latents", filled, rank)
    masks = fill_masks(survey.masks, settings.latents, rank)
    if survey.masks:
        report_fill("masks", masks, rank)
    skipped = survey.skipped if rank.number == 0 else ()  # every process finds the same ones
    failed = list(dict.fromkeys([*filled.failed, *masks.failed]))
    found = [*filled.damaged, *masks.damaged]
    damaged = damaged_pictures(survey, cache if rank.number == 0 else None, found)
    report_skipped([*skipped, *failed], strict=settings.strict, damaged=damaged, rejects=rejects)
    return _summary(filled, masks, survey, len(failed), len(damaged), shown_place(cache))


def _summary(
    filled: FillSummary,
    masks: FillSummary,
    survey: Survey,
    failed: int,
    damaged: int,
    cache_dir: str,
) -> LatentSummary:
    return LatentSummary(
        encoded=filled.encoded,
        reused=filled.reused,
        elsewhere=filled.elsewhere + masks.elsewhere,
        skipped=len(survey.skipped),
        failed=failed,
        damaged=damaged,
        links_out=survey.links.count,
        links_out_first=list(survey.links.first),
        masks_encoded=masks.encoded,
        masks_reused=masks.reused,
        problems=len(filled.problems) + len(masks.problems),
        shards=filled.shards + masks.shards,
        seconds=round(filled.seconds + masks.seconds, 3),
        cache_dir=cache_dir,
    )
