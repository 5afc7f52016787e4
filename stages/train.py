"""Stage 4: train an adapter on the cached latents and texts.

Reads   latent and text shards, the transformer; the VAE only to draw previews
Writes  adapters, previews and logs; with --auto_cache (the default) also missing shards
Costs   the transformer's memory in the run's precision, plus the adapter and its optimizer
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from anima_pipe.cli.stage_command import stage_command
from anima_pipe.kohya.resolved import Resolved
from anima_pipe.runtime import Rank, counted, say, warn

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

    from anima_pipe.cli.show_dataset import ShownDataset
    from anima_pipe.dataset.batches import Batches
    from anima_pipe.dataset.plan import Plan
    from anima_pipe.dataset.survey import Survey
    from anima_pipe.hooks.previews import Previews
    from anima_pipe.hooks.state_saving import StateSaver
    from anima_pipe.model import AnimaTransformer
    from anima_pipe.objective.noise_chart import NoiseChart
    from anima_pipe.records import Moment
    from anima_pipe.runs.settings.training import TrainSettings
    from anima_pipe.shards import Cache
    from anima_pipe.trainer import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSummary:
    """What a run came to."""

    steps: int
    """Done in all, those before a resumption included."""
    first_loss: float | None
    """Mean over the first steps of this run, at most 10; None where none was taken."""
    final_loss: float | None
    """Mean over the last steps, at most 10."""
    skipped_steps: int
    """Passed over, for their loss or gradient was not finite."""
    output: str | None
    """The adapter; None where the run was stopped before its end."""
    state_dir: str | None
    """The state saved last, to go on from."""
    contact_sheet: str | None
    seconds: float


def run(options: Resolved) -> TrainSummary | NoiseChart | ShownDataset:
    """Train, or only show the noise levels or the samples that training would draw."""
    from anima_pipe.cli.show_dataset import show_dataset
    from anima_pipe.cli.show_timesteps import show_timesteps

    if options.value("show_timesteps"):
        return show_timesteps(options)
    return show_dataset(options) if options.value("debug_dataset") else train(options)


def train(options: Resolved) -> TrainSummary:
    """Join the other processes, if there are any; train, and part from them."""
    from anima_pipe.kohya.model_files import with_tokenizer
    from anima_pipe.kohya.training import process_config
    from anima_pipe.runtime import claim_device, launched_rank, speak_of_errors_only
    from anima_pipe.trainer import (
        deterministic_kernels,
        ending_training,
        start_accelerate,
        take_fsdp_request,
    )

    started = time.monotonic()
    if options.value("auto_cache"):
        options = with_tokenizer(options).options
    device = claim_device(options.value("device"))
    sharded = launched_rank() if take_fsdp_request() else None
    accelerator = start_accelerate(
        options.value("mixed_precision"), process_config(options), cpu=device.type == "cpu"
    )
    if not accelerator.is_main_process:
        speak_of_errors_only()
    kernels = deterministic_kernels(wanted=options.value("deterministic"))
    with kernels, ending_training(accelerator):
        return train_together(options, accelerator, sharded, started)


def train_together(
    options: Resolved, accelerator: Accelerator, sharded: Rank | None, started: float
) -> TrainSummary:
    """Fill the caches, plan, load, train and save."""
    from anima_pipe.files import make_folder
    from anima_pipe.hooks.state_saving import StateSaver
    from anima_pipe.kohya.metadata import described
    from anima_pipe.kohya.training import train_settings, with_save_ratio
    from anima_pipe.model import TextConditionedTransformer
    from anima_pipe.runs import prepare
    from anima_pipe.runs.hooks import hooks_in_order, make_averages, open_log, parts_in_state
    from anima_pipe.runs.interrupts import stopped_by_signals
    from anima_pipe.runs.memory_needs import largest_batch, memory_explained, memory_needs
    from anima_pipe.runs.reports import report_plan
    from anima_pipe.runs.resuming import resume_if_asked
    from anima_pipe.trainer import StopRequest, Tally, agree_on_seed

    settings = train_settings(options, agree_on_seed(accelerator))
    make_folder(settings.save.folder)
    if settings.logs.trackers:
        make_folder(settings.logs.trackers.folder.parent)
    check_model_files(settings)
    survey, plan, cache = prepare_data(settings, accelerator)
    batches = prepare_batches(settings, plan, cache, accelerator)
    settings = with_save_ratio(settings, options, batches.windows_per_epoch())
    settings = described(settings, options, survey, batches)
    transformer, adapter = prepare.prepare_model(settings, accelerator.device, sharded)
    module = TextConditionedTransformer(transformer)
    adapter.follow_sigmas(module)
    previews = prepare_previews(settings, transformer, cache, accelerator.device)
    training = prepare.prepare_training(settings, accelerator, adapter, module, batches)
    averages, tally, stop = make_averages(settings, training), Tally(), StopRequest()
    parts = parts_in_state(settings, training, averages, tally)
    needs = memory_needs(
        adapter,
        settings.optimizer.kind,
        largest_batch(plan),
        accelerator.device,
        in_8_bits=settings.model.eight_bit,
        processes=sharded.processes if sharded else 1,
    )
    report_plan(
        training, needs, settings.data.text.t5_tokenizer_dir if settings.data.text else None
    )
    steps_done = resume_if_asked(settings, parts, training)
    states = StateSaver(parts, settings.states.config)
    log = open_log(settings.logs, accelerator, steps_done)
    hooks = hooks_in_order(settings, training, averages, states, previews, log, stop)
    trainer = training.trainer(hooks, stop, tally)
    with stopped_by_signals(stop), memory_explained(needs):
        end = trainer.run(steps_done)
    report_end(settings, tally, end, previews)
    return summary_of(settings, tally, end, states, previews, started)


def summary_of(
    settings: TrainSettings,
    tally: Tally,
    end: Moment,
    states: StateSaver,
    previews: Previews | None,
    started: float,
) -> TrainSummary:
    """Return what a run came to; `started` is of the monotonic clock."""
    from anima_pipe.hooks.tracking import loss_ends

    ends = loss_ends(tally.losses)
    return TrainSummary(
        steps=end.step,
        first_loss=ends[0] if ends else None,
        final_loss=ends[1] if ends else None,
        skipped_steps=tally.skipped_steps,
        output=str(settings.save.final_path) if end.is_last else None,
        state_dir=str(states.last) if states.last else None,
        contact_sheet=str(previews.sheet_path) if previews else None,
        seconds=round(time.monotonic() - started, 3),
    )


def check_model_files(settings: TrainSettings) -> None:
    """Find out in seconds, not after hours of encoding, that a file is missing or does not fit.

    Raises:
        CheckpointError: It is, or does not.
    """
    import torch

    from anima_pipe.adapters.files import fitting_deltas
    from anima_pipe.encoders.fingerprints import text_fingerprint, vae_fingerprint
    from anima_pipe.model import AnimaTransformer, read_transformer_config

    config = read_transformer_config(settings.model.transformer, settings.model.llm_adapter)
    with torch.device("meta"):
        skeleton = AnimaTransformer(config)
    started_from = [settings.model.start_from] if settings.model.start_from else []
    for adapter in (*started_from, *(path for path, _ in settings.model.base_weights)):
        fitting_deltas(adapter, skeleton, allow_unmatched=settings.model.allow_unmatched)
    if latents := settings.data.latents:
        vae_fingerprint(latents.vae)
    if text := settings.data.text:
        text_fingerprint(text.qwen, text.t5_tokenizer_dir)


def prepare_data(settings: TrainSettings, accelerator: Accelerator) -> tuple[Survey, Plan, Cache]:
    """Survey the dataset, fill what the caches lack, and join the two."""
    from anima_pipe.dataset.pictures import find_pictures
    from anima_pipe.dataset.plan import make_plan
    from anima_pipe.dataset.survey import survey_pictures
    from anima_pipe.fill import fill_latents, fill_masks, fill_text
    from anima_pipe.records import T5_LIMIT
    from anima_pipe.runs.reports import (
        report_fill,
        report_long,
        report_surveyed_captions,
        report_surveyed_pictures,
    )
    from anima_pipe.shards import open_cache
    from anima_pipe.source.prompts import prompt_texts
    from anima_pipe.trainer import first_process_first

    data = settings.data
    survey = survey_pictures(
        find_pictures(data.datasets),
        caption_variants=data.caption_variants,
        crop_variants=data.crop_variants,
        cache_dir=data.cache.folder,
        rehash=data.rehash,
    )
    report_surveyed_captions(survey, strict=data.strict)
    prompts = settings.previews.prompts if settings.previews else ()
    if data.fills_gaps:
        assert data.latents is not None
        assert data.text is not None
        # The first process fills the caches; the others wait, and find nothing missing.
        with first_process_first(accelerator):
            latents = fill_latents(survey.latents, data.latents)
            masks = fill_masks(survey.masks, data.latents)
            wanted = dict.fromkeys([*survey.captions, *prompt_texts(prompts)])
            texts = fill_text(list(wanted), data.text)
        report_fill("latents", latents)
        if survey.masks:
            report_fill("masks", masks)
        report_fill("texts", texts)
        report_long(texts.long)
        lost = latents.lost | masks.lost
        survey = survey.without(lost, [*latents.failed, *masks.failed])
    report_surveyed_pictures(survey, strict=data.strict)
    cache = open_cache(
        data.cache.folder,
        data.latents.cache_name if data.latents else None,
        data.text.cache_name if data.text else None,
    )
    held = (cache.latents.keys(), cache.text.keys(), cache.masks.keys())
    long_texts = cache.text.longer_than(T5_LIMIT, "t5_ids")
    plan = make_plan(survey, *held, seed=settings.seed, long_texts=long_texts)
    return survey, plan, cache


def prepare_batches(
    settings: TrainSettings, plan: Plan, cache: Cache, accelerator: Accelerator
) -> Batches:
    """Return this process's share of the plan's batches."""
    from anima_pipe.dataset.batches import Batches

    batches = Batches(
        plan=plan,
        cache=cache,
        accumulation=settings.length.accumulation,
        processes=accelerator.num_processes,
        rank=accelerator.process_index,
    )
    steps = settings.length.total_steps(batches.windows_per_epoch())
    return replace(batches, max_train_steps=steps)


def prepare_previews(
    settings: TrainSettings, transformer: AnimaTransformer, cache: Cache, device: torch.device
) -> Previews | None:
    """Return the hook that draws previews; the VAE is loaded when the first one is drawn."""
    if settings.previews is None:
        return None
    from anima_pipe.drawing.painter import LazyVae, Painter, encoded_prompts
    from anima_pipe.hooks.previews import Previews

    vae = LazyVae(settings.previews.vae, device)
    return Previews(
        Painter(transformer, vae, device, settings.model.dtype),
        encoded_prompts(settings.previews.prompts, cache),
        settings.previews.config,
        finished=vae.release,
    )


def report_end(
    settings: TrainSettings, tally: Tally, end: Moment, previews: Previews | None
) -> None:
    """Say what a run came to."""
    from anima_pipe.hooks.tracking import loss_ends

    if tally.skipped_steps:
        warn(f"{counted(tally.skipped_steps, 'step')} passed over: loss or gradient was not finite")
    if not end.is_last:
        return
    ends = loss_ends(tally.losses)
    losses = f", loss {ends[0]:.4f} to {ends[1]:.4f}" if ends else ""
    say(f"trained   {settings.save.final_path}{losses}")
    if previews:
        say(f"previews  {previews.sheet_path}")


command = stage_command("train", run, __doc__)

if __name__ == "__main__":
    command()
