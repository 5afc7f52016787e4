"""Training as a call: from the settings of a run to its files, its log and a summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch

from anima_pipe.adapters.sharded import sharded_tensors
from anima_pipe.dataset.probes import Probes
from anima_pipe.files import make_folder
from anima_pipe.hooks.leakage import BestSave
from anima_pipe.hooks.previews import Previews
from anima_pipe.hooks.state_saving import StateSaver
from anima_pipe.hooks.tracking import loss_ends
from anima_pipe.hooks.train_state import state_seed
from anima_pipe.model import AnimaTransformer, TextConditionedTransformer
from anima_pipe.records import Moment
from anima_pipe.runs.checks import (
    check_base,
    check_model_files,
    check_parts,
    check_processes,
    check_whole_model,
)
from anima_pipe.runs.data import prepare_data
from anima_pipe.runs.hooks import hooks_in_order, make_averages, open_log, parts_in_state
from anima_pipe.runs.interrupts import stopped_by_signals
from anima_pipe.runs.leakage import prepare_leakage, report_best
from anima_pipe.runs.logs import tracker_config
from anima_pipe.runs.memory_needs import MemoryNeeds, largest_batch, memory_explained, memory_needs
from anima_pipe.runs.outputs import prepare_previews, rehearse_saves, save_config, state_config
from anima_pipe.runs.prepare import Training, prepare_training
from anima_pipe.runs.reports import report_plan
from anima_pipe.runs.resuming import resume_if_asked
from anima_pipe.runs.settings.training import TrainSettings
from anima_pipe.runs.sole_writer import sole_writer
from anima_pipe.runs.ways import way_of
from anima_pipe.runtime import (
    Rank,
    claim_device,
    counted,
    launched_rank,
    say,
    speak_of_errors_only,
    warn,
)
from anima_pipe.trainer import (
    Hook,
    StopRequest,
    Tally,
    TrackerConfig,
    accelerate_afresh,
    agree_on_seed,
    deterministic_kernels,
    ending_training,
    start_accelerate,
    take_fsdp_request,
)

if TYPE_CHECKING:
    from accelerate import Accelerator


Hooks: TypeAlias = Sequence[Hook] | Callable[[Training], Sequence[Hook]]


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
    links_out: int
    """Links out of the dataset's folders, followed or not."""
    output: str | None
    """The adapter, or the checkpoint; None where the run was stopped before its end."""
    state_dir: str | None
    """The state saved last, to go on from."""
    contact_sheet: str | None
    best_save: str | None = None
    """The save that learned most while leaking least, where several were measured."""
    seconds: float = 0.0
    """All that the run took, caches and loading included."""


def train(
    settings: TrainSettings,
    hooks: Hooks = (),
    *,
    base: AnimaTransformer | None = None,
    stop: StopRequest | None = None,
) -> TrainSummary:
    """Train an adapter, or the model itself; what the caches lack is encoded first.

    One at a time in a process. What accelerate and torch's random generators knew before, they know
    again afterwards. Under `accelerate launch`, every process calls this, and they train together;
    at the end they part, so that it is one run for each launch.

    Args:
        settings: Of the run.
        hooks: The caller's own, on every process, or what makes them of the run's parts;
            `runs.hooks.hooks_in_order` says when they act.
        base: From `load_base` with the same model settings, on the device of the run, so that
            several trainings share it; it is left without the adapter. None: it is loaded.
        stop: The caller's; once it is made, the run ends after the next step, with its state saved.

    Raises:
        PipeError: With `problem` and `remedy`: a setting cannot be honoured, a file is missing or
            damaged, nothing can be trained on, the loss is not finite, memory is at its end.
    """
    started = time.monotonic()
    device = claim_device(settings.device)
    check_whole_model(settings, has_base=base is not None)
    check_processes(settings, launched_rank().processes, has_base=base is not None)
    with accelerate_afresh(), torch.random.fork_rng(_gpus(device)):
        sharded = launched_rank() if take_fsdp_request() else None
        accelerator = start_accelerate(
            settings.model.mixed_precision, settings.processes, cpu=device.type == "cpu"
        )
        if not accelerator.is_main_process:
            speak_of_errors_only()
        kernels = deterministic_kernels(wanted=settings.deterministic)
        with kernels, ending_training(accelerator):
            summary = _train(settings, hooks, base, stop or StopRequest(), accelerator, sharded)
    return replace(summary, seconds=round(time.monotonic() - started, 3))


def _gpus(device: torch.device) -> list[int]:
    """Return the numbers of the GPUs that a run on a device draws on."""
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device == torch.device("cuda") else device.index]


