"""Stage 2: choose a bucket for every picture, and cache what the VAE makes of it, and masks.

Reads   the dataset's pictures and masks, the VAE
Writes  shards of latents and masks under the cache folder; what is there is not encoded again
Costs   the VAE's time; a second when nothing has changed

Launched several times at once (accelerate launch --num_processes N -m ...), on one machine or on
several that share the folders, each process encodes its part of what is missing.
"""

from __future__ import annotations

from dataclasses import dataclass

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.kohya.resolved import Resolved


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
    masks_encoded: int
    masks_reused: int
    problems: int
    """Found in the cache as it was: damaged samples, sidecars that had to be rebuilt."""
    shards: int
    """Written in this run."""
    seconds: float
    cache_dir: str


def run(options: Resolved) -> LatentSummary:
    """Survey the dataset's pictures and encode those that the cache lacks."""
    from anima_pipe.dataset.pictures import find_pictures
    from anima_pipe.dataset.survey import survey_pictures
    from anima_pipe.fill import fill_latents, fill_masks
    from anima_pipe.kohya.settings import dataset_configs, latent_settings
    from anima_pipe.runs.reports import report_fill, report_skipped
    from anima_pipe.runtime import launched_rank
    from anima_pipe.shards.places import shown_place

    settings = latent_settings(options)
    survey = survey_pictures(
        find_pictures(dataset_configs(options)),
        caption_variants=0,
        crop_variants=options.value("crop_variants"),
        cache_dir=settings.cache.folder,
        rehash=options.value("rehash"),
    )
    rank = launched_rank()
    filled = fill_latents(survey.latents, settings, rank)
    report_fill("latents", filled, rank)
    masks = fill_masks(survey.masks, settings, rank)
    if survey.masks:
        report_fill("masks", masks, rank)
    skipped = survey.skipped if rank.number == 0 else ()  # every process finds the same ones
    failed = list(dict.fromkeys([*filled.failed, *masks.failed]))
    report_skipped([*skipped, *failed], strict=options.value("strict"))
    return LatentSummary(
        encoded=filled.encoded,
        reused=filled.reused,
        elsewhere=filled.elsewhere + masks.elsewhere,
        skipped=len(survey.skipped),
        failed=len(failed),
        masks_encoded=masks.encoded,
        masks_reused=masks.reused,
        problems=len(filled.problems) + len(masks.problems),
        shards=filled.shards + masks.shards,
        seconds=round(filled.seconds + masks.seconds, 3),
        cache_dir=shown_place(settings.cache.folder),
    )


command = stage_command("cache-latents", run, __doc__)

if __name__ == "__main__":
    command()
