"""--debug_dataset: what every sample of the first epoch would be, without any model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anima_pipe.kohya.resolved import Resolved
from anima_pipe.runtime import launched_rank, say, show

if TYPE_CHECKING:
    from anima_pipe.dataset.plan import Plan, Visit
    from anima_pipe.dataset.survey import Survey


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownDataset:
    """What was shown instead of training."""

    images: int
    """To be trained on."""
    visits: int
    """Of the first epoch."""
    batches: int
    """Of the first epoch."""
    skipped: int
    """Pictures that cannot be used."""


def show_dataset(options: Resolved) -> ShownDataset:
    """Print the plan, and each visit of the first epoch in the order of training.

    Nothing is encoded and nothing trained. Without a seed the order is that of seed 0; a run would
    draw one of its own.

    Raises:
        ConfigError: The dataset's description is wrong.
        DataError: Not one picture can be used.
    """
    from anima_pipe.dataset.damaged import damaged_pictures
    from anima_pipe.dataset.links import refusal
    from anima_pipe.dataset.pictures import find_pictures
    from anima_pipe.dataset.plan import describe, make_plan
    from anima_pipe.dataset.survey import survey_pictures
    from anima_pipe.encoders.t5_tokens import t5_counter
    from anima_pipe.kohya.caching import cache_settings
    from anima_pipe.kohya.datasets import dataset_configs
    from anima_pipe.kohya.model_files import known_tokenizer
    from anima_pipe.kohya.objective import warn_of_idle_offsets
    from anima_pipe.runs.reports import report_links, report_long_captions, report_survey
    from anima_pipe.shards.keys import text_key

    datasets = dataset_configs(options)
    cache_dir = cache_settings(options).folder
    refused = refusal(cache_dir, follow_links=options.value("follow_links"))
    survey = survey_pictures(
        find_pictures(datasets, links_refused=refused),
        caption_variants=options.value("caption_variants"),
        crop_variants=options.value("crop_variants"),
        cache_dir=cache_dir,
        rehash=options.value("rehash"),
        max_image_pixels=options.value("max_image_pixels"),
    )
    captions = {text_key(caption): caption for caption in survey.captions}
    seed: int = options.value("seed", unset=0)
    plan = make_plan(survey, survey.latents, captions, survey.masks, seed=seed)
    # Every process of a launch has the same to show.
    if launched_rank().number == 0:
        warn_of_idle_offsets(options, datasets)
        report_links(survey.links)
        report_survey(
            survey,
            strict=options.value("strict"),
            damaged=damaged_pictures(survey, cache_dir),
        )
        report_long_captions(survey, t5_counter(known_tokenizer(options)))
        say(*describe(plan), f"seed        {seed}")
        for line in _lines(plan, survey, captions, options):
            show(line)
    return ShownDataset(
        images=len(plan.samples),
        visits=sum(sample.repeats for sample in plan.samples),
        batches=plan.batches_per_epoch(),
        skipped=len(survey.skipped),
    )


def _lines(
    plan: Plan, survey: Survey, captions: dict[str, str], options: Resolved
) -> Iterator[str]:
    from anima_pipe.kohya.objective import takes_offsets

    # As in training: every process brings so many batches to a step.
    per_step = launched_rank().processes * options.value("gradient_accumulation_steps")
    per_epoch = -(-plan.batches_per_epoch() // per_step)
    epochs: int | None = options.value("max_train_epochs")
    steps: int = options.value("max_train_steps") if epochs is None else epochs * per_epoch
    shifts = takes_offsets(options)
    for number, batch in enumerate(plan.epoch(0)):
        step = number // per_step
        for visit in batch:
            shown = visit.at_step(step, steps)
            yield f"step {step + 1}: {_line(shown, survey, captions, shifts=shifts)}"


def _line(visit: Visit, survey: Survey, captions: dict[str, str], *, shifts: bool) -> str:
    latent = survey.latents[visit.latent]
    (width, height), (left, top) = latent.choice.bucket, latent.choice.crop
    of_width, of_height = latent.choice.resized
    facts = [
        f"{width}x{height} of {of_width}x{of_height} at {left},{top}",
        *(["mirrored"] if latent.flipped else []),
        *(["masked"] if visit.mask else []),
        *([f"loss weight {visit.loss_weight:g}"] if visit.loss_weight != 1 else []),
        *([f"noise shift {visit.sigma_offset:g}"] if shifts and visit.sigma_offset else []),
    ]
    return f"{visit.name} ({', '.join(facts)}) {captions[visit.text]!r}"