def _train(
    settings: TrainSettings,
    hooks: Hooks,
    base: AnimaTransformer | None,
    stop: StopRequest,
    accelerator: Accelerator,
    sharded: Rank | None,
) -> TrainSummary:
    """Fill the caches, plan, load, and train."""
    seed = _seed(settings, accelerator)
    trackers = tracker_config(settings)
    check_parts(settings)
    if base is not None:
        check_base(base, settings.model, accelerator.device)
    check_model_files(settings)
    rehearse_saves(settings.save)
    with sole_writer(settings.save, accelerator):
        if trackers:
            make_folder(trackers.folder.parent)
        data = prepare_data(settings, seed, accelerator)
        settings = replace(settings, save=save_config(settings, seed, data))
        way = way_of(settings)
        model = way.load(accelerator.device, sharded) if base is None else base
        model.checkpoint_blocks(settings.model.gradient_checkpointing)
        module = TextConditionedTransformer(model)
        with way.put_on(module, seed, shared=base is not None) as subject:
            training = prepare_training(settings, seed, accelerator, subject, module, data.batches)
            return _run(settings, training, data.probes, trackers, hooks, stop)


def _seed(settings: TrainSettings, accelerator: Accelerator) -> int:
    """Return the run's seed: its own, that of the run it goes on from, or one drawn for all."""
    drawn = agree_on_seed(accelerator)
    if settings.seed is not None:
        return settings.seed
    return state_seed(settings.states.resume) if settings.states.resume else drawn


def _run(
    settings: TrainSettings,
    training: Training,
    probes: Probes | None,
    trackers: TrackerConfig | None,
    own: Hooks,
    stop: StopRequest,
) -> TrainSummary:
    """Go on from a state if one is named, tell what will be trained, and train it."""
    needs = _memory_needs(settings, training)
    text = settings.data.text
    previews = prepare_previews(settings, training)
    averages, tally = make_averages(settings, training), Tally()
    report_plan(training, needs, text.t5_tokenizer_dir if text else None)
    leakage = prepare_leakage(training, probes)
    parts = parts_in_state(settings, training, averages, tally, leakage)
    steps_done = resume_if_asked(settings, parts, training)
    states = StateSaver(parts, state_config(settings, trackers))
    own_hooks = own(training) if callable(own) else own
    log = open_log(settings.logs.board, trackers, training.accelerator, steps_done)
    hooks = hooks_in_order(
        settings, training, averages, states, previews, log, stop, own_hooks, leakage
    )
    trainer = training.trainer(hooks, stop, tally)
    with stopped_by_signals(stop), memory_explained(needs):
        end = trainer.run(steps_done)
    best = leakage.best(settings.save.folder) if leakage and end.is_last else None
    summary = _summary(settings, training, tally, end, states, previews, best)
    _report_end(summary)
    report_best(best)
    return summary


def _memory_needs(settings: TrainSettings, training: Training) -> MemoryNeeds:
    accelerator, model = training.accelerator, training.trained.model
    return memory_needs(
        training.trained,
        settings.optimizer.optimizer_type,
        largest_batch(training.batches.plan),
        accelerator.device,
        in_8_bits=settings.model.fp8_base,
        processes=accelerator.num_processes if sharded_tensors(model) else 1,
        averaged=settings.ema_decay is not None,
        exchanged=accelerator.num_processes > 1 and not settings.processes.gradient_as_bucket_view,
        widened=training.rounding.widest if training.rounding else 0,
    )


def _summary(
    settings: TrainSettings,
    training: Training,
    tally: Tally,
    end: Moment,
    states: StateSaver,
    previews: Previews | None,
    best: BestSave | None,
) -> TrainSummary:
    ends = loss_ends(tally.losses)
    return TrainSummary(
        steps=end.step,
        first_loss=ends[0] if ends else None,
        final_loss=ends[1] if ends else None,
        skipped_steps=tally.skipped_steps,
        links_out=training.batches.plan.links_out,
        output=str(settings.save.final_path) if end.is_last else None,
        state_dir=str(states.last) if states.last else None,
        contact_sheet=str(previews.sheet_path) if previews else None,
        best_save=str(best.path) if best and best.stands_out else None,
    )


def _report_end(summary: TrainSummary) -> None:
    """Say what a run came to."""
    if summary.skipped_steps:
        skipped = counted(summary.skipped_steps, "step")
        warn(f"{skipped} passed over: loss or gradient was not finite")
    if summary.output is None:
        return
    losses = ""
    if summary.first_loss is not None:
        losses = f", loss {summary.first_loss:.4f} to {summary.final_loss:.4f}"
    say(f"trained   {summary.output}{losses}")
    if summary.contact_sheet:
        say(f"previews  {summary.contact_sheet}")
