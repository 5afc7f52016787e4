"""From the settings of a run to its data: dataset surveyed, caches filled, batches planned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_, or_
from typing import TYPE_CHECKING

from anima_pipe.dataset.batches import Batches
from anima_pipe.dataset.damaged import damaged_pictures
from anima_pipe.dataset.links import refusal
from anima_pipe.dataset.pictures import find_pictures
from anima_pipe.dataset.plan import Plan, plan_from_cache
from anima_pipe.dataset.probes import Probes, probes_wanted
from anima_pipe.dataset.survey import Survey, survey_pictures
from anima_pipe.dataset.visits import samples_digest
from anima_pipe.errors import DataError
from anima_pipe.fill import fill_latents, fill_masks, fill_text
from anima_pipe.records import Text
from anima_pipe.runs.rejects import Rejects
from anima_pipe.runs.reports import (
    NAMED,
    all_rejects_told,
    report_fill,
    report_links,
    report_long,
    report_surveyed_captions,
    report_surveyed_pictures,
)
from anima_pipe.runs.settings.training import DataSettings, TrainSettings
from anima_pipe.shards import Cache, open_cache
from anima_pipe.source.damage import Damaged
from anima_pipe.source.prompts import prompt_texts
from anima_pipe.trainer import first_process_first, gathered

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedData:
    """What a run trains on."""

    survey: Survey
    cache: Cache
    batches: Batches
    """Of this process."""
    probes: Probes | None
    """What is looked at where every save is measured; None: it is not."""

    @property
    def plan(self) -> Plan:
        """What all processes train on, in order."""
        return self.batches.plan


def prepare_data(settings: TrainSettings, seed: int, accelerator: Accelerator) -> PreparedData:
    """Survey the dataset, cache what is missing, plan, and take this process's batches.

    Args:
        settings: Of the run.
        seed: Of the order of the batches and of everything drawn.
        accelerator: Of the run; the first process fills the caches for all.

    Raises:
        DataError: No picture can be trained on; where `strict` is set, one of them cannot.
        CacheError: Something is not cached, and `auto_cache` is off.
    """
    data = settings.data
    refused = refusal(data.cache.folder, follow_links=data.follow_links)
    pictures = find_pictures(data.datasets, links_refused=refused)
    probes = probes_wanted(settings.leakage, pictures)
    rejects = Rejects.of("train", data.rejects, data.cache.folder)
    # The first process alone knows what could not be decoded.
    listed = rejects if accelerator.is_main_process else None
    found: list[Damaged] = []
    with all_rejects_told(listed):
        survey = survey_pictures(
            pictures,
            caption_variants=data.caption_variants,
            crop_variants=data.crop_variants,
            cache_dir=data.cache.folder,
            rehash=data.rehash,
            max_image_pixels=data.max_image_pixels,
        )
        report_links(survey.links)
        report_surveyed_captions(survey, strict=data.strict)
        if data.auto_cache:
            prompts = settings.previews.prompts if settings.previews else ()
            others = [*prompt_texts(prompts), *(probes.texts if probes else ())]
            survey, found = _filled(survey, data, others, accelerator)
    damaged = damaged_pictures(survey, data.cache.folder, found)
    report_surveyed_pictures(survey, strict=data.strict, damaged=damaged, rejects=listed)
    cache = open_cache(
        data.cache.folder,
        data.latents.cache_name if data.latents else None,
        data.text.cache_name if data.text else None,
    )
    plan = plan_from_cache(survey, cache, seed)
    _refuse_different_plans(plan, accelerator)
    return PreparedData(
        survey=survey,
        cache=cache,
        batches=_batches(settings, plan, cache, accelerator),
        probes=probes,
    )


def _refuse_different_plans(plan: Plan, accelerator: Accelerator) -> None:
    """Make sure that all processes take their batches from one plan.

    Raises:
        DataError: They see different pictures or captions: some would be trained on twice, others
            never.
    """
    if accelerator.num_processes == 1:
        return
    own = plan.digest(), samples_digest(plan.held_out)
    if len(set(gathered(accelerator, own))) == 1:
        return
    names = [sample.name for sample in (*plan.samples, *plan.held_out)]
    seen = [Counter(theirs) for theirs in gathered(accelerator, names)]
    everywhere, anywhere = reduce(and_, seen), reduce(or_, seen)
    missing = sorted(anywhere - everywhere)
    first = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
    raise DataError(
        f"the {len(seen)} processes of this run would train on different data: "
        + (f"not all of them have {first}" if missing else "pictures or captions differ"),
        "let all of them read the same files, or equal copies, and start again",
    )


def _filled(
    survey: Survey,
    data: DataSettings,
    others: Sequence[Text],
    accelerator: Accelerator,
) -> tuple[Survey, list[Damaged]]:
    """Encode what the caches lack.

    Args:
        survey: Of the dataset.
        data: How it is encoded.
        others: Texts that are needed besides.
        accelerator: Of the run.

    Returns:
        The survey without what turned out unreadable, and what turned out damaged.
    """
    assert data.latents is not None
    assert data.text is not None
    # The first process fills the caches; the others wait, and find nothing missing.
    with first_process_first(accelerator):
        latents = fill_latents(survey.latents, data.latents)
        masks = fill_masks(survey.masks, data.latents)
        wanted = dict.fromkeys([*survey.captions, *others])
        texts = fill_text(list(wanted), data.text)
    report_fill("latents", latents)
    if survey.masks:
        report_fill("masks", masks)
    report_fill("texts", texts)
    report_long(texts.long)
    whole = survey.without(latents.lost | masks.lost, [*latents.failed, *masks.failed])
    return whole, [*latents.damaged, *masks.damaged]


def _batches(
    settings: TrainSettings, plan: Plan, cache: Cache, accelerator: Accelerator
) -> Batches:
    """Return this process's part of the plan's batches."""
    batches = Batches(
        plan=plan,
        cache=cache,
        accumulation=settings.length.gradient_accumulation_steps,
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    steps = settings.length.total_steps(batches.windows_per_epoch())
    return replace(batches, max_train_steps=steps)
